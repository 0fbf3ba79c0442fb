//! One timeline on this safekeeper: the acceptor behind a lock, and around it what can be known without
//! waiting for the disk.
//!
//! Invariants
//! * The acceptor and its files are used under one lock, and everything an operation decided is on disk
//!   before the lock is given back and before anybody sees the new positions.
//! * After an error of the disk the next operation opens the files anew; nothing was acknowledged that
//!   is not durable. A full disk thus heals by itself, and damaged files keep being refused by name.
//! * Positions that have advanced far are saved beside that, by a thread that blocks nobody; those who need
//!   them durable look at [`Snapshot::persisted`].
//! * A deleted timeline never touches its files again.
//!
//! Not here: connections, and which timelines there are.

mod core;
mod peers;
mod readers;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use safekeeper_api::protocol::{AcceptorMessage, Term};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

use self::core::{CarriedOut, Core, Place};
use crate::Sync;
use crate::acceptor::{Acceptor, Action, ControlState, Positions, ServerInfo};
use crate::config::{Config, WalBackup};
use crate::control_file::{ControlFileError, ControlWriter};
use crate::metrics::{PERSIST_CONTROL_FILE_SECONDS, WalCounters};
use crate::short_wait::{ProposerGuard, SHORT_WAITS};
use crate::wal_storage::{WalDir, WalReader, verify_segment};

pub use self::core::DiskError;
pub use self::peers::Peer;
pub use self::readers::{Reader, ReaderSlot, Readers};

/// An operation on a timeline failed.
#[derive(Debug, thiserror::Error)]
pub enum TimelineError {
    /// It was deleted.
    #[error("Timeline {0} was cancelled and cannot be used anymore")]
    Cancelled(TenantTimelineId),
    /// Its files cannot be used.
    #[error("Timeline {id} cannot be used")]
    Disk {
        /// The timeline.
        id: TenantTimelineId,
        /// What is wrong with them.
        source: DiskError,
    },
}

/// A timeline's state as of the last finished operation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot {
    /// Whether the WAL has been opened: before, positions are those of the control file, and there is no
    /// `flush_lsn`.
    pub is_open: bool,
    /// The cluster.
    pub server: ServerInfo,
    /// The acceptor's term.
    pub term: Term,
    /// Term of the last record.
    pub epoch: Term,
    /// Where the newest term begins.
    pub epoch_start_lsn: Lsn,
    /// Where the timeline's WAL begins.
    pub timeline_start_lsn: Lsn,
    /// Where the WAL given to this safekeeper begins.
    pub local_start_lsn: Lsn,
    /// End of the bytes written.
    pub write_lsn: Lsn,
    /// End of the last whole record written.
    pub record_lsn: Lsn,
    /// End of the durable WAL.
    pub flush_lsn: Lsn,
    /// Positions as they are in memory.
    pub positions: Positions,
    /// Positions as the control file has them.
    pub persisted: Positions,
    /// Whether a segment is held open.
    pub file_open: bool,
}

impl Snapshot {
    /// Whether the WAL from `lsn` on was ever here; what precedes the local start in a file is none.
    pub fn reaches_back_to(&self, lsn: Lsn) -> bool {
        self.local_start_lsn <= self.timeline_start_lsn || self.local_start_lsn <= lsn
    }

    fn of_control(control: &ControlState) -> Self {
        let persisted = control.positions();
        Snapshot {
            server: control.server,
            term: control.term,
            epoch_start_lsn: control.epoch_start_lsn(),
            timeline_start_lsn: control.timeline_start_lsn,
            local_start_lsn: control.local_start_lsn,
            positions: persisted,
            persisted,
            ..Snapshot::default()
        }
    }

