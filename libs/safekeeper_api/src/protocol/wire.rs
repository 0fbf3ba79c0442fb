//! Reading of little-endian fields with every length checked.

use bytes::{Buf, Bytes};
use utils::lsn::Lsn;

use super::{DecodeError, TERM_HISTORY_ENTRIES_MAX, Term, TermHistory, TermHistoryError, TermLsn};

/// Length of the tag in front of every message, in bytes.
pub(super) const TAG_LEN: usize = 8;

/// What has not been read of one message.
pub(super) struct Reader {
    message: &'static str,
    total: usize,
    rest: Bytes,
}

/// The tag of `raw`.
pub(super) fn tag_of(raw: &Bytes) -> Result<u64, DecodeError> {
    let bytes: [u8; TAG_LEN] =
        raw.get(..TAG_LEN)
            .and_then(|tag| tag.try_into().ok())
            .ok_or(DecodeError::Length {
                message: "message",
                want: TAG_LEN,
                got: raw.len(),
            })?;
    Ok(u64::from_le_bytes(bytes))
}

impl Reader {
    /// Starts behind the tag of `raw`, which must be there.
    pub(super) fn after_tag(message: &'static str, mut raw: Bytes) -> Reader {
        let total = raw.len();
        raw.advance(TAG_LEN);
        Reader {
            message,
            total,
            rest: raw,
        }
    }

    /// Bytes not read yet.
    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes, sharing memory with the message.
    pub(super) fn bytes(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        if len > self.rest.len() {
            let read = self.total - self.rest.len();
            return Err(self.wrong_length(read.saturating_add(len)));
        }
        Ok(self.rest.split_to(len))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let bytes = self.bytes(N)?;
        Ok(bytes[..]
            .try_into()
            .expect("bytes() gives as many bytes as asked"))
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_le_bytes)
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.u64().map(Lsn)
    }

    pub(super) fn term(&mut self) -> Result<Term, DecodeError> {
        self.u64().map(Term)
    }

    pub(super) fn id(&mut self) -> Result<[u8; 16], DecodeError> {
        self.array()
    }

    /// A `u64` that is 0 or 1.
    pub(super) fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u64()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Value {
                message: self.message,
                field,
                value,
            }),
        }
    }

    /// `n u32, n x (term u64, lsn u64)`.
    pub(super) fn term_history(&mut self) -> Result<TermHistory, DecodeError> {
        let message = self.message;
        let entries = self.u32()? as usize;
        if entries > TERM_HISTORY_ENTRIES_MAX {
            let source = TermHistoryError::TooLong(entries);
            return Err(DecodeError::History { message, source });
        }
        // Taken as a whole first: memory is reserved only for entries that are really there.
        let mut raw = self.bytes(entries * TermLsn::LEN)?;
        let mut history = Vec::with_capacity(entries);
        while raw.has_remaining() {
            history.push(TermLsn {
                term: Term(raw.get_u64_le()),
                lsn: Lsn(raw.get_u64_le()),
            });
        }
        TermHistory::new(history).map_err(|source| DecodeError::History { message, source })
    }

    /// The message ends here.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            rest => Err(self.wrong_length(self.total - rest)),
        }
    }

    fn wrong_length(&self, want: usize) -> DecodeError {
        DecodeError::Length {
            message: self.message,
            want,
            got: self.total,
        }
    }
}
