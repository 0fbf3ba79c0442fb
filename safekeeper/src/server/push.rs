//! `START_WAL_PUSH`: a proposer's connection.
//!
//! Messages that have arrived together are one batch: what they append is written, flushed once, and
//! answered once. Both directions of the stream are handled in this one task; a reply never waits for
//! more input, and input never waits for a slow reader of replies, within bounds.
//!
//! What readers report travels with the answers. When nothing is appended, the last answer is given again with
//! what is new: a compute that waits for the pageserver writes nothing that could be answered.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::FutureExt;
use postgres_backend::{Connection, CopyEnd, CopyReader, CopyWriter, QueryError};
use safekeeper_api::protocol::{AcceptorMessage, AppendResponse, ProposerGreeting, ProposerMessage};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

use crate::acceptor::{Refusal, ServerInfo};
use crate::timeline::{ComputeGuard, Timeline};
use crate::timeline_map::{NewTimeline, TimelineMap};

/// A batch is closed when it holds this much, in bytes, though more messages may be at hand.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Replies that a proposer may leave unread before its connection is given up.
const UNSENT_REPLIES_MAX: usize = 10_000;
/// Reports of readers wait so long for an answer to travel with.
const REPORT_PERIOD: Duration = Duration::from_millis(10);

/// A message of the proposer that is not one, or that the acceptor refuses.
#[derive(Debug, thiserror::Error)]
enum ProposerError {
    #[error("unexpected message {0} instead of greeting")]
    NoGreeting(&'static str),
    #[error("proposer does not read replies: {UNSENT_REPLIES_MAX} are waiting")]
    RepliesUnread,
}

fn name(message: &ProposerMessage) -> &'static str {
    match message {
        ProposerMessage::Greeting(_) => "ProposerGreeting",
        ProposerMessage::VoteRequest(_) => "VoteRequest",
        ProposerMessage::Elected(_) => "ProposerElected",
        ProposerMessage::Append(_) => "AppendRequest",
    }
}

fn decode(payload: Bytes) -> Result<ProposerMessage, QueryError> {
    let decoded = ProposerMessage::decode(payload);
    Ok(decoded.context("malformed message of proposer")?)
}

/// Serves the proposer until it goes, the timeline is deleted, or one of the two is at fault.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin + Send>(
    connection: &mut Connection<S>,
    map: &TimelineMap,
    id: TenantTimelineId,
) -> Result<(), QueryError> {
    let (mut reader, writer) = connection.copy_both().await?;
    let greeting = match decode(reader.next().await?)? {
        ProposerMessage::Greeting(greeting) => greeting,
        other => return Err(anyhow::Error::new(ProposerError::NoGreeting(name(&other))).into()),
    };
    let timeline = timeline_of(map, id, &greeting).await?;
    let stored = timeline.snapshot().server;
    let known = stored.system_id != 0 && greeting.system_id != 0;
    if known && stored.system_id != greeting.system_id {
        warn!(
            "system identifier of {id} changes from {} to {}",
            stored.system_id, greeting.system_id
        );
    }
    info!(
        "proposer {} connected, system {}",
        greeting.proposer_id, greeting.system_id
    );
    let proposer = Proposer {
        _guard: timeline.connect_compute(),
        reports: timeline.readers().watch_reports(),
        answered: None,
        timeline,
        reader,
        writer,
        unsent_replies: 0,
    };
    proposer.serve(ProposerMessage::Greeting(greeting)).await
}

async fn timeline_of(
    map: &TimelineMap,
    id: TenantTimelineId,
    greeting: &ProposerGreeting,
) -> Result<Arc<Timeline>, QueryError> {
    // The token was checked against the connection's timeline: another must not even be created.
    let refusal = if greeting.tenant_id != id.tenant_id {
        Refusal::Tenant {
            got: greeting.tenant_id,
            expected: id.tenant_id,
        }
    } else if greeting.timeline_id != id.timeline_id {
        Refusal::Timeline {
            got: greeting.timeline_id,
            expected: id.timeline_id,
        }
    } else {
        let new = NewTimeline {
            id,
            server: ServerInfo {
                pg_version: greeting.pg_version,
                system_id: greeting.system_id,
                wal_seg_size: greeting.wal_seg_size,
            },
            commit_lsn: Lsn::INVALID,
            local_start_lsn: Lsn::INVALID,
        };
        return Ok(map.get_or_create(new).await.map_err(anyhow::Error::new)?);
    };
    Err(anyhow::Error::new(refusal).into())
}

