//! Bringing all layers of a timeline to the local disk before anybody asks for them: one task at a time.

use std::num::NonZeroUsize;
use std::sync::Arc;

use futures::StreamExt;
use pageserver_api::models::{DownloadLayersInfo, DownloadLayersState};

use super::Timeline;
use super::eviction::fetch;
use crate::layers::file::Layer;
use crate::task_kind::TaskKind;

impl Timeline {
    /// Starts the task and returns how it begins.
    ///
    /// # Errors
    /// How the task that is at it already is getting on.
    pub fn start_download_all(
        self: &Arc<Self>,
        concurrency: NonZeroUsize,
    ) -> Result<DownloadLayersInfo, DownloadLayersInfo> {
        let layers = self.layers.load_full();
        let remote: Vec<Arc<Layer>> = layers
            .files
            .iter()
            .filter(|layer| !layer.residence().is_local())
            .cloned()
            .collect();
        let mut current = self.download_all.lock();
        if let Some(running) = current
            .as_ref()
            .filter(|info| info.state == DownloadLayersState::Running)
        {
            return Err(running.clone());
        }
        let info = DownloadLayersInfo {
            task_id: format!("{:016x}", rand::random::<u64>()),
            state: DownloadLayersState::Running,
            total_layer_count: remote.len() as u64,
            successful_download_count: 0,
            failed_download_count: 0,
        };
        *current = Some(info.clone());
        let timeline = Arc::clone(self);
        self.spawn(TaskKind::DownloadAllRemoteLayers.scope(async move {
            timeline.run_download_all(remote, concurrency).await;
        }));
        Ok(info)
    }

    /// How the last task got on, if there ever was one.
    pub fn download_all_info(&self) -> Option<DownloadLayersInfo> {
        self.download_all.lock().clone()
    }

    fn note_download_all(&self, change: impl FnOnce(&mut DownloadLayersInfo)) {
        if let Some(info) = self.download_all.lock().as_mut() {
            change(info);
        }
    }

    async fn run_download_all(&self, layers: Vec<Arc<Layer>>, concurrency: NonZeroUsize) {
        let downloads = futures::stream::iter(layers)
            .map(|layer| async move { fetch(&layer).await })
            .buffer_unordered(concurrency.get())
            .for_each(|result| {
                self.note_download_all(|info| match &result {
                    Ok(_) => info.successful_download_count += 1,
                    Err(_) => info.failed_download_count += 1,
                });
                if let Err(error) = result {
                    tracing::warn!(tenant_id = %self.tenant_id, timeline_id = %self.timeline_id,
                        "{:#}", anyhow::Error::from(error));
                }
                std::future::ready(())
            });
        let end = tokio::select! {
            () = downloads => DownloadLayersState::Completed,
            () = self.cancel.cancelled() => DownloadLayersState::ShutDown,
        };
        self.note_download_all(|info| info.state = end);
    }
}
