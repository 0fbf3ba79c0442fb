//! WAL segments of a directory as one stream of records.
//!
//! Segments are mapped: with short records, to copy them out of the kernel's cache would take a tenth of the time of replay.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use memmap2::{Advice, Mmap};
use postgres_ffi::v15::BLCKSZ;
use postgres_ffi::v15::stream::WalStreamDecoder;
use postgres_ffi::v15::wal_file::SegmentName;
use postgres_ffi::v15::wal_page::{LONG_HEADER_LEN, PageHeader, SHORT_HEADER_LEN, header_len};
use utils::lsn::Lsn;

use crate::Options;

/// How often a directory is looked at for a new segment.
const POLL: Duration = Duration::from_millis(50);
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
    /// File read last; removed, if asked for, when the next one is there.
    current: Option<PathBuf>,
}

/// A segment, or as much as there is of it.
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

    /// The next segment, if there is one.
    pub fn next(&mut self) -> Result<Option<Piece>> {
        let Some(path) = self.wait_for_next()? else {
            return Ok(None);
        };
        let bytes = map(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = self.name_of(&path).context("segment name")?;
        let adjoins = self.next.is_none_or(|next| next == name.segment);
        self.next = Some(name.segment + 1);
        let read = self.current.replace(path);
        if let Some(read) = read.filter(|_| self.delete) {
            fs::remove_file(&read).with_context(|| format!("cannot remove {}", read.display()))?;
        }
        Ok(Some(Piece {
            start: Lsn(name.segment * self.segment_size as u64),
            bytes,
            adjoins,
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

/// The content of a file.
fn map(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    // SAFETY: nobody writes to the segments of an archive, or of a server that was shut down; that is what this program is
    // for. They may be removed meanwhile, which leaves the mapping as it is.
    let mapping = unsafe { Mmap::map(&file)? };
    mapping.advise(Advice::Sequential)?;
    Ok(Bytes::from_owner(mapping))
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
