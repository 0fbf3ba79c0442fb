//! WAL of one timeline on disk, in segment files named as PostgreSQL names them.
//!
//! A segment being written has the suffix `.partial` and its full size from the start; all of its space is allocated
//! and reads as zeros. Small writes are preceded, now and then, by writing zeros ahead of them, so that they change no
//! file metadata and `fdatasync` is cheap. It loses the suffix when its last byte is durable.
//!
//! Invariants
//! * Behind the end of the WAL there is nothing but zeros once a proposer is elected: [`WalStorage::truncate`]
//!   removes later segments, newest first, before it clears the rest of the last one. After a crash
//!   anywhere in between, what is left is a beginning of the old WAL.
//! * A segment is complete and durable before it is renamed, and its successor is begun after that.
//! * The first segment of a timeline that starts in the middle of it has valid page headers from its
//!   start ([`prologue`]), so that PostgreSQL's tools can read it.
//!
//! After an error, drop the storage and open a new one: what was written is not known then.
//!
//! Blocking: every call may wait for the disk. Not here: which WAL may be written or removed.

mod end_of_wal;
mod prologue;
mod reader;
mod spare;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use postgres_ffi::v15::wal_file::SegmentName;
use rustix::fs::Advice;
use utils::crashsafe::{self, CrashsafeError};
use utils::lsn::Lsn;

use crate::Sync;
use crate::acceptor::ServerInfo;

pub use end_of_wal::{Expected, OpenWalError, find_end, make_durable, verify_segment};
pub use reader::{ReadWalError, WalReader};
pub use spare::SpareJob;

/// Suffix of the segment that is being written.
pub const PARTIAL_SUFFIX: &str = ".partial";
/// PostgreSQL's own timeline number, the same in all names here.
const PG_TIMELINE: u32 = 1;
/// Smallest and largest segment PostgreSQL allows, in bytes.
const SEGMENT_BYTES: std::ops::RangeInclusive<u32> = 1 << 20..=1 << 30;
/// Zeros are written and read in pieces of this size, in bytes.
const CHUNK_BYTES: usize = 128 * 1024;
/// So many complete segments stay in the kernel's cache. Readers and the offload are done with older ones, as a rule.
const SEGMENTS_CACHED: usize = 4;
static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];
/// Writes shorter than this are small, in bytes. What the file system does when space is written to for the first
/// time counts little beside a longer write, and zeros would double it.
const SMALL_WRITE_BYTES: usize = 64 * 1024;
/// Zeros are written this far ahead of a small write, up to a multiple of it.
const ZEROS_AHEAD_BYTES: usize = 2 * CHUNK_BYTES;

/// Whether PostgreSQL could have segments of `bytes` bytes.
pub fn is_valid_segment_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && SEGMENT_BYTES.contains(&bytes)
}

/// An operation on WAL files failed.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The file system refused.
    #[error("cannot {action} WAL segment {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The same, for a durable change of names.
    #[error(transparent)]
    Crashsafe(#[from] CrashsafeError),
    /// A test asked for this failure.
    #[error("failpoint {0}")]
    Failpoint(&'static str),
}

impl WalError {
    fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| WalError::Io { action, path, source }
    }
}

/// Fails with [`WalError::Failpoint`] if a test asked for it here.
macro_rules! failpoint {
    ($name:literal) => {
        fail::fail_point!($name, |_| Err($crate::wal_storage::WalError::Failpoint($name)))
    };
}

/// Where the segments of a timeline are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WalDir {
    /// The timeline's directory.
    pub path: PathBuf,
    /// Size of a segment in bytes.
    pub segment_size: usize,
}

/// A segment file found in a directory.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct SegmentFile {
    /// Its number.
    pub segno: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Whether its name has the suffix.
    pub is_partial: bool,
}

impl WalDir {
    /// Name of a complete segment.
    pub fn segment_name(&self, segno: u64) -> String {
        let name = SegmentName {
            timeline: PG_TIMELINE,
            segment: segno,
        };
        name.file_name(self.segment_size)
    }

    fn parse_segment_name(&self, name: &str) -> Option<u64> {
        let name = SegmentName::parse(name, self.segment_size)?;
        (name.timeline == PG_TIMELINE).then_some(name.segment)
    }

    /// File of a complete segment.
    pub fn full_path(&self, segno: u64) -> PathBuf {
        self.path.join(self.segment_name(segno))
    }

