//! WAL segments of a directory as one stream of records.
//!
//! They are read in pieces that stay in the processor's cache until they are replayed. Mapped segments would come from
//! memory then, and through a page fault for every few pages.

use std::fs::{self, File};
use std::io::{self, Read};
use std::mem;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use postgres_ffi::v15::BLCKSZ;
use postgres_ffi::v15::stream::WalStreamDecoder;
use postgres_ffi::v15::wal_file::SegmentName;
use postgres_ffi::v15::wal_page::{LONG_HEADER_LEN, PageHeader, SHORT_HEADER_LEN, header_len};
use utils::lsn::Lsn;

use crate::Options;

/// How often a directory is looked at for a new segment.
const POLL: Duration = Duration::from_millis(50);
/// Bytes read at a time, whole WAL pages.
const PIECE_LEN: usize = 32 * BLCKSZ;
/// Appears in a followed directory when no more segments will come.
const END_MARK: &str = "end";

/// The segments of a directory, in order.
pub struct SegmentSource {
    dir: PathBuf,
    follow: bool,
    delete: bool,
    segment_size: usize,
    /// Segment number to come next, once one was read.
    next: Option<u64>,
    /// The one being read.
    current: Option<Segment>,
    /// The piece given out last, whose memory is used again once nobody else needs it.
    last: Bytes,
}

/// A segment being read.
struct Segment {
    /// Removed, if asked for, when the next one is there.
    path: PathBuf,
    file: File,
    /// Position of the byte to be read next.
    position: Lsn,
}

/// A part of a segment.
pub struct Piece {
    pub start: Lsn,
    pub bytes: Bytes,
    /// Whether it follows the one before.
    pub adjoins: bool,
}

impl SegmentSource {
    pub fn new(options: &Options) -> Result<Self> {
        let mut source = SegmentSource {
            dir: options.wal_dir.clone(),
            follow: options.follow,
            delete: options.delete,
            segment_size: 0,
            next: None,
            current: None,
            last: Bytes::new(),
        };
        let first = source
            .wait_for_next()?
            .with_context(|| format!("no WAL segments in {}", options.wal_dir.display()))?;
        source.segment_size = segment_size(&first)?;
        if let Some(start) = options.start {
            source.next = Some(start.0 / source.segment_size as u64);
        }
        Ok(source)
    }

    /// Size of each segment in bytes.
    pub fn segment_size(&self) -> usize {
        self.segment_size
    }

    /// The next piece, if there is one.
    pub fn next(&mut self) -> Result<Option<Piece>> {
        if let Some(rest) = self.next_of_current()? {
            return Ok(Some(rest));
        }
        let Some(path) = self.wait_for_next()? else {
            return Ok(None);
        };
        let name = self.name_of(&path).context("segment name")?;
        let adjoins = self.next.is_none_or(|next| next == name.segment);
        self.next = Some(name.segment + 1);
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let position = Lsn(name.segment * self.segment_size as u64);
        let read = self.current.replace(Segment { path, file, position });
        if let Some(Segment { path, .. }) = read.filter(|_| self.delete) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let first = self.next_of_current()?;
        Ok(first.map(|piece| Piece { adjoins, ..piece }))
    }

    /// The next piece of the segment being read, if there is one.
    fn next_of_current(&mut self) -> Result<Option<Piece>> {
        let Some(segment) = &mut self.current else {
            return Ok(None);
        };
        let mut bytes = mem::take(&mut self.last).try_into_mut().unwrap_or_default();
        segment
            .read(&mut bytes)
            .with_context(|| format!("cannot read {}", segment.path.display()))?;
        let start = segment.position;
        segment.position.0 += bytes.len() as u64;
        self.last = bytes.freeze();
        Ok((!self.last.is_empty()).then(|| Piece {
            start,
            bytes: self.last.clone(),
            adjoins: true,
        }))
    }

    fn name_of(&self, path: &Path) -> Option<SegmentName> {
        // The size matters for the number only, not for whether it is a segment's name.
        let size = if self.segment_size == 0 {
            16 << 20
        } else {
            self.segment_size
        };
        SegmentName::parse(path.file_name()?.to_str()?, size)
    }

    fn wait_for_next(&self) -> Result<Option<PathBuf>> {
        loop {
            // Look for the mark first: what was there before it is seen after it.
            let ended = !self.follow || self.dir.join(END_MARK).exists();
            if let Some(found) = self.find_next()? {
                return Ok(Some(found));
            }
            if ended {
                return Ok(None);
            }
            thread::sleep(POLL);
        }
    }

    /// The lowest segment from the expected one on; of the same segment the highest timeline.
    fn find_next(&self) -> Result<Option<PathBuf>> {
        let entries =
            fs::read_dir(&self.dir).with_context(|| format!("cannot list {}", self.dir.display()))?;
        let mut best: Option<(SegmentName, PathBuf)> = None;
        for entry in entries {
            let path = entry
                .with_context(|| format!("cannot list {}", self.dir.display()))?
                .path();
            let Some(name) = self.name_of(&path) else {
                continue;
            };
            if self.next.is_some_and(|next| name.segment < next) {
                continue;
            }
            let better = best.as_ref().is_none_or(|(best, _)| {
                name.segment < best.segment || (name.segment == best.segment && name.timeline > best.timeline)
            });
            if better {
                best = Some((name, path));
            }
        }
        // While more may come, a later segment does not stand in for the expected one.
        let waiting = self.follow && !self.dir.join(END_MARK).exists();
        Ok(best
            .filter(|(name, _)| !waiting || self.next.is_none_or(|next| next == name.segment))
            .map(|(_, path)| path))
    }
}

