//! Deleting a timeline, here and in object storage.
//!
//! Steps, each durable before the next: index marked as deleted; local directory removed; objects removed, the
//! index last. From the first step on the timeline does not exist. Whatever the step at which the process
//! dies, loading the tenant carries out the rest.

use std::path::PathBuf;
use std::sync::Arc;

use utils::crashsafe::CrashsafeError;
use utils::id::{TenantTimelineId, TimelineId};

use super::{Tenant, paths};
use crate::remote::client::delete_objects;
use crate::remote::{TimelineClient, WaitUploadedError};
use crate::timeline::Timeline;

/// The timeline is not there or cannot be deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteTimelineError {
    /// No such timeline.
    #[error("timeline not found")]
    NotFound,
    /// Branches need it.
    #[error("Cannot delete timeline which has child timelines")]
    HasBranches,
    /// The files could not be removed.
    #[error("cannot remove the files of the timeline")]
    Files(#[from] CrashsafeError),
    /// The server or tenant stops; if object storage knows of the deletion, it goes on at the next start.
    #[error("the tenant was stopped before the timeline was deleted")]
    Stopping(#[from] WaitUploadedError),
}

impl Tenant {
    /// Stops the timeline and removes its files and objects. Goes on even if the caller gives up waiting.
    pub async fn delete_timeline(self: &Arc<Self>, id: TimelineId) -> Result<(), DeleteTimelineError> {
        let timeline = self.take_for_deletion(id)?;
        let tenant = Arc::clone(self);
        let task = self.tasks.spawn(async move {
            let deleted = tenant.carry_out_deletion(&timeline).await;
            tenant.creating.lock().remove(&id);
            deleted
        });
        match task.await {
            Ok(deleted) => deleted,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_runtime_ends) => Err(WaitUploadedError::Stopped.into()),
            },
        }
    }

    /// Takes the timeline off the map, and keeps its id from others.
    fn take_for_deletion(&self, id: TimelineId) -> Result<Arc<Timeline>, DeleteTimelineError> {
        let mut timelines = self.timelines.write();
        let timeline = timelines.get(&id).ok_or(DeleteTimelineError::NotFound)?;
        if !timeline.branch_points().is_empty() {
            return Err(DeleteTimelineError::HasBranches);
        }
        self.creating.lock().insert(id);
        Ok(timelines.remove(&id).expect("it was there just now"))
    }

    async fn carry_out_deletion(&self, timeline: &Arc<Timeline>) -> Result<(), DeleteTimelineError> {
        timeline.stop().await;
        fail::fail_point!("before-mark-timeline-deleted");
        if let Some(remote) = timeline.remote() {
            let metadata = timeline.saved_metadata().await;
            remote.mark_deleted(metadata, &self.cancel).await?;
        }
        if let Some((ancestor, _)) = timeline.ancestor() {
            ancestor.remove_branch_point(timeline.timeline_id);
        }
        remove_local(timeline.dir().to_owned()).await?;
        if let Some(storage) = timeline.remote().map(|remote| TimelineClient::storage(remote)) {
            delete_objects(storage, timeline.id(), &self.cancel).await?;
        }
        Ok(())
    }

    /// Carries out the rest of a deletion that object storage says was begun.
    pub(super) async fn resume_deletion(self: &Arc<Self>, id: TimelineId) -> Result<(), CrashsafeError> {
        let dir = paths::timeline_dir(&self.dir, id);
        if dir.exists() {
            remove_local(dir).await?;
        }
        self.creating.lock().insert(id);
        let tenant = Arc::clone(self);
        self.tasks.spawn(async move {
            let storage = tenant.context.remote.as_ref();
            let storage = storage.expect("what began the deletion was read from there");
            let full_id = TenantTimelineId::new(tenant.id, id);
            if delete_objects(storage, full_id, &tenant.cancel).await.is_ok() {
                tenant.creating.lock().remove(&id);
            }
        });
        Ok(())
    }
}

async fn remove_local(dir: PathBuf) -> Result<(), CrashsafeError> {
    utils::blocking::run(move || paths::remove_whole_dir(&dir)).await
}
