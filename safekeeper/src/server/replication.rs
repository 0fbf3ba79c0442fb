//! `START_REPLICATION`: WAL for pageservers, standbys, and proposers that recover.
//!
//! The receiving and the sending side run in one task. Either one's end stops the other; what both have
//! to say is joined. The sender waits for the commit LSN to advance and never polls for it; when there is little to send it
//! lets a moment pass first.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use bytes::BytesMut;
use postgres_backend::{Connection, CopyEnd, CopyReader, CopyWriter, QueryError};
use pq_proto::replication::{ReplicationMessage, StandbyMessage, XLOG_DATA_BYTES_MAX, timestamp};
use safekeeper_api::protocol::{HotStandbyFeedback, PageserverFeedback};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tracing::info;
use utils::lsn::Lsn;

use crate::offload::Archive;
use crate::timeline::{ReaderSlot, Timeline, TimelineError};
use crate::wal_storage::{WalDir, WalReader};

/// A receiver that has had nothing for this long is told that the sender is alive.
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(1);

/// Little new WAL is sent this much later, with what has come by then. A safekeeper knows of a commit when it answers the
/// proposer on the next one, which is then told to its client: receivers that were woken in the same moment would have the
/// CPUs that this needs, once for every commit.
const GATHER_TIME: Duration = Duration::from_millis(1);
/// As much as this, in bytes, is sent at once.
const GATHER_BYTES: u64 = 64 * 1024;

/// What the client asks for.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// First position wanted.
    pub start: Lsn,
    /// What the client calls itself.
    pub application_name: Option<String>,
    /// Whether it is a proposer that wants WAL which may not be committed yet.
    pub is_recovery: bool,
}

/// The WAL asked for cannot be streamed.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("state uninitialized, no data to read")]
    Uninitialized,
    #[error("Requested streaming from {start}, which is before the start of the timeline {timeline_start}")]
    BeforeTimeline { start: Lsn, timeline_start: Lsn },
    #[error(
        "WAL segment is not found: WAL from {start} is not on this safekeeper, whose WAL starts at {local_start}"
    )]
    BeforeLocalStart { start: Lsn, local_start: Lsn },
}

fn check_start(timeline: &Timeline, start: Lsn) -> Result<(), StartError> {
    let snapshot = timeline.snapshot();
    let timeline_start = snapshot.timeline_start_lsn;
    let segment_size = snapshot.server.wal_seg_size as usize;
    if !timeline_start.is_valid() || segment_size == 0 {
        return Err(StartError::Uninitialized);
    }
    // Before a start in the middle of a segment there are page headers, for standbys, which always ask
    // from the start of the segment.
    if start < timeline_start.segment_start(segment_size) {
        return Err(StartError::BeforeTimeline {
            start,
            timeline_start,
        });
    }
    let is_archived = timeline.conf().remote_storage.is_some() && start < snapshot.positions.backup_lsn;
    if !snapshot.reaches_back_to(start) && !is_archived {
        let local_start = snapshot.local_start_lsn;
        return Err(StartError::BeforeLocalStart { start, local_start });
    }
    Ok(())
}

/// Streams WAL until either side ends it.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin + Send>(
    connection: &mut Connection<S>,
    timeline: &Arc<Timeline>,
    request: Request,
) -> Result<(), QueryError> {
    timeline.open().await.map_err(anyhow::Error::new)?;
    let (mut reader, writer) = connection.copy_both().await?;
    check_start(timeline, request.start).map_err(anyhow::Error::new)?;
    info!("starting replication from {}", request.start);
    let slot = timeline.readers().register();
    let mut sender = Sender {
        timeline,
        slot: &slot,
        wal: timeline.read_wal(request.start),
        archive: None,
        commit: timeline.watch_commit(),
        // A proposer recovers up to what is durable now; all that comes later is its own.
        recovery_end: request.is_recovery.then(|| timeline.snapshot().flush_lsn),
        application_name: request.application_name,
        writer,
        buffer: BytesMut::new(),
        checked_segno: None,
    };
    let end = tokio::select! {
        end = receive(&mut reader, timeline, &slot) => end,
        end = sender.send_all() => end,
        () = timeline.cancelled().cancelled() => {
            Err(anyhow::Error::new(TimelineError::Cancelled(timeline.id())).into())
        }
    };
    if end.is_ok() {
        sender.writer.done();
        connection.put_complete("COPY 0");
    }
    end
}