    fn of_core(core: &Core) -> Self {
        let acceptor = &core.acceptor;
        Snapshot {
            is_open: true,
            epoch: acceptor.epoch(),
            write_lsn: acceptor.write_lsn(),
            record_lsn: acceptor.record_lsn(),
            flush_lsn: acceptor.flush_lsn(),
            positions: acceptor.positions(),
            file_open: core.storage.is_file_open(),
            ..Snapshot::of_control(acceptor.control())
        }
    }
}

/// The files, opened when they are first needed, and again after an error.
#[derive(Debug)]
enum CoreState {
    Closed { durable_lsn: Option<Lsn> },
    Open(Box<Core>),
}

/// See the module's head.
#[derive(Debug)]
pub struct Timeline {
    id: TenantTimelineId,
    conf: Arc<Config>,
    core: tokio::sync::Mutex<CoreState>,
    snapshot: Mutex<Snapshot>,
    /// Follows the commit LSN in memory.
    commit: watch::Sender<Lsn>,
    readers: Arc<Readers>,
    peers: peers::Peers,
    computes: AtomicUsize,
    cancel: CancellationToken,
    counters: WalCounters,
    /// Segments known to be sound: those read before, and all from the one that the WAL ended in when
    /// it was opened.
    sound: Mutex<SoundSegments>,
    /// Segments below this number were removed.
    removed_before: AtomicU64,
    /// Whether this safekeeper takes part in offloading the WAL.
    offload_active: AtomicBool,
    /// Bytes on disk when segments were last removed, 0 if they never were.
    disk_usage: AtomicU64,
}

#[derive(Debug, Default)]
struct SoundSegments {
    read_before: HashSet<u64>,
    all_from: Option<u64>,
}

/// Actions that write more than this, in bytes, are no short wait.
const SHORT_WRITE_BYTES: usize = 64 * 1024;

/// How actions wait for the disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wait {
    Not,
    /// For little WAL to become durable.
    Short,
    Long,
}

impl Wait {
    fn for_actions(actions: &[Action]) -> Wait {
        let (mut wait, mut bytes_written) = (Wait::Not, 0);
        for action in actions {
            match action {
                Action::Reply(_) | Action::SavePositions(_) => {}
                Action::FlushWal { .. } => wait = Wait::Short,
                Action::WriteWal { bytes, .. } => {
                    bytes_written += bytes.len();
                    wait = Wait::Short;
                }
                Action::PersistControl(_) | Action::TruncateWal { .. } => return Wait::Long,
            }
        }
        match bytes_written > SHORT_WRITE_BYTES {
            true => Wait::Long,
            false => wait,
        }
    }
}

/// A compute's connection, for as long as it lasts.
#[derive(Debug)]
pub struct ComputeGuard {
    timeline: Arc<Timeline>,
    _proposer: ProposerGuard,
}

