//! What is stored under a key at an LSN: a whole value, or a change to the value before it.
//!
//! The binary form is the documented one (storage formats, section 3.3): fixed-width big-endian
//! integers, `u32` variant numbers, `u64` lengths in front of byte strings and sequences.

use std::borrow::Cow;

use bytes::{Buf, BufMut, Bytes};

/// One version of a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Value {
    /// The value itself: a page of 8192 bytes, or whatever the key's kind holds.
    Image(Bytes),
    /// A change to be applied to the version before.
    WalRecord(WalRecord),
}

/// A change to one page.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum WalRecord {
    /// A record as it stands in the WAL: header and data, CRC included, page headers removed.
    Postgres {
        /// Whether the record makes the page from nothing (a full-page image, or an initialising
        /// record), so that no older version is needed.
        will_init: bool,
        /// The record.
        record: Bytes,
    },
    /// A heap record cleared bits of this visibility map page.
    ClearVisibilityMapFlags {
        /// Heap block whose bits are cleared: the one the new tuple went to.
        new_heap_block: Option<u32>,
        /// Heap block whose bits are cleared: the one the old tuple was on.
        old_heap_block: Option<u32>,
        /// Which bits (`VISIBILITYMAP_VALID_BITS`).
        flags: u8,
    },
    /// Transactions of this clog page committed.
    ClogSetCommitted {
        /// Transaction and subtransactions, all on this page.
        xids: Vec<u32>,
        /// Commit time, microseconds since 2000-01-01.
        timestamp: i64,
    },
    /// Transactions of this clog page aborted.
    ClogSetAborted {
        /// Transaction and subtransactions, all on this page.
        xids: Vec<u32>,
    },
    /// A multixact was created whose offset stands on this page.
    MultixactOffsetCreate {
        /// The multixact.
        multi: u32,
        /// Where its members start.
        offset: u32,
    },
    /// A multixact was created whose members, or some of them, stand on this page.
    MultixactMembersCreate {
        /// Offset of the first of `members`.
        offset: u32,
        /// Transaction and `MultiXactStatus` of each member.
        members: Vec<(u32, u32)>,
    },
}

/// A [`Value`] that borrows the bytes it was read from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ValueRef<'a> {
    /// As [`Value::Image`].
    Image(&'a [u8]),
    /// As [`Value::WalRecord`].
    WalRecord(WalRecordRef<'a>),
}

/// A [`WalRecord`] that borrows what is large or common.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum WalRecordRef<'a> {
    /// As [`WalRecord::Postgres`].
    Postgres {
        /// Whether no older version is needed.
        will_init: bool,
        /// The record.
        record: &'a [u8],
    },
    /// Any other.
    Special(Cow<'a, WalRecord>),
}

/// The bytes are not a [`Value`].
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum DecodeValueError {
    /// The bytes end before the value does.
    #[error("value ends {missing} bytes too early")]
    Truncated {
        /// Bytes that were still expected.
        missing: u64,
    },
    /// Bytes are left over.
    #[error("{0} bytes follow the value")]
    TrailingBytes(usize),
    /// No variant has this number.
    #[error("unknown {what} number {number}")]
    UnknownVariant {
        /// Which enumeration.
        what: &'static str,
        /// The number.
        number: u32,
    },
}

impl Value {
    /// Whether no older version of the key is needed to know the value at this one.
    pub fn will_init(&self) -> bool {
        match self {
            Value::Image(_) => true,
            Value::WalRecord(WalRecord::Postgres { will_init, .. }) => *will_init,
            Value::WalRecord(_) => false,
        }
    }

    /// Appends the binary form to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::Image(page) => {
                out.put_u32(0);
                put_bytes(out, page);
            }
            Value::WalRecord(record) => {
                out.put_u32(1);
                record.encode(out);
            }
        }
    }

    /// Reads the binary form; a page or record it holds shares memory with `raw`.
    pub fn decode(raw: Bytes) -> Result<Self, DecodeValueError> {
        let mut input = Input(raw);
        let value = match input.u32()? {
            0 => Value::Image(input.bytes()?),
            1 => Value::WalRecord(WalRecord::decode(&mut input)?),
            number => {
                return Err(DecodeValueError::UnknownVariant {
                    what: "value",
                    number,
                });
            }
        };
        match input.0.len() {
            0 => Ok(value),
            left => Err(DecodeValueError::TrailingBytes(left)),
        }
    }
}