/// There is new WAL behind `end`: waits until it is much, or [`GATHER_TIME`] is over.
async fn gather(commit: &mut watch::Receiver<Lsn>, end: Lsn) {
    let is_much = |commit: &Lsn| commit.0.saturating_sub(end.0) >= GATHER_BYTES;
    // However this ends, what there is can be sent.
    let _ = tokio::time::timeout(GATHER_TIME, commit.wait_for(is_much)).await;
}

/// Takes the receiver's reports until it ends the stream.
async fn receive<S: AsyncRead + Unpin>(
    reader: &mut CopyReader<'_, S>,
    timeline: &Arc<Timeline>,
    slot: &ReaderSlot,
) -> Result<(), QueryError> {
    loop {
        let payload = match reader.next().await {
            Ok(payload) => payload,
            Err(CopyEnd::Done) => return Ok(()),
            Err(end) => return Err(end.into()),
        };
        match StandbyMessage::parse(payload).context("malformed message of receiver")? {
            StandbyMessage::StatusUpdate { .. } => {}
            StandbyMessage::HotStandbyFeedback {
                time,
                xmin,
                catalog_xmin,
            } => slot.report(|reader| {
                reader.standby = HotStandbyFeedback {
                    ts: time,
                    xmin,
                    catalog_xmin,
                };
            }),
            StandbyMessage::PageserverFeedback(raw) => {
                let feedback = PageserverFeedback::decode(&raw).context("malformed pageserver feedback")?;
                let applied = match feedback.ps_applylsn {
                    // "Not known": not to be taken for "everything".
                    Lsn::MAX => Lsn::INVALID,
                    known => known,
                };
                slot.report(|reader| {
                    reader.pageserver = Some(feedback);
                    reader.remote_consistent_lsn = reader.remote_consistent_lsn.max(applied);
                });
                let advanced = timeline.advance_remote_consistent_lsn(applied);
                advanced.await.map_err(anyhow::Error::new)?;
            }
        }
    }
}

