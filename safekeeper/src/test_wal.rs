//! WAL for tests: records placed at any position, with the page headers they cross.

use utils::lsn::Lsn;

use postgres_ffi::v15::BLCKSZ;
use postgres_ffi::v15::wal_page::{
    self, LongFields, PageHeader, XLOG_PAGE_MAGIC, XLP_FIRST_IS_CONTRECORD, XLP_LONG_HEADER,
};

const RECORD_HEADER_LEN: usize = 24;
/// System identifier of the cluster that the WAL is of.
pub const SYSTEM_ID: u64 = 7;

/// Segment size of the tests: the smallest PostgreSQL allows.
pub const SEGMENT_SIZE: usize = 1024 * 1024;

/// Writes records one behind the other.
pub struct WalBuilder {
    /// Where the WAL begins.
    pub start: Lsn,
    /// The WAL so far.
    pub bytes: Vec<u8>,
    segment_size: usize,
    previous: Lsn,
}

impl WalBuilder {
    /// WAL that begins at `start`.
    pub fn new(start: Lsn) -> Self {
        Self::with_segment_size(start, SEGMENT_SIZE)
    }

    /// The same for other segment sizes.
    pub fn with_segment_size(start: Lsn, segment_size: usize) -> Self {
        WalBuilder {
            start,
            bytes: Vec::new(),
            segment_size,
            previous: Lsn::INVALID,
        }
    }

    /// End of the WAL so far.
    pub fn end(&self) -> Lsn {
        self.start + self.bytes.len() as u64
    }

    /// The WAL from `begin` to `end`.
    pub fn slice(&self, begin: Lsn, end: Lsn) -> bytes::Bytes {
        let (begin, end) = ((begin - self.start) as usize, (end - self.start) as usize);
        bytes::Bytes::copy_from_slice(&self.bytes[begin..end])
    }

    fn page_header(&mut self, remaining: usize) {
        let at = self.end();
        let is_long = at.segment_offset(self.segment_size) == 0;
        let contrecord = if remaining > 0 { XLP_FIRST_IS_CONTRECORD } else { 0 };
        let long = LongFields {
            system_id: SYSTEM_ID,
            segment_size: self.segment_size as u32,
            page_size: BLCKSZ as u32,
        };
        let header = PageHeader {
            magic: XLOG_PAGE_MAGIC,
            info: contrecord | if is_long { XLP_LONG_HEADER } else { 0 },
            timeline: 1,
            page_addr: at,
            rem_len: remaining as u32,
            long: is_long.then_some(long),
        };
        header.encode(&mut self.bytes);
    }

    fn push(&mut self, mut raw: &[u8]) {
        let mut first = true;
        while !raw.is_empty() {
            let offset = self.end().page_offset(BLCKSZ);
            if offset == 0 {
                self.page_header(if first { 0 } else { raw.len() });
                continue;
            }
            let (chunk, rest) = raw.split_at(raw.len().min(BLCKSZ - offset));
            self.bytes.extend(chunk);
            raw = rest;
            first = false;
        }
    }

    /// Appends a record with `data_len` bytes of data of resource manager `rmid` and `info`; returns
    /// its end.
    pub fn record_of(&mut self, rmid: u8, info: u8, data_len: usize) -> Lsn {
        let mut raw = vec![0; RECORD_HEADER_LEN];
        raw.extend((0..data_len).map(|i| (i * 31 + 7) as u8));
        let length = raw.len() as u32;
        raw[..4].copy_from_slice(&length.to_le_bytes());
        raw[8..16].copy_from_slice(&self.previous.0.to_le_bytes());
        raw[16] = info;
        raw[17] = rmid;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&raw[RECORD_HEADER_LEN..]), &raw[..20]);
        raw[20..24].copy_from_slice(&crc.to_le_bytes());
        self.previous = wal_page::skip_page_header(self.end(), self.segment_size);
        self.push(&raw);
        let padding = self.end().align_up() - self.end();
        self.bytes.extend(vec![0; padding as usize]);
        self.end()
    }

    /// Appends an ordinary record; returns its end.
    pub fn record(&mut self, data_len: usize) -> Lsn {
        self.record_of(21, 0, data_len)
    }

    /// Appends an `XLOG_SWITCH` and the zeros behind it; returns the end of the segment.
    pub fn switch(&mut self) -> Lsn {
        let end = self.record_of(0, 0x40, 0);
        let fill = end.0.next_multiple_of(self.segment_size as u64) - end.0;
        self.bytes.extend(vec![0; fill as usize]);
        self.end()
    }
}
