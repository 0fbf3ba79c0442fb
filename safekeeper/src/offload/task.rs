//! Offloading one timeline: stand for election; as the leader, upload segments as they become full.
//!
//! The task ends when the timeline needs it no more (no compute, everything offloaded) or is deleted. A leader
//! resigns when it has fallen behind the others, when its own WAL does not reach back to what is to be offloaded
//! next, or when its uploads keep failing while others may do better; it then stands back for a while.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use broker::{Broker, Election, Leadership};
use remote_storage::{GenericRemoteStorage, RetryError, contents_of_file, retry_upload};
use tracing::{debug, error, info};
use utils::id::NodeId;
use utils::lsn::Lsn;

use super::{has_work, object_name};
use crate::timeline::Timeline;

/// How often a task that waits looks whether anything has changed.
const POLL_PERIOD: Duration = Duration::from_secs(1);
/// A leader that is done looks whether a segment is full at most this often. With every commit it would take the CPU in the
/// moment in which the commit is being told to its client.
const SEGMENT_PERIOD: Duration = Duration::from_millis(100);
/// A leader whose upload has not succeeded for this long lets another try.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(60);
/// How long one that resigned because it could not do the work does not stand again.
const STAND_BACK_PERIOD: Duration = Duration::from_secs(10);

/// See the module's head.
pub(super) struct Task {
    timeline: Arc<Timeline>,
    storage: GenericRemoteStorage,
    broker: Broker,
    node: NodeId,
    max_lag_bytes: u64,
    heartbeat_timeout: Duration,
}

/// Why a leader leads no more.
enum End {
    /// There is nothing left to offload, and nobody writes.
    Idle,
    /// Another may lead better.
    Unfit,
}

/// Marks the timeline as being offloaded for as long as this lives.
struct ActiveMark<'a>(&'a Timeline);

impl<'a> ActiveMark<'a> {
    fn set(timeline: &'a Timeline) -> Self {
        timeline.offload_active().store(true, Ordering::Relaxed);
        ActiveMark(timeline)
    }
}

impl Drop for ActiveMark<'_> {
    fn drop(&mut self) {
        self.0.offload_active().store(false, Ordering::Relaxed);
    }
}

impl Task {
    pub fn new(timeline: Arc<Timeline>, storage: GenericRemoteStorage, broker: Broker) -> Self {
        let conf = timeline.conf();
        Task {
            node: conf.id,
            max_lag_bytes: conf.max_offloader_lag_bytes,
            heartbeat_timeout: conf.heartbeat_timeout,
            timeline,
            storage,
            broker,
        }
    }

    /// Runs until the timeline needs it no more.
    pub async fn run(self) {
        let cancelled = self.timeline.cancelled().clone();
        let _active = ActiveMark::set(&self.timeline);
        tokio::select! {
            () = cancelled.cancelled() => {}
            () = self.stand_and_lead() => {}
        }
    }

    async fn stand_and_lead(&self) {
        let id = self.timeline.id();
        let mut is_away = false;
        while has_work(&self.timeline) {
            if !self.is_fit() {
                tokio::time::sleep(POLL_PERIOD).await;
                continue;
            }
            let election = self
                .broker
                .stand_for_leader(id, self.node, self.heartbeat_timeout);
            match election.await {
                Ok(Election::Won(leadership)) => {
                    is_away = false;
                    info!("offloading WAL of {id} from {}", self.backup_lsn());
                    if matches!(self.lead(*leadership).await, End::Unfit) {
                        tokio::time::sleep(STAND_BACK_PERIOD).await;
                    }
                }
                Ok(Election::Lost(leader)) => {
                    is_away = false;
                    debug!("WAL of {id} is offloaded by safekeeper {leader:?}");
                    tokio::time::sleep(POLL_PERIOD).await;
                }
                Err(error) => {
                    if !is_away {
                        info!("cannot elect who offloads WAL of {id}, retrying each second: {error}");
                    }
                    is_away = true;
                    tokio::time::sleep(POLL_PERIOD).await;
                }
            }
        }
    }

    /// Leads until something ends it, and resigns.
    async fn lead(&self, leadership: Leadership) -> End {
        let end = tokio::select! {
            () = hold(&leadership) => {
                info!("no longer offloading WAL of {}: the lease has ended", self.timeline.id());
                return End::Unfit;
            }
            end = self.offload() => end,
        };
        if let Err(error) = leadership.resign().await {
            debug!("cannot resign, another leads when the lease ends: {error}");
        }
        end
    }

