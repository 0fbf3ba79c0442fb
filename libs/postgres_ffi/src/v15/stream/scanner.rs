//! The state machine under both stream readers: follows page headers and record lengths through WAL
//! bytes, one stretch at a time, and keeps nothing but the headers it is in.

use utils::lsn::Lsn;

use super::super::BLCKSZ;
use super::super::record::RecordHeader;
use super::super::rmgr::{RM_LOGICALMSG_ID, RM_MIN_CUSTOM_ID, RM_XLOG_ID, XLOG_SWITCH, XLR_RMGR_INFO_MASK};
use super::super::wal_page::{self, LONG_HEADER_LEN, PageHeader, XLP_FIRST_IS_OVERWRITE_CONTRECORD};
use super::StreamError;

/// Longest record PostgreSQL 15 can read back (it goes into one allocation), in bytes.
const RECORD_LEN_MAX: u32 = 0x3fff_ffff;
/// Highest start position that is believed; keeps all sums far from overflow.
const START_MAX: Lsn = Lsn(1 << 62);

/// What a step came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// The record, or the page header, goes on.
    More,
    /// A record ends with the bytes consumed.
    Done,
    /// The record that was under way never got its rest; another one follows in its place.
    Abandoned,
}

/// What was found at the start of the input.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Step {
    /// Bytes of the input that are dealt with.
    pub consumed: usize,
    /// How many of them, from the first, belong to the record.
    pub data: usize,
    /// What this came to.
    pub outcome: Outcome,
}

/// The first bytes of something, kept until there are enough to make sense of it.
#[derive(Clone, Copy, Debug)]
struct Gathered<const N: usize> {
    raw: [u8; N],
    len: usize,
}

impl<const N: usize> Gathered<N> {
    const EMPTY: Self = Self { raw: [0; N], len: 0 };

    /// Adds what is missing, or as much of it as there is.
    #[inline]
    fn add_up_to(&mut self, available: &[u8]) {
        match available.first_chunk() {
            // Nearly always; a copy of a length that is known takes an instruction or two.
            Some(whole) if self.len == 0 => {
                *self = Self { raw: *whole, len: N };
            }
            _ => self.add(&available[..available.len().min(N - self.len)]),
        }
    }

    fn add(&mut self, more: &[u8]) {
        self.raw[self.len..self.len + more.len()].copy_from_slice(more);
        self.len += more.len();
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Between records.
    Boundary,
    /// Within a record of which `got` bytes were seen.
    Record { got: u32 },
    /// Behind the last byte of a record, passing over what follows up to its end.
    Padding { end: Lsn },
}

#[derive(Debug)]
pub(super) struct Scanner {
    segment_size: usize,
    position: Lsn,
    state: State,
    /// Header of the page that starts at the last page boundary, while it is incomplete.
    page_header: Gathered<LONG_HEADER_LEN>,
    /// Header of the record under way.
    record_header: Gathered<{ RecordHeader::LEN }>,
    /// Start of the record under way, or of the last one.
    start: Lsn,
    /// Start of the last whole record.
    previous: Option<Lsn>,
}

impl Scanner {
    pub(super) fn new(start: Lsn, segment_size: usize) -> Self {
        assert!(
            segment_size.is_power_of_two() && segment_size >= BLCKSZ,
            "segment size of {segment_size} bytes"
        );
        Self {
            segment_size,
            position: start,
            state: State::Boundary,
            page_header: Gathered::EMPTY,
            record_header: Gathered::EMPTY,
            start,
            previous: None,
        }
    }

    /// Position of the next byte.
    pub(super) fn position(&self) -> Lsn {
        self.position
    }

    /// Start of the last whole record, once there was one.
    pub(super) fn last_start(&self) -> Lsn {
        self.start
    }

    /// Header of the last whole record as it stands in the WAL.
    pub(super) fn record_header(&self) -> &[u8; RecordHeader::LEN] {
        &self.record_header.raw
    }

