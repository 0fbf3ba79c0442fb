//! Finding the end of the WAL on disk when a timeline is opened.
//!
//! Up to the persisted commit LSN the WAL is known to have been durable, so damage there is an error
//! that names the segment. Behind it, the WAL ends where no valid record follows: what a crash tore was
//! never acknowledged.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use postgres_ffi::v15::BLCKSZ;
use postgres_ffi::v15::stream::{Checksums, RecordEnds, StreamError};
use postgres_ffi::v15::wal_page::{LONG_HEADER_LEN, PageHeader, header_len};
use utils::crashsafe;
use utils::lsn::Lsn;

use super::{CHUNK_BYTES, WalDir, WalError, is_valid_segment_size};

/// The WAL of a timeline cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenWalError {
    /// The file system refused.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The control file is not one of a timeline that can have WAL.
    #[error("{0} bytes is no size for WAL segments")]
    SegmentSize(usize),
    /// Durable WAL is not there.
    #[error("WAL segment is not found: {path} is missing although WAL was durable up to {known_end}")]
    Missing {
        /// The file that should be there.
        path: PathBuf,
        /// How far WAL was known to be durable.
        known_end: Lsn,
    },
    /// Durable WAL is damaged.
    #[error("WAL segment {path} is damaged before {known_end}, up to which WAL was durable")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How far WAL was known to be durable.
        known_end: Lsn,
        /// Where and how.
        source: StreamError,
    },
    /// The header of the segment is not one.
    #[error("WAL segment {path} does not begin with a valid page header")]
    SegmentHeader {
        /// The file.
        path: PathBuf,
    },
}

/// What is expected of the WAL on disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expected {
    /// WAL was written up to the known end: its segment must be there.
    Written,
    /// The timeline was created with this position, and has no WAL yet.
    Nothing,
}

/// End of the last whole valid record. WAL is known to be durable up to `known_end`; it is `known_end`
/// itself if no record follows. The WAL before it is verified from the start of its segment.
pub fn find_end(dir: &WalDir, known_end: Lsn, expected: Expected) -> Result<Lsn, OpenWalError> {
    if !u32::try_from(dir.segment_size).is_ok_and(is_valid_segment_size) {
        return Err(OpenWalError::SegmentSize(dir.segment_size));
    }
    let start = match expected {
        Expected::Nothing => known_end,
        Expected::Written => {
            let segno = Lsn(known_end.0.saturating_sub(1)).segment_number(dir.segment_size);
            first_record_of(dir, segno, known_end)?.min(known_end)
        }
    };
    let stop = follow(dir, start, |_| false)?;
    if stop.end >= known_end {
        return Ok(stop.end);
    }
    Err(stop.into_error(dir, known_end))
}

/// Verifies the records that begin in the segment `segno`, up to `known_end`. Returns where the last of
/// them ends, which may be in the next segment.
pub fn verify_segment(dir: &WalDir, segno: u64, known_end: Lsn) -> Result<Lsn, OpenWalError> {
    let segment_end = Lsn((segno + 1) * dir.segment_size as u64);
    let wanted = known_end.min(segment_end);
    let first_record = first_record_of(dir, segno, known_end)?;
    if first_record >= wanted {
        return Ok(first_record);
    }
    let stop = follow(dir, first_record, |end| end >= wanted)?;
    if stop.end >= wanted {
        return Ok(stop.end);
    }
    Err(stop.into_error(dir, known_end))
}

/// How far valid records reach.
struct Stop {
    end: Lsn,
    /// What is there in place of the next record; `None` if there is nothing.
    why: Option<StreamError>,
}

impl Stop {
    /// The error if WAL was known to be durable further on.
    fn into_error(self, dir: &WalDir, known_end: Lsn) -> OpenWalError {
        let segno = self.end.segment_number(dir.segment_size);
        let partial = dir.partial_path(segno);
        let path = if partial.exists() {
            partial
        } else {
            dir.full_path(segno)
        };
        match self.why {
            Some(source) => OpenWalError::Damaged {
                path,
                known_end,
                source,
            },
            None => OpenWalError::Missing { path, known_end },
        }
    }
}

