//! The next segment's file, made ready while the present one is being filled.
//!
//! Allocating a segment takes longer than many commits; done in time, it is off the path of all of them. A spare is
//! only an optimisation: whoever needs a segment and finds none makes one.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use utils::crashsafe::TEMP_SUFFIX;

use super::{CHUNK_BYTES, WalError, ZEROS};
use crate::Sync;

const NONE: u8 = 0;
const IN_WORK: u8 = 1;
const READY: u8 = 2;

/// The place of the spare in a timeline's directory.
#[derive(Debug)]
pub(super) struct Spare {
    path: PathBuf,
    state: Arc<AtomicU8>,
}

impl Spare {
    /// No spare yet. A file left by an earlier process is overwritten when the time comes.
    pub fn new(dir: &Path) -> Self {
        // Each instance has a name of its own: a job of one that was dropped may still be writing.
        let unique = format!("spare-{:016x}{TEMP_SUFFIX}", rand::random::<u64>());
        Spare {
            path: dir.join(unique),
            state: Arc::new(AtomicU8::new(NONE)),
        }
    }

    /// The file, if it is ready; from now on the caller's.
    pub fn take(&self) -> Option<PathBuf> {
        self.state
            .compare_exchange(READY, NONE, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
            .then(|| self.path.clone())
    }

    /// The work of making one, unless that is done or under way.
    pub fn job(&self, segment_size: usize, sync: Sync) -> Option<SpareJob> {
        self.state
            .compare_exchange(NONE, IN_WORK, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
            .then(|| SpareJob {
                path: self.path.clone(),
                segment_size,
                sync,
                state: Arc::clone(&self.state),
            })
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if self.take().is_some() {
            // Opening the directory removes what is left.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Making a spare segment.
#[derive(Debug)]
pub struct SpareJob {
    path: PathBuf,
    segment_size: usize,
    sync: Sync,
    state: Arc<AtomicU8>,
}

impl SpareJob {
    /// Does it. Blocking.
    ///
    /// # Errors
    /// The disk is full or fails. Whoever needs the segment will meet the same and report it.
    pub fn run(self) -> Result<(), WalError> {
        let result = create_zeroed(&self.path, self.segment_size, self.sync);
        let state = if result.is_ok() { READY } else { NONE };
        self.state.store(state, Ordering::Release);
        result.map(drop)
    }
}

/// A file of `len` zeros whose space is allocated, durable but for its name. Removed again if it cannot be made whole.
pub(super) fn create_zeroed(path: &Path, len: usize, sync: Sync) -> Result<File, WalError> {
    let made = try_create_zeroed(path, len, sync);
    if made.is_err() {
        // Gives back the space of what was written; if that fails too, opening the directory does it.
        let _ = std::fs::remove_file(path);
    }
    made.map_err(WalError::at("create", path))
}

fn try_create_zeroed(path: &Path, len: usize, sync: Sync) -> std::io::Result<File> {
    fail::fail_point!("sk-disk-full", |_| Err(std::io::ErrorKind::StorageFull.into()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, len as u64) {
        Ok(()) => {}
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeros(&mut file, len)?,
        Err(error) => return Err(error.into()),
    }
    if sync == Sync::Yes {
        file.sync_all()?;
    }
    Ok(file)
}

/// Allocates space where the file system has no other way.
fn write_zeros(file: &mut File, len: usize) -> std::io::Result<()> {
    let mut left = len;
    while left > 0 {
        let chunk = left.min(CHUNK_BYTES);
        file.write_all(&ZEROS[..chunk])?;
        left -= chunk;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn space_is_allocated_and_zero_either_way() {
        const LEN: usize = 3 * CHUNK_BYTES + 5;
        let dir = tempfile::tempdir().unwrap();
        let allocated = create_zeroed(&dir.path().join("allocated"), LEN, Sync::No).unwrap();
        let mut written = File::create_new(dir.path().join("written")).unwrap();
        write_zeros(&mut written, LEN).unwrap();
        written.sync_all().unwrap();
        for (name, file) in [("allocated", allocated), ("written", written)] {
            let on_disk = file.metadata().unwrap().blocks() * 512;
            assert!(on_disk >= LEN as u64, "{name}: {on_disk} bytes");
            assert!(
                std::fs::read(dir.path().join(name)).unwrap() == vec![0; LEN],
                "{name}"
            );
        }
    }
}