    /// File of a segment that is being written.
    pub fn partial_path(&self, segno: u64) -> PathBuf {
        self.path.join(self.segment_name(segno) + PARTIAL_SUFFIX)
    }

    /// Whether the segment is here, complete or not. Blocking, briefly.
    pub fn has_segment(&self, segno: u64) -> bool {
        self.partial_path(segno).exists() || self.full_path(segno).exists()
    }

    /// All segment files, by number.
    pub fn segments(&self) -> Result<Vec<SegmentFile>, WalError> {
        let mut found = Vec::new();
        let list_error = |source| WalError::Io {
            action: "list",
            path: self.path.clone(),
            source,
        };
        for entry in std::fs::read_dir(&self.path).map_err(list_error)? {
            let entry = entry.map_err(list_error)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let (stem, is_partial) = match name.strip_suffix(PARTIAL_SUFFIX) {
                Some(stem) => (stem, true),
                None => (name, false),
            };
            if let Some(segno) = self.parse_segment_name(stem) {
                found.push(SegmentFile {
                    segno,
                    path: entry.path(),
                    is_partial,
                });
            }
        }
        found.sort();
        Ok(found)
    }

    /// Removes the segments with numbers below `horizon`, oldest first; returns how many.
    pub fn remove_before(&self, horizon: u64) -> Result<usize, WalError> {
        let mut removed = 0;
        for segment in self.segments()?.iter().filter(|found| found.segno < horizon) {
            std::fs::remove_file(&segment.path).map_err(WalError::at("remove", &segment.path))?;
            removed += 1;
        }
        if removed > 0 {
            crashsafe::fsync_dir(&self.path)?;
        }
        Ok(removed)
    }
}

#[derive(Debug)]
struct OpenSegment {
    segno: u64,
    path: PathBuf,
    file: File,
    /// Whether there are writes that no fdatasync has covered.
    dirty: bool,
    /// Offset of the first byte that may never have been written to.
    fresh_from: usize,
}

impl OpenSegment {
    /// Writes at `offset`; zeros behind it if that makes the next writes cheaper.
    fn write(&mut self, bytes: &[u8], offset: usize, segment_size: usize) -> io::Result<()> {
        self.dirty = true;
        self.file.write_all_at(bytes, offset as u64)?;
        let end = offset + bytes.len();
        if end <= self.fresh_from {
            return Ok(());
        }
        self.fresh_from = end;
        if bytes.len() < SMALL_WRITE_BYTES {
            let ahead = (end + 1).next_multiple_of(ZEROS_AHEAD_BYTES).min(segment_size);
            while self.fresh_from < ahead {
                let chunk = CHUNK_BYTES.min(ahead - self.fresh_from);
                self.file.write_all_at(&ZEROS[..chunk], self.fresh_from as u64)?;
                self.fresh_from += chunk;
            }
        }
        Ok(())
    }
}

/// The writing end of a timeline's WAL.
#[derive(Debug)]
pub struct WalStorage {
    dir: WalDir,
    sync: Sync,
    server: ServerInfo,
    write_lsn: Lsn,
    /// Everything from here to the end of its segment is known to be zero.
    zeros_from: Option<Lsn>,
    open: Option<OpenSegment>,
    /// The segments completed last, oldest first.
    complete: VecDeque<File>,
    spare: spare::Spare,
}

impl WalStorage {
    /// WAL in `dir` that ends at `write_lsn` (see [`find_end`]), of the cluster `server`.
    pub fn open(dir: WalDir, sync: Sync, server: ServerInfo, write_lsn: Lsn) -> Self {
        assert_eq!(dir.segment_size, server.wal_seg_size as usize);
        let spare = spare::Spare::new(&dir.path);
        WalStorage {
            dir,
            sync,
            server,
            write_lsn,
            zeros_from: None,
            open: None,
            complete: VecDeque::new(),
            spare,
        }
    }

    /// Takes note of what is known of the cluster now.
    pub fn set_server(&mut self, server: ServerInfo) {
        assert_eq!(self.server.wal_seg_size, server.wal_seg_size);
        self.server = server;
    }

    /// Whether a segment file is held open.
    pub fn is_file_open(&self) -> bool {
        self.open.is_some()
    }

    /// Closes the open file, when nothing is expected to be written soon.
    pub fn close_file(&mut self) {
        if self.open.as_ref().is_some_and(|open| !open.dirty) {
            self.open = None;
        }
    }

