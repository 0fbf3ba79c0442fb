//! What a timeline tells its remote half, and asks of it.

use std::sync::Arc;
use std::time::Duration;

use pageserver_api::layer_name::LayerFileName;

use super::Timeline;
use super::metadata::TimelineMetadata;
use crate::layers::file::Layer;
use crate::remote::queue::Change;
use crate::remote::{TimelineClient, WaitUploadedError};

/// How long an orderly end waits for uploads. What is missing then is uploaded after the next start.
const UPLOADS_AT_SHUTDOWN_MAX: Duration = Duration::from_secs(5);

impl Timeline {
    /// The remote half, if there is object storage.
    pub fn remote(&self) -> Option<&Arc<TimelineClient>> {
        self.remote.as_ref()
    }

    /// Starts uploading, once the ancestor is there: object storage never has a branch without it.
    pub(super) fn start_uploads(&self) {
        let Some(remote) = &self.remote else { return };
        let ancestor = self.ancestor.as_ref();
        let ancestor = ancestor.and_then(|ancestor| ancestor.timeline.remote.clone());
        remote.start(ancestor);
    }

    /// Notes a change for upload. Changes are noted in the order in which they happen: under the lock of the
    /// write state, or for metadata alone under that of the saved metadata.
    pub(super) fn schedule_upload(
        &self,
        added: &[Arc<Layer>],
        removed: Vec<LayerFileName>,
        metadata: Option<TimelineMetadata>,
    ) {
        if let Some(remote) = &self.remote {
            let change = Change {
                added: Vec::new(),
                removed,
                metadata,
            };
            remote.schedule(change, added);
        }
    }

    /// Waits until everything that is in files now is in object storage, if there is one.
    pub async fn wait_uploaded(&self, timeout: Duration) -> Result<(), WaitUploadedError> {
        match &self.remote {
            Some(remote) => remote.wait_uploaded(timeout).await,
            None => Ok(()),
        }
    }

    pub(super) async fn finish_uploads(&self) {
        let Some(remote) = &self.remote else { return };
        if let Err(error) = remote.wait_uploaded(UPLOADS_AT_SHUTDOWN_MAX).await {
            tracing::info!(tenant_id = %self.tenant_id, timeline_id = %self.timeline_id,
                "wait for layer upload ops to complete: {error}");
        }
        remote.stop().await;
    }
}