    /// Uploads segments as they become full.
    async fn offload(&self) -> End {
        let mut commit = self.timeline.watch_commit();
        loop {
            if !self.is_fit() {
                info!(
                    "no longer offloading WAL of {}: behind the others",
                    self.timeline.id()
                );
                return End::Unfit;
            }
            match self.next_segment() {
                Some(segno) => {
                    if let Err(error) = self.offload_segment(segno).await {
                        error!("cannot offload WAL of {}: {error:#}", self.timeline.id());
                        return End::Unfit;
                    }
                }
                None if !has_work(&self.timeline) => return End::Idle,
                None => {
                    // The time-out is for what others publish, and for computes that go.
                    drop(tokio::time::timeout(POLL_PERIOD, commit.changed()).await);
                    tokio::time::sleep(SEGMENT_PERIOD).await;
                }
            }
        }
    }

    fn backup_lsn(&self) -> Lsn {
        self.timeline.snapshot().positions.backup_lsn
    }

    /// The oldest full segment that is not offloaded.
    fn next_segment(&self) -> Option<u64> {
        let snapshot = self.timeline.snapshot();
        let size = self.timeline.wal_dir().segment_size;
        let end = snapshot.positions.commit_lsn.min(snapshot.flush_lsn);
        let next = snapshot.positions.backup_lsn.segment_number(size);
        (next < end.segment_number(size)).then_some(next)
    }

    /// Whether this safekeeper has what is to be offloaded next, and is not far behind others.
    fn is_fit(&self) -> bool {
        let snapshot = self.timeline.snapshot();
        let positions = snapshot.positions;
        let peers = self.timeline.live_peers(self.heartbeat_timeout);
        let newest = peers.iter().map(|(_, peer)| peer.info.commit_lsn).max();
        let lag = newest.map_or(0, |newest| newest.saturating_sub(positions.commit_lsn));
        snapshot.reaches_back_to(positions.backup_lsn) && lag <= self.max_lag_bytes
    }

    async fn offload_segment(&self, segno: u64) -> anyhow::Result<()> {
        let timeline = Arc::clone(&self.timeline);
        let wal_dir = timeline.wal_dir();
        let size = wal_dir.segment_size as u64;
        let (begin, end) = (Lsn(segno * size), Lsn((segno + 1) * size));
        let first = begin.max(timeline.snapshot().timeline_start_lsn);
        // What the disk has damaged must not become the only copy.
        let check = move || timeline.check_segment(first);
        tokio::task::spawn_blocking(check).await??;
        let path = wal_dir.full_path(segno);
        let object = object_name(self.timeline.id(), &wal_dir.segment_name(segno));
        let cancel = self.timeline.cancelled();
        let what = format!("UploadWalSegment({object})");
        let upload = || async {
            let contents = contents_of_file(&path).await?;
            self.storage.upload(&object, contents, size).await
        };
        let uploaded = retry_upload(&what, cancel, upload);
        match tokio::time::timeout(UPLOAD_PATIENCE, uploaded).await {
            Ok(Ok(())) => {}
            Ok(Err(RetryError::Cancelled)) => return Ok(()),
            Ok(Err(RetryError::Failed(error))) => return Err(error.into()),
            Err(_) => anyhow::bail!("{object} could not be uploaded within {UPLOAD_PATIENCE:?}"),
        }
        fail::fail_point!("offload-before-backup-lsn", |_| Err(anyhow::anyhow!(
            "failpoint offload-before-backup-lsn"
        )));
        let advanced = self.timeline.with_acceptor(|acceptor, out| {
            acceptor.advance_backup_lsn(end);
            acceptor.save_if_far_ahead(out);
        });
        advanced.await.context("cannot record what was offloaded")?;
        debug!("offloaded {object}, backup_lsn is {end}");
        Ok(())
    }
}

/// Keeps the lease until it is lost.
async fn hold(leadership: &Leadership) {
    let mut kept = tokio::time::Instant::now();
    let period = leadership.lease_ttl() / 3;
    while kept.elapsed() < leadership.lease_ttl() {
        tokio::time::sleep(period).await;
        let keeping = tokio::time::timeout(period, leadership.keep()).await;
        match keeping {
            Ok(Ok(true)) => kept = tokio::time::Instant::now(),
            Ok(Ok(false)) => return,
            Ok(Err(error)) => debug!("cannot keep a lease: {error}"),
            Err(_) => debug!("cannot keep a lease: no answer"),
        }
    }
}
