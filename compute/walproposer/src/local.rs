//! The local PostgreSQL server: we are its synchronous standby.
//!
//! A physical slot keeps WAL until it is committed. What we report as written, flushed and applied is
//! always the commit LSN of the quorum.

use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use postgres_client::{Client, Config, CopyBothReader, CopyBothWriter, Error, Replication};
use pq_proto::replication::{ReplicationMessage, StandbyMessage, timestamp};
use safekeeper_api::protocol::HotStandbyFeedback;
use tokio::time::{Instant, sleep};
use tracing::info;
use utils::lsn::Lsn;

use crate::link::{Link, LinkEvent};

/// Name under which the server knows us, which must stand in `synchronous_standby_names`.
const APPLICATION_NAME: &str = "walproposer";
const SLOT_NAME: &str = "wal_proposer_slot";

/// How long the server may refuse us because it is starting, or because an earlier proposer's
/// connection still holds the slot.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// A server that is shutting down asks for a report again as soon as it has one, until its last WAL is
/// committed. What it knows already is told so often only.
const ANSWER_PERIOD: Duration = Duration::from_millis(100);

const CANNOT_CONNECT_NOW: &str = "57P03";
const OBJECT_IN_USE: &str = "55006";
const DUPLICATE_OBJECT: &str = "42710";

/// What the local server brings.
#[derive(Debug)]
pub enum LocalEvent {
    /// The stream has started.
    Streaming(Lsn),
    /// WAL that follows what was received before.
    Wal(Bytes),
    /// The server has sent everything up to here and says nothing new.
    Keepalive(Lsn),
    /// The server has shut down in good order.
    Ended,
}

/// The server, and how far its stream has come.
pub struct Local {
    config: Config,
    link: Link,
    start: Lsn,
    next: Lsn,
    commit_lsn: Lsn,
    reported_at: Instant,
    /// Whether the server waits for a report that has nothing new.
    answer_due: bool,
}

impl Local {
    /// Connects once to make sure that it is the right server and that it keeps its WAL for us.
    ///
    /// # Errors
    /// The server cannot be reached in time, or is another one.
    pub async fn prepare(connect: &str, system_id: u64) -> Result<Local> {
        let mut config: Config = connect.parse().context("connection string of the local server")?;
        config.application_name = Some(APPLICATION_NAME.to_owned());
        config.replication = Some(Replication::Physical);
        let mut client = connect_when_ready(&config).await?;
        let answer = client.query("IDENTIFY_SYSTEM").await.context("IDENTIFY_SYSTEM")?;
        let found = answer.first("systemid").unwrap_or_default();
        ensure!(
            found == system_id.to_string(),
            "the server at {config} has system id '{found}', expected {system_id}"
        );
        let create = format!("CREATE_REPLICATION_SLOT {SLOT_NAME} PHYSICAL RESERVE_WAL");
        match client.query(&create).await {
            Err(error) if !has_code(&error, DUPLICATE_OBJECT) => {
                return Err(error).context("cannot create the replication slot");
            }
            _ => {}
        }
        Ok(Local {
            config,
            link: Link::Closed,
            start: Lsn::INVALID,
            next: Lsn::INVALID,
            commit_lsn: Lsn::INVALID,
            reported_at: Instant::now(),
            answer_due: false,
        })
    }

    /// Starts to receive WAL from `lsn`.
    pub fn stream_from(&mut self, lsn: Lsn) {
        assert!(matches!(self.link, Link::Closed), "the stream is started once");
        (self.start, self.next) = (lsn, lsn);
        self.link = Link::Connecting(Box::pin(start_replication(self.config.clone(), lsn)));
    }

    /// The next event.
    ///
    /// # Errors
    /// The connection broke, or the server sends something else than the WAL asked for.
    pub fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<LocalEvent>> {
        loop {
            let event = match std::task::ready!(self.link.poll_event(context)) {
                LinkEvent::Connected => {
                    self.report(false);
                    LocalEvent::Streaming(self.start)
                }
                LinkEvent::Ended => LocalEvent::Ended,
                LinkEvent::Failed(error) => {
                    return Poll::Ready(Err(error).context("the local server's stream failed"));
                }
                LinkEvent::Data(data) => match self.on_data(data) {
                    Ok(Some(event)) => event,
                    Ok(None) => continue,
                    Err(error) => return Poll::Ready(Err(error)),
                },
            };
            return Poll::Ready(Ok(event));
        }
    }

