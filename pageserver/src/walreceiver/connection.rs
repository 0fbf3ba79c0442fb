//! One connection to a safekeeper: WAL in, values into the timeline, feedback out.
//!
//! Order: WAL is ingested and committed to the timeline in the order received, record by record; only
//! then is it reported as received. What a broken connection had not committed is received again.

use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use postgres_client::{Config, CopyBothReader, CopyBothWriter, Error as ClientError, Host, Replication};
use postgres_ffi::v15::stream::{StreamError, WalStreamDecoder};
use postgres_ffi::v15::wal_page::skip_page_header;
use postgres_ffi::v15::{BLCKSZ, WAL_SEGMENT_SIZE};
use pq_proto::replication::{self, ReplicationMessage, StandbyMessage};
use safekeeper_api::protocol::PageserverFeedback;
use tracing::debug;
use utils::lsn::{Lsn, RecordLsn};

use super::Source;
use super::status::ReceiverStatus;
use crate::ingest::{IngestError, WalIngest, WriteError};
use crate::metrics::{ConnectionKind, LiveConnection};
use crate::pgdatadir::DataError;
use crate::timeline::{Timeline, TimelineWriter};

/// Port of a safekeeper whose address names none.
const DEFAULT_PORT: u16 = 5432;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The safekeeper is away, went away, or refused. Another one, or another try, may help.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The address published by the safekeeper is not one.
    #[error("'{0}' is not the address of a safekeeper")]
    Address(String),
    /// The stream does not go on where the last message ended.
    #[error("safekeeper sent WAL from {got} on, expected {want}")]
    Gap {
        /// Position received.
        got: Lsn,
        /// Position expected.
        want: Lsn,
    },
    /// What was received is not WAL.
    #[error("received WAL is damaged")]
    Wal(#[from] StreamError),
    /// A record could not be ingested.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// The timeline could not be read.
    #[error("cannot start to ingest")]
    Data(#[from] DataError),
    /// The timeline could not be written.
    #[error("cannot store WAL")]
    Write(#[source] WriteError),
    /// A bug: the place is in the log already.
    #[error("receiving WAL panicked")]
    Panicked,
}

impl ReceiveError {
    /// Whether this is part of normal life: processes start, stop, and have nothing more to send.
    pub fn is_expected(&self) -> bool {
        match self {
            ReceiveError::Client(error) => match error.server_error() {
                // 00000: the planned end of a stream; 57P01: shutdown; 08006: not ready yet.
                Some(notice) => matches!(notice.code.as_str(), "00000" | "57P01" | "08006"),
                None => error.is_disconnect(),
            },
            _ => false,
        }
    }
}

/// Receives until the connection ends. `Ok` means that the safekeeper ended the stream.
pub async fn receive(source: &Source, address: &str, status: &ReceiverStatus) -> Result<(), ReceiveError> {
    let timeline = &source.timeline;
    let config = client_config(source, address)?;
    let mut client = config.connect().await?;
    let identity = client.query("IDENTIFY_SYSTEM").await?;
    debug!("safekeeper has WAL up to {:?}", identity.first("xlogpos"));

    // Only one task writes to a timeline; that of an earlier connection has ended or is about to.
    let writer = timeline.writer().await;
    let last = timeline.last_record();
    let start = skip_page_header(last.last.align_up(), WAL_SEGMENT_SIZE);
    status.connecting(start);
    let _live = LiveConnection::new(ConnectionKind::WalReceiver);
    let (reader, feedback) = client
        .copy_both(&format!("START_REPLICATION PHYSICAL {start}"))
        .await?;
    status.connected(format!("host={} port={}", host_name(&config), config.port));
    let ingest = WalIngest::new(writer, last).await?;
    let mut connection = Connection {
        source,
        status,
        decoder: WalStreamDecoder::new(start),
        ingest,
        feedback,
    };
    connection.run(reader).await
}

fn host_name(config: &Config) -> String {
    match &config.host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    }
}

fn client_config(source: &Source, address: &str) -> Result<Config, ReceiveError> {
    let bad = || ReceiveError::Address(address.to_owned());
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| bad())?),
        None => (address, DEFAULT_PORT),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(bad());
    }
    let id = source.timeline.id();
    let mut config = Config::new(Host::Tcp(host.to_owned()), port, "pageserver");
    config.options = Some(format!(
        "-c timeline_id={} tenant_id={}",
        id.timeline_id, id.tenant_id
    ));
    config.application_name = Some("pageserver".to_owned());
    config.replication = Some(Replication::Physical);
    config.password = source.token.clone();
    config.connect_timeout = Some(source.timeline.config().walreceiver_connect_timeout);
    Ok(config)
}