impl Drop for ComputeGuard {
    fn drop(&mut self) {
        self.timeline.computes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Timeline {
    /// A timeline whose control file holds `control`. Its WAL is opened when it is first needed.
    pub fn new(conf: Arc<Config>, control: &ControlState) -> Self {
        Timeline {
            id: control.id,
            conf,
            core: tokio::sync::Mutex::new(CoreState::Closed { durable_lsn: None }),
            snapshot: Mutex::new(Snapshot::of_control(control)),
            commit: watch::Sender::new(control.commit_lsn),
            readers: Arc::default(),
            peers: peers::Peers::default(),
            computes: AtomicUsize::new(0),
            cancel: CancellationToken::new(),
            counters: WalCounters::default(),
            sound: Mutex::default(),
            removed_before: AtomicU64::new(0),
            offload_active: AtomicBool::new(false),
            disk_usage: AtomicU64::new(0),
        }
    }

    /// The timeline's name.
    pub fn id(&self) -> TenantTimelineId {
        self.id
    }

    /// Settings of the safekeeper.
    pub fn conf(&self) -> &Arc<Config> {
        &self.conf
    }

    /// Set while this safekeeper takes part in offloading the WAL, be it only by standing for election.
    pub fn offload_active(&self) -> &AtomicBool {
        &self.offload_active
    }

    /// The state as of the last finished operation.
    pub fn snapshot(&self) -> Snapshot {
        *self.snapshot.lock()
    }

    /// Follows the commit LSN.
    pub fn watch_commit(&self) -> watch::Receiver<Lsn> {
        self.commit.subscribe()
    }

    /// Those who read this timeline's WAL here.
    pub fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// Time and bytes spent on WAL.
    pub fn counters(&self) -> &WalCounters {
        &self.counters
    }

    /// Cancelled when the timeline is deleted.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Number of computes connected.
    pub fn computes(&self) -> usize {
        self.computes.load(Ordering::Relaxed)
    }

    /// Counts a compute for as long as the guard lives.
    pub fn connect_compute(self: &Arc<Self>) -> ComputeGuard {
        self.computes.fetch_add(1, Ordering::Relaxed);
        ComputeGuard {
            timeline: Arc::clone(self),
            _proposer: SHORT_WAITS.proposer(),
        }
    }

    fn place(&self) -> Place {
        Place {
            node_id: self.conf.id,
            dir: self.conf.timeline_dir(self.id),
            sync: self.conf.sync,
        }
    }

    /// Where the WAL is.
    pub fn wal_dir(&self) -> WalDir {
        WalDir {
            path: self.conf.timeline_dir(self.id),
            segment_size: self.snapshot().server.wal_seg_size as usize,
        }
    }

    /// Reads WAL from `at` on.
    pub fn read_wal(&self, at: Lsn) -> WalReader {
        WalReader::new(self.wal_dir(), at)
    }

    /// Makes sure that the records of the segment of `at` are sound before they are served: what was
    /// written by an earlier process may have been damaged since. Blocking, once per segment.
    pub fn check_segment(&self, at: Lsn) -> Result<(), TimelineError> {
        let dir = self.wal_dir();
        let segno = at.segment_number(dir.segment_size);
        let known = |sound: &SoundSegments| {
            sound.all_from.is_some_and(|from| segno >= from) || sound.read_before.contains(&segno)
        };
        if known(&self.sound.lock()) {
            return Ok(());
        }
        verify_segment(&dir, segno, self.snapshot().positions.commit_lsn).map_err(|error| {
            TimelineError::Disk {
                id: self.id,
                source: error.into(),
            }
        })?;
        self.sound.lock().read_before.insert(segno);
        Ok(())
    }

    /// Lets `decide` use the acceptor, carries out the actions it puts, and returns its result and the
    /// replies, which may be sent: all that they depend on is durable.
    ///
    /// # Errors
    /// The timeline is deleted, or its disk failed; nothing of the result is true then.
    pub async fn with_acceptor<R>(
        self: &Arc<Self>,
        decide: impl FnOnce(&mut Acceptor, &mut Vec<Action>) -> R,
    ) -> Result<(R, Vec<AcceptorMessage>), TimelineError> {
        let mut state = self.core.lock().await;
        if self.cancel.is_cancelled() {
            return Err(TimelineError::Cancelled(self.id));
        }
        let core = self.opened(&mut state)?;
        let mut actions = Vec::new();
        let result = decide(&mut core.acceptor, &mut actions);
        Ok((result, self.carry_out(&mut state, actions)?))
    }

    /// Carries out actions of the open core's acceptor, and publishes what has come of them.
    fn carry_out(
        self: &Arc<Self>,
        state: &mut CoreState,
        actions: Vec<Action>,
    ) -> Result<Vec<AcceptorMessage>, TimelineError> {
        let core = self.opened(state)?;
        let wait = match self.conf.sync {
            Sync::Yes => Wait::for_actions(&actions),
            Sync::No => Wait::Not,
        };
        let carry_out = || core.carry_out(actions, &self.counters);
        let carried_out = match wait {
            Wait::Not => carry_out(),
            Wait::Short => SHORT_WAITS.run(carry_out),
            Wait::Long => tokio::task::block_in_place(carry_out),
        };
        let CarriedOut { replies, save } = match carried_out {
            Ok(done) => done,
            Err(source) => {
                *state = CoreState::Closed {
                    durable_lsn: Some(core.durable_lsn),
                };
                return Err(TimelineError::Disk { id: self.id, source });
            }
        };
        if let Some(job) = core.storage.spare_job() {
            // Its failure is met again, and reported, by whoever needs the segment.
            drop(tokio::task::spawn_blocking(|| job.run()));
        }
        if let Some(positions) = save {
            self.save_in_background(Arc::clone(&core.control), positions);
        }
        self.publish(core);
        Ok(replies)
    }

    fn save_in_background(self: &Arc<Self>, control: Arc<ControlWriter>, positions: Positions) {
        let timeline = Arc::clone(self);
        tokio::spawn(async move {
            let writer = Arc::clone(&control);
            let writing = tokio::task::spawn_blocking(move || {
                let begin = Instant::now();
                writer.save(positions)?;
                PERSIST_CONTROL_FILE_SECONDS.observe(begin.elapsed().as_secs_f64());
                Ok(())
            });
            match writing.await {
                Ok(saved) => timeline.saved(&control, positions, saved).await,
                // The process is ending.
                Err(error) => assert!(error.is_cancelled(), "saving positions: {error}"),
            }
        });
    }

    /// Tells the acceptor that `positions` are durable, if it is still the one that had them saved. A failure
    /// is one of the disk as any other.
    async fn saved(
        self: &Arc<Self>,
        control: &Arc<ControlWriter>,
        positions: Positions,
        saved: Result<(), ControlFileError>,
    ) {
        let mut state = self.core.lock().await;
        let CoreState::Open(core) = &mut *state else {
            return;
        };
        if !Arc::ptr_eq(&core.control, control) {
            return;
        }
        match saved {
            Ok(()) => {
                let mut actions = Vec::new();
                core.acceptor.positions_saved(positions, &mut actions);
                if let Err(error) = self.carry_out(&mut state, actions) {
                    error!("{:#}", anyhow::Error::new(error));
                }
            }
            Err(error) => {
                error!("timeline {}: {:#}", self.id, anyhow::Error::new(error));
                *state = CoreState::Closed {
                    durable_lsn: Some(core.durable_lsn),
                };
            }
        }
    }

    /// Opens the WAL if that has not been done.
    pub async fn open(self: &Arc<Self>) -> Result<(), TimelineError> {
        self.with_acceptor(|_, _| ()).await.map(|_| ())
    }

    fn opened<'a>(&self, state: &'a mut CoreState) -> Result<&'a mut Core, TimelineError> {
        if let CoreState::Closed { durable_lsn } = *state {
            let opened = tokio::task::block_in_place(|| Core::open(self.place(), durable_lsn));
            let core = opened.map_err(|source| TimelineError::Disk { id: self.id, source })?;
            let opened_segno = self.segment_number(core.acceptor.positions().commit_lsn);
            self.sound.lock().all_from.get_or_insert(opened_segno);
            *state = CoreState::Open(Box::new(core));
        }
        match state {
            CoreState::Open(core) => Ok(core),
            CoreState::Closed { .. } => unreachable!("it was opened above"),
        }
    }