    /// Appends `bytes` at `begin`, which is where the WAL ends. Not durable before [`Self::flush`].
    pub fn write(&mut self, begin: Lsn, mut bytes: &[u8]) -> Result<(), WalError> {
        assert_eq!(begin, self.write_lsn, "WAL is written without gaps");
        failpoint!("sk-before-wal-write");
        while !bytes.is_empty() {
            let offset = self.write_lsn.segment_offset(self.dir.segment_size);
            let (chunk, rest) = bytes.split_at(bytes.len().min(self.dir.segment_size - offset));
            let segment_size = self.dir.segment_size;
            let open = self.open_for_write()?;
            open.write(chunk, offset, segment_size)
                .map_err(WalError::at("write", &open.path))?;
            self.write_lsn += chunk.len() as u64;
            self.zeros_from = self.zeros_from.map(|from| from.max(self.write_lsn));
            if self.write_lsn.segment_offset(self.dir.segment_size) == 0 {
                self.finish_segment()?;
            }
            bytes = rest;
        }
        failpoint!("sk-after-wal-write");
        Ok(())
    }

    /// Makes everything written durable.
    pub fn flush(&mut self) -> Result<(), WalError> {
        failpoint!("sk-before-wal-flush");
        if let Some(open) = &mut self.open
            && std::mem::take(&mut open.dirty)
            && self.sync == Sync::Yes
        {
            open.file
                .sync_data()
                .map_err(WalError::at("fdatasync", &open.path))?;
        }
        failpoint!("sk-after-wal-flush");
        Ok(())
    }