struct Proposer<'a, S> {
    timeline: Arc<Timeline>,
    reader: CopyReader<'a, S>,
    writer: CopyWriter<'a, S>,
    unsent_replies: usize,
    /// Changes with what readers report.
    reports: watch::Receiver<()>,
    /// The last answer to an append request, and when it was given.
    answered: Option<(AppendResponse, Instant)>,
    _guard: ComputeGuard,
}

/// Waits until readers have reported something new, and the last answer is some time ago. Does not take note of the
/// report, so it can be dropped and called again.
async fn reported(reports: &watch::Receiver<()>, answered_at: Instant) {
    if reports.clone().changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep_until(answered_at + REPORT_PERIOD).await;
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Proposer<'_, S> {
    async fn serve(mut self, greeting: ProposerMessage) -> Result<(), QueryError> {
        self.process(vec![greeting]).await?;
        let cancelled = self.timeline.cancelled().clone();
        loop {
            let answered_at = self.answered.as_ref().map(|(_, at)| *at);
            // Sending comes first: a reply is not to wait for what arrives meanwhile.
            tokio::select! {
                biased;
                sent = self.writer.flush(), if self.unsent_replies > 0 => {
                    sent?;
                    self.unsent_replies = 0;
                }
                received = self.reader.next() => match received {
                    Ok(payload) => {
                        let result = self.receive_batch(payload).await;
                        // What was acknowledged before the fault is still told.
                        self.check_unsent().and(result)?;
                    }
                    Err(CopyEnd::Done) => return Ok(()),
                    Err(end) => return Err(end.into()),
                },
                () = reported(&self.reports, answered_at.unwrap_or_else(Instant::now)), if answered_at.is_some() => {
                    self.pass_on_reports();
                    self.check_unsent()?;
                }
                () = cancelled.cancelled() => {
                    let gone = crate::timeline::TimelineError::Cancelled(self.timeline.id());
                    return Err(anyhow::Error::new(gone).into());
                }
            }
        }
    }

    fn check_unsent(&self) -> Result<(), QueryError> {
        if self.unsent_replies > UNSENT_REPLIES_MAX {
            return Err(anyhow::Error::new(ProposerError::RepliesUnread).into());
        }
        Ok(())
    }

    /// Processes the message and those that have arrived with it.
    async fn receive_batch(&mut self, first: Bytes) -> Result<(), QueryError> {
        let mut bytes = first.len();
        let mut batch = vec![decode(first)?];
        let mut end = Ok(());
        while bytes < BATCH_BYTES_MAX {
            // Takes what the socket holds, and does not wait for more.
            let Some(received) = self.reader.next().now_or_never() else {
                break;
            };
            let message = received.map_err(QueryError::from).and_then(|payload| {
                bytes += payload.len();
                decode(payload)
            });
            match message {
                Ok(message) => batch.push(message),
                Err(error) => {
                    end = Err(error);
                    break;
                }
            }
        }
        self.process(batch).await.and(end)
    }

    /// Gives the last answer again, with what readers report now. It is as true as it was: positions do not go back
    /// while this proposer's term lasts.
    fn pass_on_reports(&mut self) {
        self.reports.mark_unchanged();
        let feedback = self.timeline.readers().combined();
        let Some((answer, _)) = &self.answered else { return };
        let answer = AppendResponse {
            hs_feedback: feedback.standby,
            pageserver_feedback: feedback.pageserver,
            ..answer.clone()
        };
        self.put(&AcceptorMessage::AppendResponse(answer));
    }

    async fn process(&mut self, batch: Vec<ProposerMessage>) -> Result<(), QueryError> {
        self.reports.mark_unchanged();
        let feedback = self.timeline.readers().combined();
        let processed = self.timeline.with_acceptor(|acceptor, out| {
            let mut result = Ok(());
            for message in batch {
                // An answer to a vote or an election tells positions: nothing may be pending then.
                if !matches!(message, ProposerMessage::Append(_)) {
                    acceptor.finish_batch(feedback, out);
                }
                result = acceptor.step(message, out);
                if result.is_err() {
                    break;
                }
            }
            acceptor.finish_batch(feedback, out);
            result
        });
        let (result, replies) = processed.await.map_err(anyhow::Error::new)?;
        for reply in &replies {
            self.put(reply);
        }
        Ok(result.map_err(anyhow::Error::new)?)
    }

    fn put(&mut self, reply: &AcceptorMessage) {
        if let AcceptorMessage::AppendResponse(answer) = reply {
            self.answered = Some((answer.clone(), Instant::now()));
        }
        self.writer.put(|out| reply.encode(out));
        self.unsent_replies += 1;
    }
}