    fn publish(&self, core: &Core) {
        let snapshot = Snapshot::of_core(core);
        *self.snapshot.lock() = snapshot;
        self.commit.send_if_modified(|commit| {
            // After an error of the disk the acceptor may know less than was known before.
            let advanced = snapshot.positions.commit_lsn > *commit;
            *commit = snapshot.positions.commit_lsn.max(*commit);
            advanced
        });
    }

    /// The acceptor's durable state, with the term history.
    pub async fn control(self: &Arc<Self>) -> Result<ControlState, TimelineError> {
        let (control, _) = self
            .with_acceptor(|acceptor, _| acceptor.control().clone())
            .await?;
        Ok(control)
    }

    /// A pageserver does not need WAL before `lsn` again.
    pub async fn advance_remote_consistent_lsn(self: &Arc<Self>, lsn: Lsn) -> Result<(), TimelineError> {
        if lsn <= self.snapshot().positions.remote_consistent_lsn {
            return Ok(());
        }
        self.with_acceptor(|acceptor, out| {
            acceptor.advance_remote_consistent_lsn(lsn);
            acceptor.save_if_far_ahead(out);
        })
        .await?;
        Ok(())
    }

    fn segment_number(&self, lsn: Lsn) -> u64 {
        lsn.segment_number(self.snapshot().server.wal_seg_size.max(1) as usize)
    }