/// Whether the safekeeper wants to hear from us now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reply {
    Due,
    NotDue,
}

struct Connection<'a> {
    source: &'a Source,
    status: &'a ReceiverStatus,
    decoder: WalStreamDecoder,
    ingest: WalIngest<TimelineWriter>,
    feedback: CopyBothWriter,
}

impl Connection<'_> {
    async fn run(&mut self, mut reader: CopyBothReader) -> Result<(), ReceiveError> {
        while let Some(payload) = reader.next().await? {
            self.status.message_received();
            let mut reply = self.message(payload).await?;
            // What has arrived meanwhile is made visible together with it.
            while let Some(payload) = reader.next_buffered()? {
                if self.message(payload).await? == Reply::Due {
                    reply = Reply::Due;
                }
            }
            self.commit().await?;
            if reply == Reply::Due {
                self.send_feedback().await?;
            }
            self.status.waiting();
        }
        Ok(())
    }

    async fn message(&mut self, payload: Bytes) -> Result<Reply, ReceiveError> {
        match ReplicationMessage::parse(payload).map_err(ClientError::from)? {
            ReplicationMessage::XLogData { start, wal, .. } => {
                let want = self.decoder.fed_lsn();
                if start != want {
                    return Err(ReceiveError::Gap { got: start, want });
                }
                self.status.wal_received(start + wal.len() as u64);
                self.decoder.feed_bytes(wal);
                self.ingest_records().await?;
                Ok(Reply::Due)
            }
            ReplicationMessage::Keepalive { reply_requested, .. } => Ok(match reply_requested {
                true => Reply::Due,
                false => Reply::NotDue,
            }),
        }
    }

    async fn ingest_records(&mut self) -> Result<(), ReceiveError> {
        while let Some((end, record)) = self.decoder.next_record()? {
            let lsn = RecordLsn {
                last: end,
                prev: self.decoder.record_start(),
            };
            self.ingest.ingest_record(lsn, record).await?;
            fail::fail_point!("walreceiver-after-ingest");
        }
        Ok(())
    }

    /// Makes what was ingested visible to readers.
    async fn commit(&mut self) -> Result<(), ReceiveError> {
        self.ingest.commit().await.map_err(ReceiveError::Write)?;
        let grown = self.ingest.take_grown_blocks() * BLCKSZ as i64;
        self.status.logical_size().grow(grown);
        Ok(())
    }

    async fn send_feedback(&mut self) -> Result<(), ReceiveError> {
        let message = feedback(&self.source.timeline, self.status);
        self.feedback.put(|out| message.encode(out));
        Ok(self.feedback.flush().await?)
    }
}

/// How far this pageserver is.
fn feedback(timeline: &Timeline, status: &ReceiverStatus) -> StandbyMessage {
    let feedback = PageserverFeedback {
        current_timeline_size: status.logical_size().approximate(),
        ps_writelsn: timeline.last_record().last,
        ps_flushlsn: timeline.disk_consistent_lsn(),
        ps_applylsn: timeline.remote_consistent_lsn(),
        ps_replytime: replication::timestamp(SystemTime::now()),
    };
    let mut raw = BytesMut::new();
    feedback.encode(&mut raw);
    StandbyMessage::PageserverFeedback(raw.freeze())
}
