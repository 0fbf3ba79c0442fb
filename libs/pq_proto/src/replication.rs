//! What the `CopyData` messages of physical replication carry, in both directions.
//!
//! All integers are big-endian; times are microseconds since 2000-01-01 UTC. `w`, `k`, `r` and `h`
//! are PostgreSQL's own, `z` is the pageserver's feedback to a safekeeper.

use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use utils::lsn::Lsn;

use crate::ProtocolError;
use crate::input::Input;

/// Most bytes of WAL one `XLogData` carries.
pub const XLOG_DATA_BYTES_MAX: usize = 128 * 1024;

/// From the Unix epoch to the one of PostgreSQL's timestamps.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// `time` as PostgreSQL counts it: microseconds since 2000-01-01 UTC.
pub fn timestamp(time: SystemTime) -> i64 {
    let epoch = SystemTime::UNIX_EPOCH + POSTGRES_EPOCH;
    let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    match time.duration_since(epoch) {
        Ok(after) => micros(after),
        Err(before) => -micros(before.duration()),
    }
}

/// Microseconds since the Unix epoch of a PostgreSQL timestamp.
pub fn unix_micros(timestamp: i64) -> i64 {
    timestamp.saturating_add(POSTGRES_EPOCH.as_micros() as i64)
}

/// From the sender of WAL to its receiver.
#[derive(Debug, Clone, Eq, PartialEq)]
pub enum ReplicationMessage {
    /// `w`: WAL.
    XLogData {
        /// Position of the first byte of `wal`.
        start: Lsn,
        /// How far WAL is available on the sender.
        end: Lsn,
        /// When it was sent.
        time: i64,
        /// The bytes.
        wal: Bytes,
    },
    /// `k`: the sender is alive.
    Keepalive {
        /// How far WAL is available on the sender.
        end: Lsn,
        /// When it was sent.
        time: i64,
        /// Whether the receiver must answer at once.
        reply_requested: bool,
    },
}

impl ReplicationMessage {
    /// Parses the payload of a `CopyData`.
    pub fn parse(payload: Bytes) -> Result<Self, ProtocolError> {
        let mut input = Input::new("replication", payload);
        let message = match input.u8()? {
            b'w' => ReplicationMessage::XLogData {
                start: Lsn(input.u64()?),
                end: Lsn(input.u64()?),
                time: input.i64()?,
                wal: input.rest(),
            },
            b'k' => ReplicationMessage::Keepalive {
                end: Lsn(input.u64()?),
                time: input.i64()?,
                reply_requested: input.u8()? != 0,
            },
            other => return Err(ProtocolError::UnknownType(other)),
        };
        input.done(message)
    }

    /// Appends the payload of a `CopyData`.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            ReplicationMessage::XLogData {
                start,
                end,
                time,
                wal,
            } => {
                out.put_u8(b'w');
                out.put_u64(start.0);
                out.put_u64(end.0);
                out.put_i64(*time);
                out.put_slice(wal);
            }
            ReplicationMessage::Keepalive {
                end,
                time,
                reply_requested,
            } => {
                out.put_u8(b'k');
                out.put_u64(end.0);
                out.put_i64(*time);
                out.put_u8(u8::from(*reply_requested));
            }
        }
    }
}

/// From the receiver of WAL to its sender.
#[derive(Debug, Clone, Eq, PartialEq)]
pub enum StandbyMessage {
    /// `r`: how far the standby has come.
    StatusUpdate {
        /// Received and written.
        write: Lsn,
        /// Durable.
        flush: Lsn,
        /// Applied.
        apply: Lsn,
        /// When it was sent.
        time: i64,
        /// Whether the sender must answer at once.
        reply_requested: bool,
    },
    /// `h`: what the standby's queries still need.
    HotStandbyFeedback {
        /// When it was sent.
        time: i64,
        /// Oldest transaction needed, as the 8 bytes read.
        xmin: u64,
        /// Oldest transaction needed of the catalogs, as the 8 bytes read.
        catalog_xmin: u64,
    },
    /// `z`: a pageserver's feedback in its own encoding.
    PageserverFeedback(Bytes),
}

