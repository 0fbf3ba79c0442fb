//! A timeline: one branch of one cluster's history, readable at every retained LSN.
//!
//! Its versions are in layers: one open in memory, which takes new ones, frozen ones on their way to disk, and
//! files. What precedes its branch point is read from its ancestor.
//!
//! Invariants
//! * `disk_consistent_lsn <= last_record.last`. Everything at or below the former is in files, so after a
//!   crash WAL is needed from there on; safekeepers keep it until then.
//! * A branch point may lie above its ancestor's `disk_consistent_lsn`. If the process dies, the ancestor
//!   fetches that WAL again (it is committed, so nothing else can come), and a read of the branch waits
//!   until the ancestor has reached the branch point.
//! * The set of layers changes as a whole: a reader works on one snapshot, in which no version is missing.
//! * All values of one record become visible at once, by [`TimelineWriter::advance`].
//!
//! Not here: what keys mean (`pgdatadir`), where WAL comes from (`walreceiver`), other timelines (`tenant`).

mod compaction;
mod download_all;
pub mod eviction;
mod flush;
pub mod gc;
mod housekeeping;
mod images;
mod info;
mod layer_set;
mod load;
pub mod memory_store;
pub mod metadata;
pub mod page_memory;
mod read;
mod reconstruct;
mod remote;
pub mod store;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use pageserver_api::layer_name::LayerFileName;
use pageserver_api::models::DownloadLayersInfo;
use pageserver_api::tenant_config::TenantConfig;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utils::id::{TenantId, TenantTimelineId, TimelineId};
use utils::lsn::{AtomicLsn, Lsn, RecordLsn};
use utils::seqwait::{LsnWait, LsnWaitError};

pub use self::compaction::CompactionError;
pub use self::flush::FlushError;
use self::layer_set::LayerSet;
pub use self::load::TimelineFile;
use self::metadata::TimelineMetadata;
pub use self::reconstruct::reconstruct;
pub use self::store::{ReadError, ReadStore, WriteBatch};
use self::write::WriteState;
pub use self::write::{TimelineWriter, WriteError};
use crate::context::StoreContext;
use crate::remote::TimelineClient;
use crate::remote::index::IndexPart;

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// What a timeline is able to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TimelineState {
    /// Being made or read from disk.
    Loading,
    /// Serves reads, receives WAL.
    Active,
    /// On its way out.
    Stopping,
    /// Unusable; the log says why.
    Broken,
}

impl fmt::Display for TimelineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// See the module head.
pub struct Timeline {
    /// The tenant it belongs to.
    pub tenant_id: TenantId,
    /// Its own id.
    pub timeline_id: TimelineId,
    /// Major version of PostgreSQL.
    pub pg_version: u32,
    dir: PathBuf,
    context: Arc<StoreContext>,
    /// Names this object among all of the process, see [`page_memory`].
    number: u64,
    /// Reads that began with a remembered page.
    pages_found: AtomicU64,
    config: Arc<ArcSwap<TenantConfig>>,
    ancestor: Option<Ancestor>,
    initdb_lsn: AtomicLsn,
    last_record: RwLock<RecordLsn>,
    /// The `last` of `last_record`, for those who wait.
    last_record_wait: LsnWait,
    disk_consistent: LsnWait,
    /// What takes its layers to object storage, if there is one.
    remote: Option<Arc<TimelineClient>>,
    /// The last task that downloaded all layers.
    download_all: Mutex<Option<DownloadLayersInfo>>,
    layers: ArcSwap<LayerSet>,
    write_state: Mutex<WriteState>,
    writer_turn: Arc<tokio::sync::Mutex<()>>,
    /// What the metadata file says; its lock orders flushes and other writers of the file.
    saved_metadata: tokio::sync::Mutex<TimelineMetadata>,
    /// Held by compaction and garbage collection, which do not run together.
    housekeeping_turn: tokio::sync::Mutex<()>,
    /// A layer was frozen, or taken off the frozen ones.
    frozen_changed: Notify,
    horizon: Horizon,
    /// See [`Timeline::read_depth`].
    read_depth: AtomicUsize,
    /// Level 0 layers that the next compaction merges at most.
    l0_merge_max: AtomicUsize,
    /// The newest level 0 layer when the last compaction began.
    newest_l0_seen: Mutex<Option<LayerFileName>>,
    state: watch::Sender<TimelineState>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

struct Ancestor {
    timeline: Arc<Timeline>,
    lsn: Lsn,
}

/// What of the history must stay.
struct Horizon {
    /// Reads below are refused. Changed only under the lock of `branch_points`.
    cutoff: AtomicLsn,
    /// Where the timelines that branched off this one did; invalid where that is not known.
    branch_points: Mutex<BTreeMap<TimelineId, Lsn>>,
}

/// What a timeline is made from.
pub struct TimelineParts {
    /// Full name.
    pub id: TenantTimelineId,
    /// Its directory, which exists.
    pub dir: PathBuf,
    /// What its metadata file says or will say.
    pub metadata: TimelineMetadata,
    /// What object storage has of it.
    pub index: Option<IndexPart>,
    /// The timeline that `metadata.ancestor` names.
    pub ancestor: Option<Arc<Timeline>>,
    /// Settings of its tenant, which change at run time.
    pub config: Arc<ArcSwap<TenantConfig>>,
    /// What all timelines share.
    pub context: Arc<StoreContext>,
}

/// The LSN asked for cannot be a branch point.
#[derive(Debug, thiserror::Error)]
pub enum BranchPointError {
    /// It belongs to an ancestor's history.
    #[error(
        "invalid start lsn {lsn} for ancestor timeline {timeline_id}: less than timeline ancestor lsn {ancestor_lsn}"
    )]
    BeforeAncestor {
        /// The LSN asked for.
        lsn: Lsn,
        /// The timeline to branch off.
        timeline_id: TimelineId,
        /// Where that timeline starts.
        ancestor_lsn: Lsn,
    },
    /// The history there is gone, or about to be.
    #[error("invalid branch start lsn: less than latest GC cutoff {cutoff}")]
    Collected {
        /// The lowest LSN that can be a branch point.
        cutoff: Lsn,
    },
}

