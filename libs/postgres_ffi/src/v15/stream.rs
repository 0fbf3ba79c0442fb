//! Records out of a stream of WAL bytes, in whatever pieces it arrives. No IO.
//!
//! A stream starts at a record boundary: any multiple of 8 where a record may start, or the start of a
//! page, where a page header comes first. Page headers, record headers, back links and (where
//! asked for) checksums are verified; after an error the stream cannot go on, and the error is
//! repeated.
//!
//! Positions of a record, as PostgreSQL has them: the *start* is its first byte, behind a page header if
//! there is one; the *end* is the next multiple of 8, or the end of the segment for a segment switch.
//! The end is what redo leaves as `pd_lsn`; it may be the start of a page. A record is reported only
//! when all bytes up to its end, padding included, were seen.
//!
//! Two users of one scanner: [`WalStreamDecoder`] gives the records, [`RecordEnds`] only says where
//! they end, and keeps no WAL.

mod record_ends;
mod scanner;

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use utils::lsn::Lsn;

pub use self::record_ends::{Checksums, RecordEnds};
use self::scanner::{Outcome, Scanner};
use super::WAL_SEGMENT_SIZE;
use super::decode::{DecodeError, check_crc};
use super::wal_page::PageHeaderError;

/// The bytes are not the WAL that has to stand at this position.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
pub enum StreamError {
    /// No record can start there.
    #[error("{0} is not a position where a WAL record may start")]
    Start(Lsn),
    /// The page header is wrong.
    #[error("WAL page at {page}: {problem}")]
    PageHeader {
        /// Start of the page.
        page: Lsn,
        /// What is wrong.
        problem: PageHeaderError,
    },
    /// The page does not go on with the record that runs over its start, or goes on with one where none should.
    #[error("WAL page at {page} continues a record with {got} bytes to come, expected {want}")]
    Continuation {
        /// Start of the page.
        page: Lsn,
        /// Bytes of the record that are missing, 0 at a record boundary.
        want: u32,
        /// What the page says, 0 if it says that it continues no record.
        got: u32,
    },
    /// The length is less than a header's, or beyond what PostgreSQL can write. 0 is what comes behind
    /// the end of valid WAL.
    #[error("WAL record at {start} has length {len}")]
    Length {
        /// Start of the record.
        start: Lsn,
        /// `xl_tot_len` in bytes.
        len: u32,
    },
    /// No resource manager has this number.
    #[error("WAL record at {start} has unknown resource manager {rmid}")]
    ResourceManager {
        /// Start of the record.
        start: Lsn,
        /// Its number.
        rmid: u8,
    },
    /// The record does not point back to the one before it.
    #[error("WAL record at {start} points back to {got}{}", .want.map(|want| format!(", the record before is at {want}")).unwrap_or_default())]
    BackLink {
        /// Start of the record.
        start: Lsn,
        /// Start of the record before; `None` at the start of the stream, where any smaller position will do.
        want: Option<Lsn>,
        /// `xl_prev`.
        got: Lsn,
    },
    /// The checksum is wrong.
    #[error("WAL record at {start}: {problem}")]
    Crc {
        /// Start of the record.
        start: Lsn,
        /// What is wrong.
        problem: DecodeError,
    },
}

/// Cuts a stream of WAL into records, checksums verified.
///
/// A record that lies within one page and one fed piece shares memory with the piece and keeps all of
/// it alive; others are put together.
#[derive(Debug)]
pub struct WalStreamDecoder {
    scanner: Scanner,
    /// What was fed and not looked at yet. The first piece is empty only if there is no other.
    piece: Bytes,
    /// The pieces behind the first.
    behind: VecDeque<Bytes>,
    /// The record being put together, without page headers and padding.
    partial: BytesMut,
    /// The record found last, if it was lent out and has to be passed over before going on.
    lent: Option<Found>,
    last_start: Lsn,
    last_end: Lsn,
    failure: Option<StreamError>,
}

impl WalStreamDecoder {
    /// A decoder for WAL from `start` on, in segments of 16 MiB.
    pub fn new(start: Lsn) -> Self {
        Self::with_segment_size(start, WAL_SEGMENT_SIZE)
    }

    /// A decoder for WAL from `start` on. The segment size in bytes must be a power of two of at least a page.
    pub fn with_segment_size(start: Lsn, segment_size: usize) -> Self {
        Self {
            scanner: Scanner::new(start, segment_size),
            piece: Bytes::new(),
            behind: VecDeque::new(),
            partial: BytesMut::new(),
            lent: None,
            last_start: start,
            last_end: start,
            failure: None,
        }
    }

    /// Takes the next bytes of the stream, by copy.
    pub fn feed(&mut self, wal: &[u8]) {
        self.feed_bytes(Bytes::copy_from_slice(wal));
    }