impl Segment {
    /// Fills `bytes` with what comes next; with less than a piece, or nothing, at the end.
    fn read(&mut self, bytes: &mut BytesMut) -> io::Result<()> {
        bytes.resize(PIECE_LEN, 0);
        let mut len = 0;
        while len < PIECE_LEN {
            match self.file.read(&mut bytes[len..]) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(len);
        Ok(())
    }
}

/// Segment size from the header of a segment's first page.
fn segment_size(path: &Path) -> Result<usize> {
    let mut raw = [0; LONG_HEADER_LEN];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut raw))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let header =
        PageHeader::decode(&raw).with_context(|| format!("{} is not a WAL segment", path.display()))?;
    match header.long {
        Some(long) if (long.segment_size as usize).is_power_of_two() => Ok(long.segment_size as usize),
        _ => bail!("{} does not begin with a WAL segment's header", path.display()),
    }
}

/// What comes next in the WAL.
pub enum Next {
    /// A record, see [`WalRecords::record`].
    Record {
        /// Its end.
        end: Lsn,
    },
    /// Segments are missing; what follows starts anew.
    Gap,
}

/// The records of all segments.
pub struct WalRecords {
    source: SegmentSource,
    decoder: Option<WalStreamDecoder>,
    start: Option<Lsn>,
    first_record: Option<Lsn>,
    end: Lsn,
    gaps: u64,
}

impl WalRecords {
    pub fn new(source: SegmentSource, start: Option<Lsn>) -> Self {
        WalRecords {
            source,
            decoder: None,
            start,
            first_record: None,
            end: Lsn(0),
            gaps: 0,
        }
    }

    /// Start of the first record.
    pub fn first_record(&self) -> Lsn {
        self.first_record.unwrap_or(Lsn(0))
    }

    /// End of the last record.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// How often segments were missing.
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    /// Bytes of the record that came last.
    pub fn record(&self) -> &[u8] {
        self.decoder.as_ref().map_or(&[], WalStreamDecoder::record)
    }

    /// What comes next; `None` at the end of the WAL.
    pub fn next(&mut self) -> Result<Option<Next>> {
        loop {
            if let Some(decoder) = &mut self.decoder {
                match decoder.seek_record() {
                    Ok(Some(end)) => {
                        self.first_record.get_or_insert(decoder.record_start());
                        self.end = end;
                        return Ok(Some(Next::Record { end }));
                    }
                    Ok(None) => {}
                    Err(error) => return self.end_at(error),
                }
            }
            let Some(piece) = self.source.next()? else {
                return Ok(None);
            };
            if self.decoder.is_some() && !piece.adjoins {
                self.decoder = None;
                self.gaps += 1;
                self.begin(&piece);
                return Ok(Some(Next::Gap));
            }
            match &mut self.decoder {
                Some(decoder) => decoder.feed_bytes(piece.bytes),
                None => self.begin(&piece),
            }
        }
    }

    /// Starts reading in this piece, if a record starts there.
    fn begin(&mut self, piece: &Piece) {
        let size = self.source.segment_size();
        let end = Lsn(piece.start.0 + piece.bytes.len() as u64);
        let start = match self.start {
            Some(start) => Some(start).filter(|start| *start < end),
            None => first_record_in(piece, size),
        };
        if let Some(start) = start {
            self.start = None;
            let mut decoder = WalStreamDecoder::with_segment_size(start, size);
            let skipped = start.0.saturating_sub(piece.start.0) as usize;
            decoder.feed_bytes(piece.bytes.slice(skipped..));
            self.decoder = Some(decoder);
        }
    }

    /// Behind the last record of a live WAL directory come zeros or a segment's former content.
    fn end_at(&mut self, error: postgres_ffi::v15::stream::StreamError) -> Result<Option<Next>> {
        let size = self.source.segment_size();
        while let Some(piece) = self.source.next()? {
            let header = PageHeader::decode(&piece.bytes).ok();
            let begins_segment = piece.start.0.is_multiple_of(size as u64);
            if begins_segment && header.is_some_and(|header| header.check(piece.start, size).is_ok()) {
                return Err(error).context(format!("WAL is broken behind {}, and goes on", self.end));
            }
        }
        self.decoder = None;
        Ok(None)
    }
}

/// Where the first record starts that begins in this piece: behind the rest of one from before.
fn first_record_in(piece: &Piece, segment_size: usize) -> Option<Lsn> {
    let header = PageHeader::decode(&piece.bytes).ok()?;
    if !header.is_contrecord() {
        return Some(piece.start);
    }
    let mut left = header.rem_len as usize;
    let mut at = header_len(piece.start, segment_size);
    loop {
        let in_page = BLCKSZ - at % BLCKSZ;
        if left <= in_page {
            at = (at + left).next_multiple_of(8);
            break;
        }
        left -= in_page;
        at += in_page + SHORT_HEADER_LEN;
        if at >= piece.bytes.len() {
            return None;
        }
    }
    (at < piece.bytes.len()).then(|| Lsn(piece.start.0 + at as u64))
}