    /// Deals with some bytes at the start of `input`, at least one; `input` must not be empty.
    pub(super) fn step(&mut self, input: &[u8]) -> Result<Step, StreamError> {
        assert!(!input.is_empty(), "a step needs input");
        match self.state {
            State::Padding { end } => Ok(self.pass_padding(end, input.len())),
            _ if self.position.page_offset(BLCKSZ) == 0 || self.page_header.len != 0 => {
                self.read_page_header(input)
            }
            State::Boundary => {
                self.begin_record()?;
                self.read_record(0, input)
            }
            State::Record { got } => self.read_record(got, input),
        }
    }

    /// Passes over the record at the start of `input`, with its padding, if it is one of the plain ones that nearly all are:
    /// whole, within one page, and with nothing that needs a closer look. Gives its length. What is not plain, or not
    /// right, is left to [`Self::step`]. The header of a plain record is not kept for [`Self::record_header`].
    #[inline]
    pub(super) fn pass_plain_record(&mut self, input: &[u8]) -> Option<usize> {
        let State::Boundary = self.state else {
            return None;
        };
        let offset = (self.position.0 % BLCKSZ as u64) as usize;
        let header = RecordHeader::from_array(input.first_chunk()?);
        let len = header.total_len as usize;
        let plain = offset >= LONG_HEADER_LEN
            && (RecordHeader::LEN..=BLCKSZ).contains(&len)
            && len.next_multiple_of(8) <= input.len().min(BLCKSZ - offset)
            && header.rmid <= RM_LOGICALMSG_ID
            && header.rmid != RM_XLOG_ID
            && self.previous == Some(header.prev)
            && self.position <= START_MAX;
        if !plain {
            return None;
        }
        self.start = self.position;
        self.previous = Some(self.position);
        self.advance(len.next_multiple_of(8));
        Some(len)
    }

    fn advance(&mut self, bytes: usize) {
        self.position.0 += bytes as u64;
    }

    fn pass_padding(&mut self, end: Lsn, available: usize) -> Step {
        let consumed = end.saturating_sub(self.position).min(available as u64) as usize;
        self.advance(consumed);
        Step {
            consumed,
            data: 0,
            outcome: self.end_of_padding(end),
        }
    }

    /// Ends the record if all of its padding was seen.
    fn end_of_padding(&mut self, end: Lsn) -> Outcome {
        if self.position < end {
            self.state = State::Padding { end };
            return Outcome::More;
        }
        assert_eq!(self.position, end, "padding overrun");
        self.state = State::Boundary;
        self.previous = Some(self.start);
        Outcome::Done
    }

    fn read_page_header(&mut self, input: &[u8]) -> Result<Step, StreamError> {
        let page = Lsn(self.position.0 - self.page_header.len as u64);
        if page > START_MAX {
            return Err(StreamError::Start(page));
        }
        let len = wal_page::header_len(page, self.segment_size);
        let consumed = (len - self.page_header.len).min(input.len());
        self.page_header.add(&input[..consumed]);
        self.advance(consumed);
        let outcome = if self.page_header.len == len {
            let raw = self.page_header.raw;
            self.page_header = Gathered::EMPTY;
            self.enter_page(page, &raw)?
        } else {
            Outcome::More
        };
        Ok(Step {
            consumed,
            data: 0,
            outcome,
        })
    }

    /// `raw` holds the page's header, with zeros behind a short one.
    fn enter_page(&mut self, page: Lsn, raw: &[u8; LONG_HEADER_LEN]) -> Result<Outcome, StreamError> {
        let header = PageHeader::decode(raw).expect("there is room for either header");
        header
            .check(page, self.segment_size)
            .map_err(|problem| StreamError::PageHeader { page, problem })?;
        let want = match self.state {
            State::Record { .. } if header.info & XLP_FIRST_IS_OVERWRITE_CONTRECORD != 0 => {
                self.state = State::Boundary;
                return Ok(Outcome::Abandoned);
            }
            State::Record { got } => self.record_len()? - got,
            _ => 0,
        };
        let got = if header.is_contrecord() { header.rem_len } else { 0 };
        if got != want {
            return Err(StreamError::Continuation { page, want, got });
        }
        Ok(Outcome::More)
    }