/// Follows the records from `start` on, until there is no more or `is_enough` of their end.
fn follow(dir: &WalDir, start: Lsn, is_enough: impl Fn(Lsn) -> bool) -> Result<Stop, OpenWalError> {
    let mut ends = RecordEnds::new(start, dir.segment_size, Checksums::Verify);
    let mut at = start;
    while let Some((file, path)) = open(dir, at.segment_number(dir.segment_size))? {
        let segment_end = at.segment_start(dir.segment_size) + dir.segment_size as u64;
        while at < segment_end {
            let chunk =
                read_chunk(&file, at, segment_end, dir.segment_size).map_err(WalError::at("read", &path))?;
            let fed = if chunk.is_empty() {
                Ok(at)
            } else {
                ends.feed(&chunk)
            };
            if chunk.is_empty() || fed.is_err() || is_enough(ends.last_end()) {
                return Ok(Stop {
                    end: ends.last_end(),
                    why: fed.err(),
                });
            }
            at += chunk.len() as u64;
        }
    }
    Ok(Stop {
        end: ends.last_end(),
        why: None,
    })
}

/// Where the first record that begins in the segment `segno` begins.
fn first_record_of(dir: &WalDir, segno: u64, known_end: Lsn) -> Result<Lsn, OpenWalError> {
    let Some((file, path)) = open(dir, segno)? else {
        return Err(OpenWalError::Missing {
            path: dir.full_path(segno),
            known_end,
        });
    };
    let start = Lsn(segno * dir.segment_size as u64);
    first_record(&file, start, dir.segment_size)
        .map_err(WalError::at("read", &path))?
        .ok_or(OpenWalError::SegmentHeader { path })
}

/// Where the first record that begins in the segment at `start` begins: behind the rest of one that may
/// reach into it. `None` if a page on the way has no valid header.
fn first_record(file: &File, start: Lsn, segment_size: usize) -> io::Result<Option<Lsn>> {
    let segment_end = start + segment_size as u64;
    let mut page = start;
    while page < segment_end {
        let mut raw = [0; LONG_HEADER_LEN];
        let len = header_len(page, segment_size);
        file.read_exact_at(&mut raw[..len], page - start)?;
        let Ok(header) = PageHeader::decode(&raw) else {
            return Ok(None);
        };
        if header.check(page, segment_size).is_err() {
            return Ok(None);
        }
        let data = page + len as u64;
        let continued = if header.is_contrecord() {
            u64::from(header.rem_len)
        } else {
            0
        };
        if continued < (BLCKSZ - len) as u64 {
            return Ok(Some((data + continued).align_up()));
        }
        page += BLCKSZ as u64;
    }
    Ok(Some(segment_end))
}

fn read_chunk(file: &File, at: Lsn, end: Lsn, segment_size: usize) -> io::Result<Vec<u8>> {
    let mut chunk = vec![0; CHUNK_BYTES.min((end - at) as usize)];
    let got = file.read_at(&mut chunk, at.segment_offset(segment_size) as u64)?;
    chunk.truncate(got);
    Ok(chunk)
}

/// Makes the WAL from `begin` to `end` durable, both of which are in files that are there.
///
/// What [`find_end`] finds after a start may be in the page cache only: the process that wrote it was
/// killed before it could flush. Reported as it is, it would be lost with the machine's power.
pub fn make_durable(dir: &WalDir, begin: Lsn, end: Lsn) -> Result<(), WalError> {
    if begin >= end {
        return Ok(());
    }
    let last_byte = Lsn(end.0 - 1);
    for segno in begin.segment_number(dir.segment_size)..=last_byte.segment_number(dir.segment_size) {
        let Some((file, path)) = open(dir, segno)? else {
            let missing = io::Error::from(io::ErrorKind::NotFound);
            return Err(WalError::at("open", &dir.full_path(segno))(missing));
        };
        file.sync_data().map_err(WalError::at("fdatasync", &path))?;
    }
    crashsafe::fsync_dir(&dir.path)?;
    Ok(())
}

fn open(dir: &WalDir, segno: u64) -> Result<Option<(File, PathBuf)>, WalError> {
    for path in [dir.partial_path(segno), dir.full_path(segno)] {
        match File::open(&path) {
            Ok(file) => return Ok(Some((file, path))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(WalError::at("open", &path)(error)),
        }
    }
    Ok(None)
}