    /// Whether there is WAL to be put into object storage, or soon will be.
    pub fn needs_wal_backup(&self) -> bool {
        let positions = self.snapshot().positions;
        self.computes() > 0
            || self.segment_number(positions.commit_lsn) > self.segment_number(positions.backup_lsn)
    }

    /// Whether anything is going on: only then is the timeline published, trimmed and measured.
    pub fn is_active(&self) -> bool {
        let positions = self.snapshot().positions;
        !self.cancel.is_cancelled()
            && (self.needs_wal_backup() || positions.remote_consistent_lsn < positions.commit_lsn)
    }

    /// Whether a reader that needs nothing before `received` can be sent away: no compute will write
    /// more, and it has everything.
    pub fn is_finished_for(&self, received: Lsn) -> bool {
        let commit_lsn = self.snapshot().positions.commit_lsn;
        self.computes() == 0 && (!commit_lsn.is_valid() || received >= commit_lsn)
    }

    /// Removes the segments that nobody will ask for. Blocking.
    pub fn remove_old_wal(&self) -> Result<usize, crate::wal_storage::WalError> {
        let Snapshot {
            persisted, positions, ..
        } = self.snapshot();
        // After a restart the search for the end of the WAL begins at the persisted commit LSN.
        let mut horizon = persisted.remote_consistent_lsn.min(persisted.commit_lsn);
        horizon = horizon.min(positions.peer_horizon_lsn);
        if self.conf.wal_backup == WalBackup::Enabled {
            // What a restart would have forgotten to be there must still be on disk to be uploaded again.
            horizon = horizon.min(persisted.backup_lsn);
        }
        let segno = self.segment_number(horizon);
        if segno <= 1 || segno <= self.removed_before.load(Ordering::Relaxed) || self.cancel.is_cancelled() {
            return Ok(0);
        }
        let dir = self.wal_dir();
        let removed = dir.remove_before(segno)?;
        self.removed_before.store(segno, Ordering::Relaxed);
        if removed > 0 {
            let bytes = dir.segments()?.len() * dir.segment_size;
            self.disk_usage.store(bytes as u64, Ordering::Relaxed);
        }
        Ok(removed)
    }

    /// Number of the newest segment that was removed, 0 if none was.
    pub fn last_removed_segno(&self) -> u64 {
        self.removed_before.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// Bytes of WAL on disk after segments were removed; `None` if none ever were.
    pub fn disk_usage_after_removal(&self) -> Option<u64> {
        Some(self.disk_usage.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    /// Closes the file held open if no compute is there to write into it.
    pub fn close_idle_file(&self) {
        if self.computes() > 0 || !self.snapshot().file_open {
            return;
        }
        if let Ok(mut state) = self.core.try_lock()
            && let CoreState::Open(core) = &mut *state
        {
            core.storage.close_file();
            self.publish(core);
        }
    }

    /// Ends all use of the timeline: on return nothing of it touches its files.
    pub async fn cancel(&self) {
        self.cancel.cancel();
        let mut state = self.core.lock().await;
        *state = CoreState::Closed { durable_lsn: None };
    }
}
