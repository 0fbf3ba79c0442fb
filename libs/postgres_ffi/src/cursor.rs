//! Reading little-endian fields from bytes that come from outside: every read is checked.

use utils::lsn::Lsn;

use crate::c_struct::CStruct;

/// The bytes end before the field does.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
#[error("{want} bytes wanted, {left} left")]
pub struct Truncated {
    /// Bytes the field takes.
    pub want: usize,
    /// Bytes that are there.
    pub left: usize,
}

/// The part of a byte string that has not been read yet.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte of `raw`.
    #[inline]
    pub fn new(raw: &'a [u8]) -> Self {
        Self { rest: raw }
    }

    /// What has not been read.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Number of bytes not read yet.
    #[inline]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes.
    #[inline]
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Truncated> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Truncated {
            want: len,
            left: self.rest.len(),
        })?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Truncated {
            want: N,
            left: self.rest.len(),
        })?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Passes over `len` bytes, such as padding.
    #[inline]
    pub fn skip(&mut self, len: usize) -> Result<(), Truncated> {
        self.bytes(len).map(|_| ())
    }

    /// An 8-bit number.
    #[inline]
    pub fn u8(&mut self) -> Result<u8, Truncated> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// A 16-bit number.
    #[inline]
    pub fn u16(&mut self) -> Result<u16, Truncated> {
        self.array().map(u16::from_le_bytes)
    }

    /// A 32-bit number.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, Truncated> {
        self.array().map(u32::from_le_bytes)
    }

    /// A signed 32-bit number.
    #[inline]
    pub fn i32(&mut self) -> Result<i32, Truncated> {
        self.array().map(i32::from_le_bytes)
    }

    /// A 64-bit number.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, Truncated> {
        self.array().map(u64::from_le_bytes)
    }

    /// A signed 64-bit number, such as a `TimestampTz`.
    #[inline]
    pub fn i64(&mut self) -> Result<i64, Truncated> {
        self.array().map(i64::from_le_bytes)
    }

    /// A WAL position.
    #[inline]
    pub fn lsn(&mut self) -> Result<Lsn, Truncated> {
        self.u64().map(Lsn)
    }

    /// `count` numbers of 32 bits each, such as a list of transaction ids.
    #[inline]
    pub fn u32s(&mut self, count: usize) -> Result<Vec<u32>, Truncated> {
        let raw = self.bytes(count.saturating_mul(4))?;
        let (words, _) = raw.as_chunks::<4>();
        Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    /// `count` structs in a row, such as a list of relations.
    #[inline]
    pub fn structs<T: CStruct>(&mut self, count: usize) -> Result<Vec<T>, Truncated> {
        let raw = self.bytes(count.saturating_mul(T::LEN))?;
        Ok(raw.chunks_exact(T::LEN).map(T::get).collect())
    }

    /// Bytes up to a terminating zero byte, which is passed over.
    #[inline]
    pub fn c_str(&mut self) -> Result<&'a [u8], Truncated> {
        let len = self.rest.iter().position(|byte| *byte == 0).ok_or(Truncated {
            want: self.rest.len() + 1,
            left: self.rest.len(),
        })?;
        let text = self.bytes(len)?;
        self.skip(1)?;
        Ok(text)
    }
}
