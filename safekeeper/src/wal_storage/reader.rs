//! Reading WAL for those who stream it, while it is being written.
//!
//! A reader asks only for WAL that is final (or, to recover a proposer, durable), which no truncation
//! touches. It keeps its segment open across the rename that completes it.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use bytes::BytesMut;
use rustix::io::ReadWriteFlags;
use utils::lsn::Lsn;

use super::WalDir;

/// WAL could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadWalError {
    /// It was removed, or never was here.
    #[error("WAL segment is not found: {path}")]
    NotFound {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot read WAL segment {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is shorter than a segment.
    #[error("WAL segment {path} ends before {at}")]
    Short {
        /// The file.
        path: PathBuf,
        /// Where there was nothing to read.
        at: Lsn,
    },
}

/// A position in a timeline's WAL from which it is read on.
#[derive(Debug)]
pub struct WalReader {
    dir: WalDir,
    at: Lsn,
    open: Option<(u64, File, PathBuf)>,
}

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wait {
    Allowed,
    Forbidden,
}

impl WalReader {
    /// Starts at `at`.
    pub fn new(dir: WalDir, at: Lsn) -> Self {
        WalReader { dir, at, open: None }
    }

    /// Position of the next byte.
    pub fn position(&self) -> Lsn {
        self.at
    }

    /// Goes on at `at`.
    pub fn seek(&mut self, at: Lsn) {
        self.at = at;
    }

    /// Appends WAL up to `end` to `out`, `bytes_max` at most, and none of another segment than the
    /// first byte's. Returns how many bytes; at least 1 if `end` is ahead. May block.
    pub fn read(&mut self, end: Lsn, bytes_max: usize, out: &mut BytesMut) -> Result<usize, ReadWalError> {
        let got = self.read_some(end, bytes_max, out, Wait::Allowed)?;
        Ok(got.expect("a read that may wait is not put off"))
    }

    /// The same without blocking on WAL that is not in memory: `None` then.
    pub fn try_read(
        &mut self,
        end: Lsn,
        bytes_max: usize,
        out: &mut BytesMut,
    ) -> Result<Option<usize>, ReadWalError> {
        self.read_some(end, bytes_max, out, Wait::Forbidden)
    }

    fn read_some(
        &mut self,
        end: Lsn,
        bytes_max: usize,
        out: &mut BytesMut,
        wait: Wait,
    ) -> Result<Option<usize>, ReadWalError> {
        let segment_size = self.dir.segment_size;
        let offset = self.at.segment_offset(segment_size);
        let available = end.saturating_sub(self.at).min((segment_size - offset) as u64) as usize;
        let len = available.min(bytes_max);
        if len == 0 {
            return Ok(Some(0));
        }
        let segno = self.at.segment_number(segment_size);
        if self.open.as_ref().is_none_or(|(open, ..)| *open != segno) {
            self.open = Some(self.open_segment(segno)?);
        }
        let (_, file, path) = self.open.as_ref().expect("it was opened above");
        let old_len = out.len();
        out.resize(old_len + len, 0);
        let buffer = &mut out[old_len..];
        let result = match wait {
            Wait::Allowed => std::os::unix::fs::FileExt::read_at(file, buffer, offset as u64),
            Wait::Forbidden => {
                let mut slices = [io::IoSliceMut::new(buffer)];
                rustix::io::preadv2(file, &mut slices, offset as u64, ReadWriteFlags::NOWAIT)
                    .map_err(io::Error::from)
            }
        };
        out.truncate(old_len + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => Err(ReadWalError::Short {
                path: path.clone(),
                at: self.at,
            }),
            Ok(got) => {
                self.at += got as u64;
                Ok(Some(got))
            }
            Err(error) if wait == Wait::Forbidden && !is_failure(&error) => Ok(None),
            Err(source) => Err(ReadWalError::Io {
                path: path.clone(),
                source,
            }),
        }
    }

    fn open_segment(&self, segno: u64) -> Result<(u64, File, PathBuf), ReadWalError> {
        let (partial, full) = (self.dir.partial_path(segno), self.dir.full_path(segno));
        // Partial twice: a truncation may turn the full name into the partial one in between.
        for path in [partial.clone(), full.clone(), partial] {
            match File::open(&path) {
                Ok(file) => return Ok((segno, file, path)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ReadWalError::Io { path, source }),
            }
        }
        Err(ReadWalError::NotFound { path: full })
    }
}

/// Whether a read that must not wait failed for another reason than that it would have had to, or
/// that the file system knows no such reads.
fn is_failure(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Unsupported | io::ErrorKind::Interrupted
    )
}