impl StandbyMessage {
    /// Parses the payload of a `CopyData`.
    pub fn parse(payload: Bytes) -> Result<Self, ProtocolError> {
        let mut input = Input::new("standby", payload);
        let message = match input.u8()? {
            b'r' => StandbyMessage::StatusUpdate {
                write: Lsn(input.u64()?),
                flush: Lsn(input.u64()?),
                apply: Lsn(input.u64()?),
                time: input.i64()?,
                reply_requested: input.u8()? != 0,
            },
            b'h' => StandbyMessage::HotStandbyFeedback {
                time: input.i64()?,
                xmin: input.u64()?,
                catalog_xmin: input.u64()?,
            },
            b'z' => {
                let len = input.u64()?;
                if len != input.remaining() as u64 {
                    return Err(input.malformed("feedback length differs from the message's"));
                }
                StandbyMessage::PageserverFeedback(input.rest())
            }
            other => return Err(ProtocolError::UnknownType(other)),
        };
        input.done(message)
    }

    /// Appends the payload of a `CopyData`.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            StandbyMessage::StatusUpdate {
                write,
                flush,
                apply,
                time,
                reply_requested,
            } => {
                out.put_u8(b'r');
                for lsn in [write, flush, apply] {
                    out.put_u64(lsn.0);
                }
                out.put_i64(*time);
                out.put_u8(u8::from(*reply_requested));
            }
            StandbyMessage::HotStandbyFeedback {
                time,
                xmin,
                catalog_xmin,
            } => {
                out.put_u8(b'h');
                out.put_i64(*time);
                out.put_u64(*xmin);
                out.put_u64(*catalog_xmin);
            }
            StandbyMessage::PageserverFeedback(feedback) => {
                out.put_u8(b'z');
                out.put_u64(feedback.len() as u64);
                out.put_slice(feedback);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn epochs() {
        let epoch = SystemTime::UNIX_EPOCH + POSTGRES_EPOCH;
        assert_eq!(timestamp(epoch + Duration::from_micros(5)), 5);
        assert_eq!(timestamp(epoch - Duration::from_micros(5)), -5);
        assert_eq!(unix_micros(5), 946_684_800_000_005);
    }

    proptest! {
        #[test]
        fn wal_round_trips(start in any::<u64>(), end in any::<u64>(), time in any::<i64>(), wal in "[a-z]{0,40}") {
            let messages = [
                ReplicationMessage::XLogData { start: Lsn(start), end: Lsn(end), time, wal: wal.into() },
                ReplicationMessage::Keepalive { end: Lsn(end), time, reply_requested: time % 2 == 0 },
            ];
            for message in messages {
                let mut out = BytesMut::new();
                message.encode(&mut out);
                prop_assert_eq!(ReplicationMessage::parse(out.freeze()), Ok(message));
            }
        }

        #[test]
        fn standby_round_trips(a in any::<u64>(), b in any::<u64>(), time in any::<i64>(), raw in "[a-z]{0,40}") {
            let messages = [
                StandbyMessage::StatusUpdate {
                    write: Lsn(a), flush: Lsn(b), apply: Lsn(a), time, reply_requested: time % 2 == 0,
                },
                StandbyMessage::HotStandbyFeedback { time, xmin: a, catalog_xmin: b },
                StandbyMessage::PageserverFeedback(raw.into()),
            ];
            for message in messages {
                let mut out = BytesMut::new();
                message.encode(&mut out);
                let raw = out.freeze();
                prop_assert_eq!(StandbyMessage::parse(raw.clone()), Ok(message));
                for len in 0..raw.len() {
                    prop_assert!(StandbyMessage::parse(raw.slice(..len)).is_err());
                }
            }
        }

        #[test]
        fn random_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = ReplicationMessage::parse(Bytes::from(raw.clone()));
            let _ = StandbyMessage::parse(Bytes::from(raw));
        }
    }
}
