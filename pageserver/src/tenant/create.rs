//! Creating timelines: unfinished under an uninit mark, then real when the mark is removed.
//!
//! Steps, each durable before the next: mark; directory; layers; metadata; mark removed. Whatever the step
//! at which the process dies, loading the tenant removes directory and mark, and the creation can be tried again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use utils::blocking;
use utils::crashsafe::{self, CrashsafeError};
use utils::id::{TenantTimelineId, TimelineId};
use utils::lsn::{Lsn, RecordLsn};

use super::{Tenant, TenantState, paths};
use crate::timeline::metadata::TimelineMetadata;
use crate::timeline::{BranchPointError, FlushError, ReadError, Timeline, TimelineParts};

/// A timeline cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateTimelineError {
    /// It exists, or somebody is creating it.
    #[error("timeline {0} already exists")]
    AlreadyExists(TenantTimelineId),
    /// The tenant is not at work.
    #[error("Tenant {tenant} is not active. Current state: {state}")]
    TenantNotActive {
        /// The tenant.
        tenant: utils::id::TenantId,
        /// What it is instead.
        state: TenantState,
    },
    /// The ancestor does not exist.
    #[error("Cannot branch off the timeline that's not present in pageserver")]
    NoAncestor,
    /// The LSN cannot be branched at.
    #[error(transparent)]
    BranchPoint(#[from] BranchPointError),
    /// WAL up to the branch point has not come.
    #[error("cannot branch at an LSN the ancestor has not reached")]
    AncestorBehind(#[source] ReadError),
    /// Files could not be written.
    #[error("cannot create the files of the timeline")]
    Files(#[from] CrashsafeError),
    /// Layer files could not be written.
    #[error("cannot write the first layers of the timeline")]
    Flush(#[from] FlushError),
    /// A test asked for it.
    #[error("failpoint {0}")]
    Failpoint(&'static str),
}

/// What branch to make.
#[derive(Clone, Copy, Debug)]
pub struct BranchSpec {
    /// Id of the new timeline.
    pub timeline_id: TimelineId,
    /// The timeline to branch off.
    pub ancestor_id: TimelineId,
    /// Where; without it, at the ancestor's last record. Rounded up to a multiple of 8.
    pub start_lsn: Option<Lsn>,
    /// How long to wait for WAL up to `start_lsn`.
    pub wait_timeout: Duration,
}

/// A timeline being made. Dropped unfinished, it takes its files along, soon.
pub struct UninitTimeline {
    tenant: Arc<Tenant>,
    timeline: Option<Arc<Timeline>>,
    dir: PathBuf,
    /// Where it started: nothing was flushed yet if it is there still.
    start: Lsn,
    id: TimelineId,
}

impl Tenant {
    /// Starts making a timeline without ancestor, at LSN 0/0.
    ///
    /// The caller puts the values of the imported cluster at the end of its WAL, advances to its last record,
    /// and finishes.
    pub async fn create_timeline(
        self: &Arc<Self>,
        timeline_id: TimelineId,
        pg_version: u32,
    ) -> Result<UninitTimeline, CreateTimelineError> {
        let metadata = TimelineMetadata {
            disk_consistent_lsn: Lsn::INVALID,
            prev_record_lsn: None,
            ancestor: None,
            latest_gc_cutoff_lsn: Lsn::INVALID,
            initdb_lsn: Lsn::INVALID,
            pg_version,
        };
        self.make_timeline(timeline_id, metadata, None).await
    }

    /// Makes a branch. Only metadata is written, so the time does not depend on the size.
    pub async fn branch(self: &Arc<Self>, spec: BranchSpec) -> Result<Arc<Timeline>, CreateTimelineError> {
        let ancestor = self
            .get_timeline(spec.ancestor_id)
            .map_err(|_| CreateTimelineError::NoAncestor)?;
        let start = branch_start(&ancestor, &spec).await?;
        let metadata = TimelineMetadata {
            disk_consistent_lsn: start.last,
            prev_record_lsn: start.prev.is_valid().then_some(start.prev),
            ancestor: Some((spec.ancestor_id, start.last)),
            latest_gc_cutoff_lsn: start.last,
            initdb_lsn: start.last,
            pg_version: ancestor.pg_version,
        };
        let unfinished = self
            .make_timeline(spec.timeline_id, metadata, Some(ancestor))
            .await?;
        unfinished.finish().await
    }

    async fn make_timeline(
        self: &Arc<Self>,
        id: TimelineId,
        metadata: TimelineMetadata,
        ancestor: Option<Arc<Timeline>>,
    ) -> Result<UninitTimeline, CreateTimelineError> {
        self.reserve(id, &metadata)?;
        let dir = paths::timeline_dir(&self.dir, id);
        let timeline = Timeline::new(TimelineParts {
            id: TenantTimelineId::new(self.id, id),
            dir: dir.clone(),
            metadata,
            index: None,
            ancestor,
            config: Arc::clone(&self.config),
            context: Arc::clone(&self.context),
        });
        // From here on dropping the result undoes everything, soon; `abort` has done so when it returns.
        let unfinished = UninitTimeline {
            tenant: Arc::clone(self),
            timeline: Some(Arc::clone(&timeline)),
            dir: dir.clone(),
            start: metadata.disk_consistent_lsn,
            id,
        };
        let started = blocking::run(move || start_files(&dir)).await;
        self.context.disk.note(&started);
        if let Err(error) = started {
            unfinished.abort().await;
            return Err(error);
        }
        timeline.start();
        Ok(unfinished)
    }

    /// Keeps the id from others and the branch point from garbage collection.
    fn reserve(&self, id: TimelineId, metadata: &TimelineMetadata) -> Result<(), CreateTimelineError> {
        let state = self.state();
        if state != TenantState::Active {
            return Err(CreateTimelineError::TenantNotActive {
                tenant: self.id,
                state,
            });
        }
        // While this lock is held no timeline is deleted.
        let timelines = self.timelines.read();
        let mut creating = self.creating.lock();
        if timelines.contains_key(&id) || creating.contains(&id) {
            return Err(CreateTimelineError::AlreadyExists(TenantTimelineId::new(
                self.id, id,
            )));
        }
        if let Some((ancestor_id, lsn)) = metadata.ancestor {
            let ancestor = timelines
                .get(&ancestor_id)
                .ok_or(CreateTimelineError::NoAncestor)?;
            ancestor.add_branch_point(id, lsn)?;
        }
        creating.insert(id);
        Ok(())
    }
}

/// Where the branch starts, once the ancestor has come so far.
async fn branch_start(ancestor: &Timeline, spec: &BranchSpec) -> Result<RecordLsn, CreateTimelineError> {
    let head = ancestor.last_record();
    let Some(lsn) = spec.start_lsn.map(Lsn::align_up) else {
        return Ok(head);
    };
    ancestor
        .wait_lsn(lsn, spec.wait_timeout)
        .await
        .map_err(CreateTimelineError::AncestorBehind)?;
    // The start of the record that ends at the branch point is known at the head only.
    let head = ancestor.last_record();
    let prev = if head.last == lsn { head.prev } else { Lsn::INVALID };
    Ok(RecordLsn { last: lsn, prev })
}

/// Mark, then directory.
fn start_files(dir: &Path) -> Result<(), CreateTimelineError> {
    let mark = paths::uninit_mark(dir);
    paths::remove_unfinished_timeline(dir)?;
    paths::create_mark(&mark)?;
    fail::fail_point!("after-timeline-uninit-mark-creation", |_| {
        Err(CreateTimelineError::Failpoint(
            "after-timeline-uninit-mark-creation",
        ))
    });
    crashsafe::create_dir(dir)?;
    Ok(())
}

impl UninitTimeline {
    /// The timeline, to be filled.
    pub fn timeline(&self) -> &Arc<Timeline> {
        self.timeline.as_ref().expect("it is taken out only by finishing")
    }

    /// Makes the timeline real and active. On failure nothing of it is left, so that it can be tried again.
    pub async fn finish(mut self) -> Result<Arc<Timeline>, CreateTimelineError> {
        let finished = self.try_finish().await;
        self.tenant.context.disk.note(&finished);
        if finished.is_err() {
            self.abort().await;
        }
        finished
    }

    async fn try_finish(&mut self) -> Result<Arc<Timeline>, CreateTimelineError> {
        fail::fail_point!("before-checkpoint-new-timeline", |_| {
            Err(CreateTimelineError::Failpoint("before-checkpoint-new-timeline"))
        });
        let timeline = self.timeline();
        if timeline.ancestor().is_none() {
            timeline.begin_history();
        }
        timeline.flush().await?;
        if timeline.disk_consistent_lsn() == self.start {
            timeline.save_first_metadata().await?;
        }
        let mark = paths::uninit_mark(&self.dir);
        blocking::run(move || crashsafe::remove_file(&mark)).await?;
        let timeline = self.timeline.take().expect("it is taken out only here");
        let mut timelines = self.tenant.timelines.write();
        let before = timelines.insert(self.id, Arc::clone(&timeline));
        assert!(before.is_none(), "{timeline:?} was reserved");
        self.tenant.creating.lock().remove(&self.id);
        drop(timelines);
        self.tenant.activate_timeline(&timeline);
        Ok(timeline)
    }
}

impl UninitTimeline {
    /// Gives up: stops what was started, removes the files, releases the id.
    pub async fn abort(mut self) {
        if let Some(timeline) = self.timeline.take() {
            undo(Arc::clone(&self.tenant), timeline).await;
        }
    }
}

async fn undo(tenant: Arc<Tenant>, timeline: Arc<Timeline>) {
    timeline.stop().await;
    let id = timeline.timeline_id;
    if let Some((ancestor, _)) = timeline.ancestor() {
        ancestor.remove_branch_point(id);
    }
    let dir = timeline.dir().to_owned();
    if let Err(error) = blocking::run(move || paths::remove_unfinished_timeline(&dir)).await {
        // Left to the next load of the tenant, or to the next try.
        tracing::warn!(tenant_id = %tenant.id, timeline_id = %id, "cannot remove unfinished timeline: {error}");
    }
    tenant.creating.lock().remove(&id);
}

impl Drop for UninitTimeline {
    fn drop(&mut self) {
        let Some(timeline) = self.timeline.take() else {
            return;
        };
        // Without a runtime the process is ending, and the mark does the rest at the next start.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(undo(Arc::clone(&self.tenant), timeline));
        }
    }
}