impl Timeline {
    /// A timeline in state Loading, without layers.
    pub fn new(parts: TimelineParts) -> Arc<Self> {
        let TimelineParts {
            id,
            dir,
            metadata,
            index,
            ancestor,
            config,
            context,
        } = parts;
        let ancestor = metadata.ancestor.map(|(ancestor_id, lsn)| {
            let timeline = ancestor.expect("a branch is made after its ancestor");
            assert_eq!(timeline.timeline_id, ancestor_id, "{id} has another ancestor");
            Ancestor { timeline, lsn }
        });
        let last = metadata.disk_consistent_lsn;
        let prev = metadata.prev_record_lsn.unwrap_or_default();
        let (storage, disk) = (context.remote.clone(), Arc::clone(&context.disk));
        Arc::new(Timeline {
            tenant_id: id.tenant_id,
            timeline_id: id.timeline_id,
            pg_version: metadata.pg_version,
            dir,
            layers: ArcSwap::from_pointee(LayerSet::default()),
            write_state: Mutex::new(WriteState::new(last)),
            context,
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            pages_found: AtomicU64::new(0),
            config,
            ancestor,
            initdb_lsn: AtomicLsn::new(metadata.initdb_lsn),
            saved_metadata: tokio::sync::Mutex::new(metadata),
            last_record: RwLock::new(RecordLsn { last, prev }),
            last_record_wait: LsnWait::new(last),
            disk_consistent: LsnWait::new(last),
            remote: storage.map(|storage| TimelineClient::new(storage, id, index, disk)),
            download_all: Mutex::default(),
            writer_turn: Arc::default(),
            housekeeping_turn: tokio::sync::Mutex::default(),
            frozen_changed: Notify::new(),
            horizon: Horizon {
                cutoff: AtomicLsn::new(metadata.latest_gc_cutoff_lsn),
                branch_points: Mutex::default(),
            },
            read_depth: AtomicUsize::new(0),
            l0_merge_max: AtomicUsize::new(compaction::L0_MERGE_MAX),
            newest_l0_seen: Mutex::default(),
            state: watch::Sender::new(TimelineState::Loading),
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Tenant and timeline.
    pub fn id(&self) -> TenantTimelineId {
        TenantTimelineId::new(self.tenant_id, self.timeline_id)
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Settings that hold now.
    pub fn config(&self) -> Arc<TenantConfig> {
        self.config.load_full()
    }

    /// The timeline this one branched off, if any, and where.
    pub fn ancestor(&self) -> Option<(&Arc<Timeline>, Lsn)> {
        self.ancestor
            .as_ref()
            .map(|ancestor| (&ancestor.timeline, ancestor.lsn))
    }

    /// End of the imported cluster's WAL; for a branch, its branch point.
    pub fn initdb_lsn(&self) -> Lsn {
        self.initdb_lsn.load()
    }

    /// End and start of the last record whose changes are visible.
    pub fn last_record(&self) -> RecordLsn {
        *self.last_record.read()
    }

    /// Everything at or below is in files.
    pub fn disk_consistent_lsn(&self) -> Lsn {
        self.disk_consistent.load()
    }

    /// Everything at or below is in object storage; 0 without one.
    pub fn remote_consistent_lsn(&self) -> Lsn {
        self.remote
            .as_ref()
            .map_or(Lsn::INVALID, |remote| remote.remote_consistent_lsn())
    }

    /// Reads below are refused.
    pub fn latest_gc_cutoff_lsn(&self) -> Lsn {
        self.horizon.cutoff.load()
    }

    /// Waits until the changes of all records up to `lsn` are visible.
    pub async fn wait_lsn(&self, lsn: Lsn, timeout: Duration) -> Result<(), ReadError> {
        match self.last_record_wait.wait_for(lsn, timeout).await {
            Ok(()) => Ok(()),
            Err(LsnWaitError::Closed) => Err(ReadError::Stopping(self.timeline_id)),
            Err(LsnWaitError::Timeout) => Err(ReadError::WaitLsn {
                lsn,
                last: self.last_record().last,
                waited: timeout,
                timeline_id: self.timeline_id,
            }),
        }
    }

    /// What it is able to do now.
    pub fn state(&self) -> TimelineState {
        *self.state.borrow()
    }

    /// Follows the state.
    pub fn watch_state(&self) -> watch::Receiver<TimelineState> {
        self.state.subscribe()
    }

    /// Cancelled when the timeline stops: its tasks end then.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Runs a task that belongs to the timeline. It must end soon after [`Timeline::cancelled`] fires;
    /// stopping the timeline waits for it.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Runs `work`, which writes to the timeline's directory and blocks, as a part of the timeline: a stop waits for
    /// its end, even if the task that began it does not.
    async fn run_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let running = self.tasks.token();
        utils::blocking::run(move || {
            let _running = running;
            work()
        })
        .await
    }

    /// Starts the tasks that take versions from memory to disk.
    pub fn start(self: &Arc<Self>) {
        self.start_flushing();
    }

    /// Starts serving, and the tasks that keep its layers in order and in object storage.
    pub fn activate(self: &Arc<Self>) {
        self.start_uploads();
        self.start_housekeeping();
        self.state.send_replace(TimelineState::Active);
    }

    /// Names and lengths in bytes of all layer files.
    pub fn layer_names(&self) -> Vec<(LayerFileName, u64)> {
        let layers = self.layers.load();
        let described = layers
            .files
            .iter()
            .map(|layer| (layer.name().clone(), layer.file_len()));
        described.collect()
    }

    /// Declares the imported cluster complete: its history begins at the last record.
    pub(crate) fn begin_history(&self) {
        let start = self.last_record().last;
        self.initdb_lsn.store(start);
        self.horizon.cutoff.store(start);
    }

    /// Reads so far that did not begin at the layers but with a page made for an earlier read.
    pub fn remembered_page_hits(&self) -> u64 {
        self.pages_found.load(Ordering::Relaxed)
    }

    /// Bytes of all layer files.
    pub fn physical_size(&self) -> u64 {
        self.layers.load().files.bytes()
    }

    /// Bytes of the layer files that are on the local disk.
    pub fn resident_size(&self) -> u64 {
        let layers = self.layers.load();
        let resident = layers.files.iter().filter(|layer| layer.residence().is_local());
        resident.map(|layer| layer.file_len()).sum()
    }

    /// Ends all tasks of the timeline and waits for them, then makes what is in memory durable.
    pub async fn shutdown(self: &Arc<Self>) {
        self.stop_tasks().await;
        if let Err(error) = self.flush().await {
            // Nothing is lost: the safekeepers still have the WAL.
            tracing::warn!(tenant_id = %self.tenant_id, timeline_id = %self.timeline_id,
                "cannot flush at shutdown: {:#}", anyhow::Error::from(error));
        }
        self.finish_uploads().await;
    }

    /// Ends all tasks of the timeline and waits for them. Versions in memory are not written out, nor layers
    /// uploaded.
    pub async fn stop(&self) {
        self.stop_tasks().await;
        if let Some(remote) = &self.remote {
            remote.stop().await;
        }
    }

    async fn stop_tasks(&self) {
        self.state.send_replace(TimelineState::Stopping);
        self.cancel.cancel();
        self.last_record_wait.close();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Makes sure that `lsn` stays readable for the new branch `branch`.
    pub fn add_branch_point(&self, branch: TimelineId, lsn: Lsn) -> Result<(), BranchPointError> {
        if let Some(ancestor) = self.ancestor.as_ref().filter(|ancestor| lsn < ancestor.lsn) {
            return Err(BranchPointError::BeforeAncestor {
                lsn,
                timeline_id: self.timeline_id,
                ancestor_lsn: ancestor.lsn,
            });
        }
        let mut branch_points = self.horizon.branch_points.lock();
        let cutoff = self.horizon.cutoff.load();
        if lsn < cutoff {
            return Err(BranchPointError::Collected { cutoff });
        }
        branch_points.insert(branch, lsn);
        Ok(())
    }

    /// Registers a branch that was there before this process.
    pub fn keep_branch_point(&self, branch: TimelineId, lsn: Lsn) {
        self.horizon.branch_points.lock().insert(branch, lsn);
    }

    /// Registers a timeline of which nobody knows whether, and where, it branched off: nothing is collected.
    pub fn keep_all_for(&self, branch: TimelineId) {
        self.keep_branch_point(branch, Lsn::INVALID);
    }

    /// Forgets the branch point of a timeline that is gone.
    pub fn remove_branch_point(&self, branch: TimelineId) {
        self.horizon.branch_points.lock().remove(&branch);
    }

    /// The timelines that branched off this one, and where.
    pub fn branch_points(&self) -> BTreeMap<TimelineId, Lsn> {
        self.horizon.branch_points.lock().clone()
    }
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Timeline({})", self.id())
    }
}