    fn open_for_write(&mut self) -> Result<&mut OpenSegment, WalError> {
        let segno = self.write_lsn.segment_number(self.dir.segment_size);
        if self.open.as_ref().is_none_or(|open| open.segno != segno) {
            let path = self.dir.partial_path(segno);
            let file = match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.create_segment(segno)?,
                Err(error) => return Err(WalError::at("open", &path)(error)),
            };
            self.open = Some(OpenSegment {
                segno,
                path,
                file,
                dirty: false,
                fresh_from: 0,
            });
        }
        Ok(self.open.as_mut().expect("it was opened above"))
    }

    /// Makes a segment of zeros under its partial name; durable on return.
    fn create_segment(&mut self, segno: u64) -> Result<File, WalError> {
        failpoint!("sk-before-segment-create");
        let offset = self.write_lsn.segment_offset(self.dir.segment_size);
        let (temp, mut file) = match self.spare.take() {
            Some(path) => {
                let file = OpenOptions::new().read(true).write(true).open(&path);
                (path.clone(), file.map_err(WalError::at("open", &path))?)
            }
            None => {
                let path = self.dir.path.join(format!("segment{}", crashsafe::TEMP_SUFFIX));
                let file = spare::create_zeroed(&path, self.dir.segment_size, self.sync)?;
                (path, file)
            }
        };
        if offset > 0 {
            let place = prologue::Place {
                end: self.write_lsn,
                segment_size: self.dir.segment_size,
            };
            prologue::write(&mut file, place, &self.server).map_err(WalError::at("write", &temp))?;
            self.fsync(&file, &temp)?;
        }
        let path = self.dir.partial_path(segno);
        std::fs::rename(&temp, &path).map_err(WalError::at("rename", &temp))?;
        self.fsync_dir()?;
        self.zeros_from = Some(self.write_lsn);
        failpoint!("sk-after-segment-create");
        Ok(file)
    }

    /// Gives the segment that has just been filled its final name.
    fn finish_segment(&mut self) -> Result<(), WalError> {
        failpoint!("sk-before-segment-finish");
        let open = self.open.take().expect("the segment that was filled is open");
        self.fsync(&open.file, &open.path)?;
        let path = self.dir.full_path(open.segno);
        // The new name need not be durable: either name will do after a crash.
        std::fs::rename(&open.path, &path).map_err(WalError::at("rename", &open.path))?;
        self.zeros_from = None;
        self.keep_cached(open.file);
        failpoint!("sk-after-segment-finish");
        Ok(())
    }

    /// Has the kernel forget the contents of a segment completed long ago in place of this one's: memory that was in use
    /// a moment ago is cheaper than other memory, and of more use to others.
    fn keep_cached(&mut self, segment: File) {
        self.complete.push_back(segment);
        if self.complete.len() > SEGMENTS_CACHED
            && let Some(old) = self.complete.pop_front()
        {
            // Advice that is not taken costs nothing but memory.
            let _ = rustix::fs::fadvise(&old, 0, None, Advice::DontNeed);
        }
    }

    /// Cuts the WAL off at `to`: after that there are only zeros behind it. If WAL begins there, in the
    /// middle of a segment, that segment is made. Durable on return.
    pub fn truncate(&mut self, to: Lsn) -> Result<(), WalError> {
        failpoint!("sk-before-wal-truncate");
        self.flush()?;
        self.remove_from(to)?;
        let (segno, offset) = (
            to.segment_number(self.dir.segment_size),
            to.segment_offset(self.dir.segment_size),
        );
        if offset > 0 {
            self.clear_rest_of_segment(segno, to)?;
        }
        self.write_lsn = to;
        failpoint!("sk-after-wal-truncate");
        Ok(())
    }

    /// Removes all segments that begin at or behind `to`, newest first.
    fn remove_from(&mut self, to: Lsn) -> Result<(), WalError> {
        let first = to.0.div_ceil(self.dir.segment_size as u64);
        let doomed: Vec<_> = self.dir.segments()?;
        let doomed = doomed.iter().rev().filter(|found| found.segno >= first);
        let mut removed = false;
        for segment in doomed {
            std::fs::remove_file(&segment.path).map_err(WalError::at("remove", &segment.path))?;
            // One after the other also on disk: a hole must never be left by a crash.
            self.fsync_dir()?;
            removed = true;
        }
        if removed {
            self.open = None;
            self.zeros_from = None;
            failpoint!("sk-truncate-after-remove");
        }
        Ok(())
    }

    fn clear_rest_of_segment(&mut self, segno: u64, to: Lsn) -> Result<(), WalError> {
        let (full, partial) = (self.dir.full_path(segno), self.dir.partial_path(segno));
        if !partial.exists() && full.exists() {
            std::fs::rename(&full, &partial).map_err(WalError::at("rename", &full))?;
            self.fsync_dir()?;
            self.zeros_from = None;
        }
        self.write_lsn = to;
        let (segment_size, sync) = (self.dir.segment_size, self.sync);
        let segment_end = to.segment_start(segment_size) + segment_size as u64;
        let clear_to = self.zeros_from.unwrap_or(segment_end).min(segment_end);
        let open = self.open_for_write()?;
        let begin = to.segment_offset(segment_size);
        let len = clear_to.saturating_sub(to) as usize;
        let written = write_zeros_where_needed(&open.file, begin, len)
            .map_err(WalError::at("clear the rest of", &open.path))?;
        failpoint!("sk-truncate-after-clear");
        if written && sync == Sync::Yes {
            open.file
                .sync_data()
                .map_err(WalError::at("fdatasync", &open.path))?;
        }
        self.zeros_from = Some(to);
        Ok(())
    }

    /// Work that makes the next segment ready in advance, when it is time for that. Run it on a thread
    /// that may block; what it makes is used if it is ready in time.
    pub fn spare_job(&self) -> Option<SpareJob> {
        let offset = self.write_lsn.segment_offset(self.dir.segment_size);
        let due = self.open.is_some() && offset > self.dir.segment_size / 2;
        due.then(|| self.spare.job(self.dir.segment_size, self.sync))
            .flatten()
    }

    fn fsync(&self, file: &File, path: &Path) -> Result<(), WalError> {
        match self.sync {
            Sync::Yes => file.sync_data().map_err(WalError::at("fdatasync", path)),
            Sync::No => Ok(()),
        }
    }

    fn fsync_dir(&self) -> Result<(), WalError> {
        match self.sync {
            Sync::Yes => Ok(crashsafe::fsync_dir(&self.dir.path)?),
            Sync::No => Ok(()),
        }
    }
}

/// Makes `len` bytes of `file` from `begin` on zero; whether any had to be written.
fn write_zeros_where_needed(file: &File, begin: usize, len: usize) -> io::Result<bool> {
    let mut buffer = vec![0; CHUNK_BYTES.min(len)];
    let mut written = false;
    let end = begin + len;
    let mut at = begin;
    while at < end {
        let chunk = &mut buffer[..CHUNK_BYTES.min(end - at)];
        let got = file.read_at(chunk, at as u64)?;
        if got == 0 {
            // A file that is too short is made whole.
            file.write_all_at(&ZEROS[..chunk.len()], at as u64)?;
            (at, written) = (at + chunk.len(), true);
            continue;
        }
        if chunk[..got] != ZEROS[..got] {
            file.write_all_at(&ZEROS[..got], at as u64)?;
            written = true;
        }
        at += got;
    }
    Ok(written)
}

#[cfg(test)]
mod tests;