    fn begin_record(&mut self) -> Result<(), StreamError> {
        let offset = self.position.page_offset(BLCKSZ);
        let page = Lsn(self.position.0 - offset as u64);
        let behind_header = offset >= wal_page::header_len(page, self.segment_size);
        if !self.position.is_aligned() || !behind_header || self.position > START_MAX {
            return Err(StreamError::Start(self.position));
        }
        self.start = self.position;
        self.record_header = Gathered::EMPTY;
        Ok(())
    }

    /// Takes bytes of the record, of which `got` were seen: up to the end of its header if that is
    /// incomplete, else up to the end of the page or of the record.
    fn read_record(&mut self, got: u32, input: &[u8]) -> Result<Step, StreamError> {
        let in_page = BLCKSZ - self.position.page_offset(BLCKSZ);
        let available = &input[..input.len().min(in_page)];
        let header_missing = RecordHeader::LEN - self.record_header.len;
        if header_missing > 0 {
            self.record_header.add_up_to(available);
            if available.len() < header_missing {
                return self.take_part_of_header(got, available.len());
            }
            self.check_record_header()?;
        }
        let missing = (self.record_len()? - got) as usize;
        let data = missing.min(available.len());
        self.advance(data);
        if data < missing {
            self.state = State::Record {
                got: got + data as u32,
            };
            return Ok(Step {
                consumed: data,
                data,
                outcome: Outcome::More,
            });
        }
        let end = self.end_of_record();
        let padding = end
            .saturating_sub(self.position)
            .min((available.len() - data) as u64) as usize;
        self.advance(padding);
        Ok(Step {
            consumed: data + padding,
            data,
            outcome: self.end_of_padding(end),
        })
    }

    fn take_part_of_header(&mut self, got: u32, len: usize) -> Result<Step, StreamError> {
        // As soon as the length is there, it must make sense: zeros are the end of valid WAL.
        if self.record_header.len >= 4 {
            self.record_len()?;
        }
        self.advance(len);
        self.state = State::Record {
            got: got + len as u32,
        };
        Ok(Step {
            consumed: len,
            data: len,
            outcome: Outcome::More,
        })
    }

    /// `xl_tot_len`; its four bytes never stand on two pages, as records are aligned.
    fn record_len(&self) -> Result<u32, StreamError> {
        let raw = &self.record_header.raw;
        let len = u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
        if (RecordHeader::LEN as u32..=RECORD_LEN_MAX).contains(&len) {
            Ok(len)
        } else {
            Err(StreamError::Length {
                start: self.start,
                len,
            })
        }
    }

    fn header(&self) -> RecordHeader {
        RecordHeader::from_array(&self.record_header.raw)
    }

    /// `ValidXLogRecordHeader`.
    fn check_record_header(&self) -> Result<(), StreamError> {
        self.record_len()?;
        let start = self.start;
        let header = self.header();
        if header.rmid > RM_LOGICALMSG_ID && header.rmid < RM_MIN_CUSTOM_ID {
            return Err(StreamError::ResourceManager {
                start,
                rmid: header.rmid,
            });
        }
        let links_back = match self.previous {
            Some(previous) => header.prev == previous,
            None => header.prev < start,
        };
        if !links_back {
            return Err(StreamError::BackLink {
                start,
                want: self.previous,
                got: header.prev,
            });
        }
        Ok(())
    }

    /// End of the record whose last byte is the one before the current position.
    fn end_of_record(&self) -> Lsn {
        let end = self.position.align_up();
        let header = self.header();
        if header.rmid == RM_XLOG_ID && header.info & XLR_RMGR_INFO_MASK == XLOG_SWITCH {
            let segment_size = self.segment_size as u64;
            return Lsn(end.0.next_multiple_of(segment_size));
        }
        end
    }
}
