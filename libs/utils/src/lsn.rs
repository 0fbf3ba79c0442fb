//! Log sequence numbers: byte positions in a timeline's WAL.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A position in the WAL, in bytes from the start of the timeline's numbering. 0 is "invalid".
///
/// The text form is PostgreSQL's: two upper-case hexadecimal halves, `16/B374D848`.
#[derive(Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Lsn(pub u64);

/// The text is not an LSN of the form `X/X`.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
#[error("'{0}' is not an LSN (expected two hexadecimal numbers joined by '/', such as 0/16960E8)")]
pub struct ParseLsnError(pub String);

impl Lsn {
    /// "No position": what PostgreSQL calls `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);
    /// The highest position there is.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// Whether this is a real position, that is, not 0.
    pub fn is_valid(self) -> bool {
        self != Self::INVALID
    }

    /// Distance to the earlier position `other` in bytes, `None` if `other` is later.
    pub fn checked_sub(self, other: Lsn) -> Option<u64> {
        self.0.checked_sub(other.0)
    }

    /// Distance to `other` in bytes, 0 if `other` is later.
    pub fn saturating_sub(self, other: Lsn) -> u64 {
        self.0.saturating_sub(other.0)
    }

    /// The position `bytes` further on, `None` past the end of the number range.
    pub fn checked_add(self, bytes: u64) -> Option<Lsn> {
        self.0.checked_add(bytes).map(Lsn)
    }

    /// Number of the segment that holds the byte at this position.
    pub fn segment_number(self, segment_size: usize) -> u64 {
        self.0 / segment_size as u64
    }

    /// Offset of this position in its segment, in bytes.
    pub fn segment_offset(self, segment_size: usize) -> usize {
        (self.0 % segment_size as u64) as usize
    }

    /// First position of the segment that holds this one.
    pub fn segment_start(self, segment_size: usize) -> Lsn {
        Lsn(self.0 - self.0 % segment_size as u64)
    }

    /// Offset of this position in its WAL page of `page_size` bytes.
    pub fn page_offset(self, page_size: usize) -> usize {
        (self.0 % page_size as u64) as usize
    }

    /// The least multiple of 8 that is not below this position: where a record may start.
    pub fn align_up(self) -> Lsn {
        Lsn((self.0 + 7) & !7)
    }

    /// Whether a WAL record may start here as far as alignment goes.
    pub fn is_aligned(self) -> bool {
        self.0.is_multiple_of(8)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseLsnError(text.to_owned());
        let half = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
        };
        let (high, low) = text.trim().split_once('/').ok_or_else(bad)?;
        match (half(high), half(low)) {
            (Some(high), Some(low)) => Ok(Lsn(u64::from(high) << 32 | u64::from(low))),
            _ => Err(bad()),
        }
    }
}

impl From<u64> for Lsn {
    fn from(raw: u64) -> Self {
        Lsn(raw)
    }
}

impl From<Lsn> for u64 {
    fn from(lsn: Lsn) -> Self {
        lsn.0
    }
}

impl Add<u64> for Lsn {
    type Output = Lsn;

    fn add(self, bytes: u64) -> Lsn {
        self.checked_add(bytes)
            .expect("an LSN stays below 2^64 bytes of WAL")
    }
}

impl AddAssign<u64> for Lsn {
    fn add_assign(&mut self, bytes: u64) {
        *self = *self + bytes;
    }
}

impl Sub<Lsn> for Lsn {
    type Output = u64;

    fn sub(self, earlier: Lsn) -> u64 {
        self.checked_sub(earlier)
            .expect("the subtrahend is the earlier LSN")
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An [`Lsn`] that several threads read and advance.
#[derive(Debug, Default)]
pub struct AtomicLsn(AtomicU64);

impl AtomicLsn {
    /// A cell holding `lsn`.
    pub fn new(lsn: Lsn) -> Self {
        AtomicLsn(AtomicU64::new(lsn.0))
    }

    /// The current value; sees everything written before the store it reads.
    pub fn load(&self) -> Lsn {
        Lsn(self.0.load(Ordering::Acquire))
    }

    /// Replaces the value.
    pub fn store(&self, lsn: Lsn) {
        self.0.store(lsn.0, Ordering::Release);
    }

    /// Raises the value to `lsn` if that is higher; returns the value before.
    pub fn fetch_max(&self, lsn: Lsn) -> Lsn {
        Lsn(self.0.fetch_max(lsn.0, Ordering::AcqRel))
    }
}

/// End of the last record of a timeline together with the start of that record.
///
/// `prev` is what the next record must carry in `xl_prev`; 0 means it is not known.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RecordLsn {
    /// End of the last record, exclusive.
    pub last: Lsn,
    /// Start of the last record.
    pub prev: Lsn,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        for (text, raw) in [
            ("0/0", 0),
            ("0/16960E8", 0x16960E8),
            ("16/B374D848", 0x16_B374_D848),
        ] {
            assert_eq!(text.parse::<Lsn>().unwrap(), Lsn(raw));
            assert_eq!(Lsn(raw).to_string(), text);
        }
        assert_eq!(" 0/a ".parse::<Lsn>().unwrap(), Lsn(10));
        for bad in ["", "0", "/", "0/", "0/1/2", "0/+1", "0/123456789", "x/1"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn segments_and_alignment() {
        let lsn = Lsn(0x0100_0009);
        assert_eq!(lsn.segment_number(0x100_0000), 1);
        assert_eq!(lsn.segment_offset(0x100_0000), 9);
        assert_eq!(lsn.segment_start(0x100_0000), Lsn(0x100_0000));
        assert_eq!(lsn.align_up(), Lsn(0x0100_0010));
        assert!(lsn.align_up().is_aligned() && !lsn.is_aligned());
    }
}
