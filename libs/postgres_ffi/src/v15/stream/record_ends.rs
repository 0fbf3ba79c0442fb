//! Where records end in a stream of WAL, without keeping any of it.

use utils::lsn::Lsn;

use super::super::decode::DecodeError;
use super::super::record::RecordHeader;
use super::StreamError;
use super::scanner::{Outcome, Scanner};
use crate::crc;

/// Whether record checksums are verified.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Checksums {
    /// Every record's.
    Verify,
    /// None: for WAL that was verified before.
    Skip,
}

/// Follows a stream of WAL and knows the end of the last whole record in it: how far a safekeeper may
/// let its flush position go.
#[derive(Debug)]
pub struct RecordEnds {
    scanner: Scanner,
    checksums: Checksums,
    /// Bytes of the record under way that were seen.
    record_got: usize,
    /// CRC32C of those behind the record header.
    body_crc: u32,
    last_start: Lsn,
    last_end: Lsn,
    failure: Option<StreamError>,
}

impl RecordEnds {
    /// For WAL from the record boundary `start` on. The segment size in bytes must be a power of two of at least a
    /// page.
    pub fn new(start: Lsn, segment_size: usize, checksums: Checksums) -> Self {
        Self {
            scanner: Scanner::new(start, segment_size),
            checksums,
            record_got: 0,
            body_crc: 0,
            last_start: start,
            last_end: start,
            failure: None,
        }
    }

    /// Looks at the next bytes of the stream; gives the end of the last whole record seen so far.
    ///
    /// After an error, [`Self::last_end`] is still the end of the valid WAL before it.
    pub fn feed(&mut self, wal: &[u8]) -> Result<Lsn, StreamError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let result = self.follow(wal);
        if let Err(failure) = result {
            self.failure = Some(failure);
        }
        result
    }

    /// End of the last whole record; the start of the stream before the first one.
    pub fn last_end(&self) -> Lsn {
        self.last_end
    }

    /// Start of the last whole record; the start of the stream before the first one.
    pub fn last_start(&self) -> Lsn {
        self.last_start
    }

    /// Position of the byte that is to be fed next.
    pub fn fed_lsn(&self) -> Lsn {
        self.scanner.position()
    }

    fn follow(&mut self, mut wal: &[u8]) -> Result<Lsn, StreamError> {
        while !wal.is_empty() {
            let step = self.scanner.step(wal)?;
            if self.checksums == Checksums::Verify {
                self.add_to_crc(&wal[..step.data]);
            }
            match step.outcome {
                Outcome::More => {}
                Outcome::Abandoned => self.begin_record(),
                Outcome::Done => self.finish_record()?,
            }
            wal = &wal[step.consumed..];
        }
        Ok(self.last_end)
    }

    fn add_to_crc(&mut self, data: &[u8]) {
        let header_missing = RecordHeader::LEN.saturating_sub(self.record_got);
        self.record_got += data.len();
        if let Some(body) = data.get(header_missing..) {
            self.body_crc = crc::append(self.body_crc, body);
        }
    }

    fn begin_record(&mut self) {
        self.record_got = 0;
        self.body_crc = 0;
    }

    fn finish_record(&mut self) -> Result<(), StreamError> {
        let start = self.scanner.last_start();
        if self.checksums == Checksums::Verify {
            self.check_crc(start)?;
        }
        self.begin_record();
        self.last_start = start;
        self.last_end = self.scanner.position();
        Ok(())
    }

    fn check_crc(&self, start: Lsn) -> Result<(), StreamError> {
        let raw = self.scanner.record_header();
        let header = RecordHeader::from_array(raw);
        let computed = crc::append(self.body_crc, &raw[..RecordHeader::CRC_OFFSET]);
        if header.crc == computed {
            return Ok(());
        }
        let problem = DecodeError::Crc {
            stated: header.crc,
            computed,
        };
        Err(StreamError::Crc { start, problem })
    }
}