    fn on_data(&mut self, data: Bytes) -> Result<Option<LocalEvent>> {
        match ReplicationMessage::parse(data).context("message of the local server")? {
            ReplicationMessage::XLogData { start, wal, .. } => {
                if start != self.next {
                    bail!("the local server sent WAL from {start} instead of {}", self.next);
                }
                self.next += wal.len() as u64;
                Ok((!wal.is_empty()).then_some(LocalEvent::Wal(wal)))
            }
            ReplicationMessage::Keepalive {
                end, reply_requested, ..
            } => {
                self.answer_due |= reply_requested;
                self.answer();
                Ok(Some(LocalEvent::Keepalive(end)))
            }
        }
    }

    /// All WAL before `lsn` is on a quorum.
    pub fn committed(&mut self, lsn: Lsn) {
        assert!(lsn >= self.commit_lsn, "the commit LSN went back");
        self.commit_lsn = lsn;
        self.report(false);
    }

    /// Answers the server if it waits for that and has not been told anything for a while. To be called
    /// now and then.
    pub fn answer(&mut self) {
        if self.answer_due && self.reported_at.elapsed() >= ANSWER_PERIOD {
            self.report(false);
        }
    }

    /// Asks the server to say how far it has sent its WAL.
    pub fn ask_for_keepalive(&mut self) {
        self.report(true);
    }

    /// Tells the server what hot standbys need, so that its vacuum keeps it.
    pub fn hot_standby_feedback(&mut self, feedback: HotStandbyFeedback) {
        // "None" is 0 for the server.
        let known = |xmin: u64| if xmin == u64::MAX { 0 } else { xmin };
        self.put(&StandbyMessage::HotStandbyFeedback {
            time: feedback.ts,
            xmin: known(feedback.xmin),
            catalog_xmin: known(feedback.catalog_xmin),
        });
    }

    fn report(&mut self, reply_requested: bool) {
        (self.reported_at, self.answer_due) = (Instant::now(), false);
        self.put(&StandbyMessage::StatusUpdate {
            write: self.commit_lsn,
            flush: self.commit_lsn,
            apply: self.commit_lsn,
            time: timestamp(SystemTime::now()),
            reply_requested,
        });
    }

    /// Before the stream has started nothing can be told; its start tells the commit LSN.
    fn put(&mut self, message: &StandbyMessage) {
        if self.link.is_open() {
            self.link.put(0, |out| message.encode(out));
        }
    }

    /// Whether the server streams.
    pub fn is_streaming(&self) -> bool {
        self.link.is_open()
    }

    /// Writes what waits; pending if nothing does.
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let flushed = std::task::ready!(self.link.poll_flush(context));
        Poll::Ready(flushed.map(|_| ()).context("cannot report to the local server"))
    }
}

fn has_code(error: &Error, code: &str) -> bool {
    error.server_error().is_some_and(|notice| notice.code == code)
}

/// Connects, with patience while the server is starting.
async fn connect_when_ready(config: &Config) -> Result<Client> {
    let give_up_at = Instant::now() + START_TIMEOUT;
    loop {
        match config.connect().await {
            Ok(client) => return Ok(client),
            Err(error) => {
                let starting = has_code(&error, CANNOT_CONNECT_NOW) || matches!(error, Error::Connect { .. });
                if !starting || Instant::now() > give_up_at {
                    return Err(error).context("cannot connect to the local server");
                }
                sleep(RETRY_PAUSE).await;
            }
        }
    }
}

async fn start_replication(config: Config, lsn: Lsn) -> Result<(CopyBothReader, CopyBothWriter), Error> {
    let command = format!("START_REPLICATION SLOT {SLOT_NAME} PHYSICAL {lsn} TIMELINE 1");
    let give_up_at = Instant::now() + START_TIMEOUT;
    loop {
        match config.connect().await?.copy_both(&command).await {
            // The server has not noticed yet that the proposer before us is gone.
            Err(error) if has_code(&error, OBJECT_IN_USE) && Instant::now() < give_up_at => {
                info!("waiting for the replication slot: {error}");
                sleep(RETRY_PAUSE).await;
            }
            other => return other,
        }
    }
}