struct Sender<'a, S> {
    timeline: &'a Timeline,
    slot: &'a ReaderSlot,
    wal: WalReader,
    /// Where reading stands in object storage, while it is in a segment that is not on disk.
    archive: Option<Archive>,
    commit: watch::Receiver<Lsn>,
    recovery_end: Option<Lsn>,
    application_name: Option<String>,
    writer: CopyWriter<'a, S>,
    buffer: BytesMut,
    checked_segno: Option<u64>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sender<'_, S> {
    /// Sends WAL as it becomes final. Ends only with an error, of which [`QueryError::StreamEnd`] is the
    /// regular one.
    async fn send_all(&mut self) -> Result<(), QueryError> {
        loop {
            let end = match self.recovery_end {
                Some(end) => end,
                None => *self.commit.borrow_and_update(),
            };
            if self.wal.position() < end {
                self.send_chunk(end).await?;
            } else if self.recovery_end.is_some() {
                return Err(QueryError::StreamEnd(format!(
                    "ending streaming to walproposer at {}, recovery finished",
                    self.wal.position()
                )));
            } else {
                self.wait(end).await?;
            }
        }
    }

    async fn send_chunk(&mut self, end: Lsn) -> Result<(), QueryError> {
        let start = self.wal.position();
        self.buffer.clear();
        if let Some(archive) = self.archive_at(start) {
            let piece = archive
                .next(XLOG_DATA_BYTES_MAX)
                .await
                .map_err(anyhow::Error::new)?;
            self.buffer.extend_from_slice(&piece);
            self.wal.seek(start + piece.len() as u64);
        } else {
            self.read_local(start, end)?;
        }
        let message = ReplicationMessage::XLogData {
            start,
            end,
            time: timestamp(SystemTime::now()),
            wal: self.buffer.split().freeze(),
        };
        self.writer.put(|out| message.encode(out));
        self.writer.flush().await?;
        let position = self.wal.position();
        self.slot.update(|reader| reader.last_received_lsn = position);
        Ok(())
    }

    /// Where to read `start` in object storage, if it is there and not on disk.
    fn archive_at(&mut self, start: Lsn) -> Option<&mut Archive> {
        let dir = self.timeline.wal_dir();
        let is_in_segment = start.segment_offset(dir.segment_size) != 0;
        let goes_on = |archive: &Archive| is_in_segment && archive.position() == start;
        if !self.archive.as_ref().is_some_and(goes_on) {
            self.archive = self.open_archive(dir, start);
        }
        self.archive.as_mut()
    }

    fn open_archive(&self, dir: WalDir, start: Lsn) -> Option<Archive> {
        let storage = self.timeline.conf().remote_storage.as_ref()?;
        let segno = start.segment_number(dir.segment_size);
        if self.checked_segno == Some(segno) {
            return None;
        }
        let snapshot = self.timeline.snapshot();
        let is_offloaded = start < snapshot.positions.backup_lsn;
        if !is_offloaded || (snapshot.reaches_back_to(start) && dir.has_segment(segno)) {
            return None;
        }
        info!("reading WAL from {start} on from object storage");
        Some(Archive::new(storage.clone(), self.timeline.id(), dir, start))
    }

    fn read_local(&mut self, start: Lsn, end: Lsn) -> Result<(), QueryError> {
        self.check_soundness(start)?;
        let read = match self.wal.try_read(end, XLOG_DATA_BYTES_MAX, &mut self.buffer) {
            Ok(None) => tokio::task::block_in_place(|| {
                self.wal
                    .read(end, XLOG_DATA_BYTES_MAX, &mut self.buffer)
                    .map(Some)
            }),
            done => done,
        };
        read.map_err(anyhow::Error::new)?;
        Ok(())
    }

    /// Checks the WAL at `start` when it is the first of a segment that is sent.
    fn check_soundness(&mut self, start: Lsn) -> Result<(), QueryError> {
        let segno = start.segment_number(self.timeline.wal_dir().segment_size);
        if self.checked_segno == Some(segno) {
            return Ok(());
        }
        tokio::task::block_in_place(|| self.timeline.check_segment(start)).map_err(anyhow::Error::new)?;
        self.checked_segno = Some(segno);
        Ok(())
    }

    /// Waits for more WAL than up to `end`; after a while tells the receiver how things are, or sends it away if nothing
    /// will come.
    async fn wait(&mut self, end: Lsn) -> Result<(), QueryError> {
        let changed = tokio::time::timeout(KEEPALIVE_PERIOD, self.commit.changed()).await;
        if changed.is_ok() {
            gather(&mut self.commit, end).await;
            return Ok(());
        }
        if self
            .timeline
            .is_finished_for(self.slot.get().remote_consistent_lsn)
        {
            return Err(QueryError::StreamEnd(format!(
                "ending streaming to {:?} at {}, receiver is caughtup and there is no computes",
                self.application_name,
                self.wal.position()
            )));
        }
        let keepalive = ReplicationMessage::Keepalive {
            end,
            time: timestamp(SystemTime::now()),
            reply_requested: true,
        };
        self.writer.put(|out| keepalive.encode(out));
        self.writer.flush().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Instant;

    use futures::FutureExt;

    use super::*;

    const END: Lsn = Lsn(0x100_0000);

    #[tokio::test]
    async fn little_wal_is_gathered_and_much_is_not() {
        let (commit, mut receiver) = watch::channel(END + 1);
        let begin = Instant::now();
        gather(&mut receiver, END).await;
        assert!(begin.elapsed() >= GATHER_TIME);

        let mut other = commit.subscribe();
        let mut gathering = pin!(gather(&mut other, END));
        assert_eq!(gathering.as_mut().now_or_never(), None);
        commit.send_replace(END + (GATHER_BYTES - 1));
        assert_eq!(gathering.as_mut().now_or_never(), None, "still little");
        commit.send_replace(END + GATHER_BYTES);
        assert_eq!(gathering.as_mut().now_or_never(), Some(()));

        // Already much.
        assert_eq!(gather(&mut receiver, END).now_or_never(), Some(()));
    }
}