impl WalRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            WalRecord::Postgres { will_init, record } => {
                out.put_u32(0);
                out.put_u8(u8::from(*will_init));
                put_bytes(out, record);
            }
            WalRecord::ClearVisibilityMapFlags {
                new_heap_block,
                old_heap_block,
                flags,
            } => {
                out.put_u32(1);
                put_option(out, *new_heap_block);
                put_option(out, *old_heap_block);
                out.put_u8(*flags);
            }
            WalRecord::ClogSetCommitted { xids, timestamp } => {
                out.put_u32(2);
                put_xids(out, xids);
                out.put_i64(*timestamp);
            }
            WalRecord::ClogSetAborted { xids } => {
                out.put_u32(3);
                put_xids(out, xids);
            }
            WalRecord::MultixactOffsetCreate { multi, offset } => {
                out.put_u32(4);
                out.put_u32(*multi);
                out.put_u32(*offset);
            }
            WalRecord::MultixactMembersCreate { offset, members } => {
                out.put_u32(5);
                out.put_u32(*offset);
                out.put_u64(members.len() as u64);
                for (xid, status) in members {
                    out.put_u32(*xid);
                    out.put_u32(*status);
                }
            }
        }
    }

    fn decode(input: &mut Input) -> Result<Self, DecodeValueError> {
        Ok(match input.u32()? {
            0 => WalRecord::Postgres {
                will_init: input.flag()?,
                record: input.bytes()?,
            },
            1 => WalRecord::ClearVisibilityMapFlags {
                new_heap_block: input.option()?,
                old_heap_block: input.option()?,
                flags: input.u8()?,
            },
            2 => WalRecord::ClogSetCommitted {
                xids: input.xids()?,
                timestamp: input.u64()? as i64,
            },
            3 => WalRecord::ClogSetAborted { xids: input.xids()? },
            4 => WalRecord::MultixactOffsetCreate {
                multi: input.u32()?,
                offset: input.u32()?,
            },
            5 => {
                let offset = input.u32()?;
                let count = input.count(8)?;
                let mut members = Vec::with_capacity(count);
                for _ in 0..count {
                    members.push((input.u32()?, input.u32()?));
                }
                WalRecord::MultixactMembersCreate { offset, members }
            }
            number => {
                return Err(DecodeValueError::UnknownVariant {
                    what: "WAL record",
                    number,
                });
            }
        })
    }
}

impl<'a> ValueRef<'a> {
    /// Reads the binary form, as [`Value::decode`] does.
    #[inline]
    pub fn decode(raw: &'a [u8]) -> Result<Self, DecodeValueError> {
        if let Some(value) = Self::in_place(raw) {
            return Ok(value);
        }
        match Value::decode(Bytes::copy_from_slice(raw))? {
            Value::WalRecord(record @ WalRecord::Postgres { .. }) => {
                unreachable!("{record:?} is read in place")
            }
            Value::WalRecord(record) => Ok(ValueRef::WalRecord(WalRecordRef::Special(Cow::Owned(record)))),
            Value::Image(_) => unreachable!("images are read in place"),
        }
    }

    /// Images and PostgreSQL's records; nothing else, and nothing malformed.
    #[inline]
    fn in_place(raw: &'a [u8]) -> Option<Self> {
        let (kind, rest) = raw.split_first_chunk::<4>()?;
        match u32::from_be_bytes(*kind) {
            0 => sized(rest).map(ValueRef::Image),
            1 => {
                let (variant, rest) = rest.split_first_chunk::<4>()?;
                let (will_init, rest) = rest.split_first()?;
                if u32::from_be_bytes(*variant) != 0 || *will_init > 1 {
                    return None;
                }
                let (will_init, record) = (*will_init == 1, sized(rest)?);
                Some(ValueRef::WalRecord(WalRecordRef::Postgres { will_init, record }))
            }
            _ => None,
        }
    }
}

/// The byte string that `raw` is, after its length.
#[inline]
fn sized(raw: &[u8]) -> Option<&[u8]> {
    let (len, bytes) = raw.split_first_chunk::<8>()?;
    (u64::from_be_bytes(*len) == bytes.len() as u64).then_some(bytes)
}

impl<'a> From<&'a WalRecord> for WalRecordRef<'a> {
    fn from(record: &'a WalRecord) -> Self {
        match record {
            WalRecord::Postgres { will_init, record } => WalRecordRef::Postgres {
                will_init: *will_init,
                record,
            },
            other => WalRecordRef::Special(Cow::Borrowed(other)),
        }
    }
}

impl<'a> From<&'a Value> for ValueRef<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Image(page) => ValueRef::Image(page),
            Value::WalRecord(record) => ValueRef::WalRecord(record.into()),
        }
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u64(bytes.len() as u64);
    out.put_slice(bytes);
}