    /// Takes the next bytes of the stream.
    pub fn feed_bytes(&mut self, wal: Bytes) {
        if self.piece.is_empty() {
            self.piece = wal;
        } else if !wal.is_empty() {
            self.behind.push_back(wal);
        }
    }

    /// Position of the byte that is to be fed next.
    pub fn fed_lsn(&self) -> Lsn {
        let held = self.piece.len() + self.behind.iter().map(Bytes::len).sum::<usize>();
        let scanned = match self.lent {
            Some(Found::InPiece { consumed, .. }) => consumed,
            _ => 0,
        };
        Lsn(self.scanner.position().0 + (held - scanned) as u64)
    }

    /// End of the record returned last; the start of the stream before the first one.
    pub fn decoded_lsn(&self) -> Lsn {
        self.last_end
    }

    /// Start of the record returned last; the start of the stream before the first one.
    pub fn record_start(&self) -> Lsn {
        self.last_start
    }

    /// The next whole record: its end, and its bytes without page headers. `None` if more must be fed.
    pub fn next_record(&mut self) -> Result<Option<(Lsn, Bytes)>, StreamError> {
        self.find()?;
        let Some(found) = self.lent.take() else {
            return Ok(None);
        };
        let record = match found {
            Found::InPiece { data, consumed } => {
                let mut record = self.piece.split_to(consumed);
                record.truncate(data);
                self.next_piece_if_empty();
                record
            }
            Found::Gathered => self.partial.split().freeze(),
        };
        Ok(Some((self.last_end, record)))
    }

    /// Goes on to the next whole record, which [`Self::record`] then lends; gives its end. Cheaper than
    /// [`Self::next_record`]: a record within one page and one fed piece is not copied, and nothing is counted.
    #[inline]
    pub fn seek_record(&mut self) -> Result<Option<Lsn>, StreamError> {
        self.find()?;
        Ok(self.lent.map(|_| self.last_end))
    }

    /// The record that [`Self::seek_record`] went to, without page headers; empty if it did not go to any.
    #[inline]
    pub fn record(&self) -> &[u8] {
        match self.lent {
            Some(Found::InPiece { data, .. }) => &self.piece[..data],
            Some(Found::Gathered) => &self.partial,
            None => &[],
        }
    }

    /// Finds the next record, checks it and leaves it in `lent`; leaves nothing there if more must be fed. What is
    /// found is not returned: that would be a copy for each record.
    fn find(&mut self) -> Result<(), StreamError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        match self.lent.take() {
            Some(Found::InPiece { consumed, .. }) => {
                self.piece.advance(consumed);
                self.next_piece_if_empty();
            }
            Some(Found::Gathered) => self.partial.clear(),
            None => {}
        }
        let result = self.advance();
        if let Err(failure) = result {
            self.failure = Some(failure);
        }
        result
    }

    fn advance(&mut self) -> Result<(), StreamError> {
        while !self.piece.is_empty() {
            if let Some(len) = self.scanner.pass_plain_record(&self.piece) {
                return self.found_in_piece(len, len.next_multiple_of(8));
            }
            let step = self.scanner.step(&self.piece)?;
            if step.outcome == Outcome::Done && self.partial.is_empty() {
                return self.found_in_piece(step.data, step.consumed);
            }
            self.partial.extend_from_slice(&self.piece[..step.data]);
            self.piece.advance(step.consumed);
            self.next_piece_if_empty();
            match step.outcome {
                Outcome::More => {}
                Outcome::Abandoned => self.partial.clear(),
                Outcome::Done => {
                    self.last_start = check_record(&self.scanner, &self.partial)?;
                    self.last_end = self.scanner.position();
                    self.lent = Some(Found::Gathered);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The scanner has passed a record of `data` bytes at the start of the piece.
    #[inline]
    fn found_in_piece(&mut self, data: usize, consumed: usize) -> Result<(), StreamError> {
        self.last_start = check_record(&self.scanner, &self.piece[..data])?;
        self.last_end = self.scanner.position();
        self.lent = Some(Found::InPiece { data, consumed });
        Ok(())
    }

    #[inline]
    fn next_piece_if_empty(&mut self) {
        if self.piece.is_empty() {
            self.piece = self.behind.pop_front().unwrap_or_default();
        }
    }
}

/// Where a whole record is.
#[derive(Clone, Copy, Debug)]
enum Found {
    /// At the start of the first piece: its length, and that of what it takes of the piece.
    InPiece { data: usize, consumed: usize },
    /// Put together from parts.
    Gathered,
}

/// Checks the record that the scanner has just passed; gives its start.
fn check_record(scanner: &Scanner, record: &[u8]) -> Result<Lsn, StreamError> {
    let start = scanner.last_start();
    check_crc(record).map_err(|problem| StreamError::Crc { start, problem })?;
    Ok(start)
}
