//! WAL segment files: their names, and where the valid WAL in them ends.

use std::io;

use utils::lsn::Lsn;

use super::stream::{Checksums, RecordEnds, StreamError};

/// WAL is looked at in pieces of this many bytes.
const READ_LEN: usize = 128 * 1024;

/// A WAL segment: PostgreSQL's timeline and the segment's number.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct SegmentName {
    /// PostgreSQL's timeline, 1 in all our WAL.
    pub timeline: u32,
    /// Segment number: its first position is this times the segment size.
    pub segment: u64,
}

/// Segments that share the middle part of their name.
fn segments_per_id(segment_size: usize) -> u64 {
    (1 << 32) / segment_size as u64
}

impl SegmentName {
    /// The file name: 24 hexadecimal digits.
    pub fn file_name(self, segment_size: usize) -> String {
        let per_id = segments_per_id(segment_size);
        format!(
            "{:08X}{:08X}{:08X}",
            self.timeline,
            self.segment / per_id,
            self.segment % per_id
        )
    }

    /// Reads a file name; `None` if it is not that of a segment. A suffix such as `.partial` must be removed before.
    pub fn parse(name: &str, segment_size: usize) -> Option<Self> {
        let upper_hex = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
        if name.len() != 24 || !name.bytes().all(upper_hex) {
            return None;
        }
        let part = |from: usize| u32::from_str_radix(&name[from..from + 8], 16).ok();
        let per_id = segments_per_id(segment_size);
        let low = u64::from(part(16)?);
        (low < per_id).then_some(())?;
        Some(Self {
            timeline: part(0)?,
            segment: u64::from(part(8)?) * per_id + low,
        })
    }
}

/// Where valid WAL ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EndOfWal {
    /// End of the last whole record; the start of the search if there is none.
    pub end: Lsn,
    /// Start of the last whole record, `None` if there is none.
    pub last_record: Option<Lsn>,
    /// Why the bytes behind it are not a record; `None` if there are not enough of them.
    pub reason: Option<StreamError>,
}

/// Follows records, checksums verified, from the record boundary `start` on, as far as they reach.
///
/// `read` fills the buffer from a position on and gives the number of bytes, 0 if there are none; it may stop early,
/// such as at the end of a segment file. Its errors are passed on.
pub fn find_end_of_wal(
    start: Lsn,
    segment_size: usize,
    mut read: impl FnMut(Lsn, &mut [u8]) -> io::Result<usize>,
) -> io::Result<EndOfWal> {
    let mut ends = RecordEnds::new(start, segment_size, Checksums::Verify);
    let mut buffer = vec![0; READ_LEN];
    let reason = loop {
        let len = read(ends.fed_lsn(), &mut buffer)?;
        if len == 0 {
            break None;
        }
        if let Err(error) = ends.feed(&buffer[..len]) {
            break Some(error);
        }
    };
    Ok(EndOfWal {
        end: ends.last_end(),
        last_record: (ends.last_end() > start).then_some(ends.last_start()),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 16 * 1024 * 1024;

    #[test]
    fn names() {
        let check = |timeline, segment, size, name: &str| {
            let parsed = SegmentName { timeline, segment };
            assert_eq!(parsed.file_name(size), name);
            assert_eq!(SegmentName::parse(name, size), Some(parsed));
        };
        check(1, 1, SIZE, "000000010000000000000001");
        check(1, 256, SIZE, "000000010000000100000000");
        check(0xab, 0x1_0000_00ff, SIZE, "000000AB01000000000000FF");
        check(1, 4096, 1 << 20, "000000010000000100000000");
        for name in [
            "",
            "00000001000000000000000",
            "0000000100000000000000011",
            "00000001000000000000000g",
        ] {
            assert_eq!(SegmentName::parse(name, SIZE), None, "{name}");
        }
        assert_eq!(SegmentName::parse("000000010000000000000100", SIZE), None);
        assert_eq!(SegmentName::parse("00000001000000000000000a", SIZE), None);
        assert_eq!(SegmentName::parse("é0000001000000000000000", SIZE), None);
    }
}