fn put_option(out: &mut Vec<u8>, value: Option<u32>) {
    out.put_u8(u8::from(value.is_some()));
    if let Some(value) = value {
        out.put_u32(value);
    }
}

fn put_xids(out: &mut Vec<u8>, xids: &[u32]) {
    out.put_u64(xids.len() as u64);
    for xid in xids {
        out.put_u32(*xid);
    }
}

/// The rest of a binary form; every read checks that the bytes are there.
struct Input(Bytes);

impl Input {
    fn need(&self, bytes: u64) -> Result<(), DecodeValueError> {
        match bytes.checked_sub(self.0.len() as u64) {
            None | Some(0) => Ok(()),
            Some(missing) => Err(DecodeValueError::Truncated { missing }),
        }
    }

    fn u8(&mut self) -> Result<u8, DecodeValueError> {
        self.need(1)?;
        Ok(self.0.get_u8())
    }

    fn u32(&mut self) -> Result<u32, DecodeValueError> {
        self.need(4)?;
        Ok(self.0.get_u32())
    }

    fn u64(&mut self) -> Result<u64, DecodeValueError> {
        self.need(8)?;
        Ok(self.0.get_u64())
    }

    fn flag(&mut self) -> Result<bool, DecodeValueError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeValueError::UnknownVariant {
                what: "flag",
                number: other.into(),
            }),
        }
    }

    fn option(&mut self) -> Result<Option<u32>, DecodeValueError> {
        if self.flag()? {
            self.u32().map(Some)
        } else {
            Ok(None)
        }
    }

    fn bytes(&mut self) -> Result<Bytes, DecodeValueError> {
        let len = self.u64()?;
        self.need(len)?;
        Ok(self.0.split_to(len as usize))
    }

    /// Number of items of `item_len` bytes each that follow; checked before anything is allocated.
    fn count(&mut self, item_len: u64) -> Result<usize, DecodeValueError> {
        let count = self.u64()?;
        self.need(count.saturating_mul(item_len))?;
        Ok(count as usize)
    }

    fn xids(&mut self) -> Result<Vec<u32>, DecodeValueError> {
        let count = self.count(4)?;
        (0..count).map(|_| self.u32()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = WalRecord> {
        let raw = proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        let xids = || proptest::collection::vec(any::<u32>(), 0..20);
        let members = proptest::collection::vec(any::<(u32, u32)>(), 0..20);
        prop_oneof![
            (any::<bool>(), raw).prop_map(|(will_init, record)| WalRecord::Postgres { will_init, record }),
            any::<(Option<u32>, Option<u32>, u8)>().prop_map(|(new_heap_block, old_heap_block, flags)| {
                WalRecord::ClearVisibilityMapFlags {
                    new_heap_block,
                    old_heap_block,
                    flags,
                }
            }),
            (xids(), any::<i64>())
                .prop_map(|(xids, timestamp)| WalRecord::ClogSetCommitted { xids, timestamp }),
            xids().prop_map(|xids| WalRecord::ClogSetAborted { xids }),
            any::<(u32, u32)>()
                .prop_map(|(multi, offset)| WalRecord::MultixactOffsetCreate { multi, offset }),
            (any::<u32>(), members)
                .prop_map(|(offset, members)| WalRecord::MultixactMembersCreate { offset, members }),
        ]
    }

    proptest! {
        #[test]
        fn round_trip_and_every_truncation(record in record()) {
            let value = Value::WalRecord(record);
            let mut raw = Vec::new();
            value.encode(&mut raw);
            let raw = Bytes::from(raw);
            prop_assert_eq!(ValueRef::decode(&raw), Ok(ValueRef::from(&value)));
            prop_assert_eq!(Value::decode(raw.clone()), Ok(value));
            for len in 0..raw.len() {
                let error = Value::decode(raw.slice(..len)).unwrap_err();
                prop_assert_eq!(ValueRef::decode(&raw[..len]), Err(error));
            }
        }

        #[test]
        fn an_image_is_read_in_place(page in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut raw = Vec::new();
            Value::Image(Bytes::from(page.clone())).encode(&mut raw);
            prop_assert_eq!(ValueRef::decode(&raw), Ok(ValueRef::Image(&page)));
            raw.push(0);
            prop_assert_eq!(ValueRef::decode(&raw), Err(DecodeValueError::TrailingBytes(1)));
        }

        #[test]
        fn random_bytes_never_panic(raw in proptest::collection::vec(0u8..3, 0..100)) {
            let by_reference = ValueRef::decode(&raw).map(|_| ());
            prop_assert_eq!(by_reference, Value::decode(Bytes::from(raw.clone())).map(|_| ()));
        }
    }
}
