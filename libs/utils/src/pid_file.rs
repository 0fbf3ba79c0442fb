//! One process per data directory: a file with the process id, locked for the life of the process.
//!
//! The lock is what counts; the number is for people and for sending signals. The file is never
//! deleted, because deleting it could free the name while another process waits for the lock.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The claimed file. Keep it for the life of the process: dropping it gives the claim up.
#[derive(Debug)]
pub struct PidFile {
    _locked: File,
}

/// The data directory could not be claimed, or its claim not examined.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// Another process holds it.
    #[error("pid file {path} is held by process {pid}: is another instance running?")]
    Held {
        /// The file.
        path: PathBuf,
        /// The number in it, as text.
        pid: String,
    },
    /// The file could not be read or written.
    #[error("cannot use pid file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Who holds a pid file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Holder {
    /// There is no such file.
    NoFile,
    /// The file is there, but nobody holds it.
    Nobody,
    /// This process does.
    Process(u32),
}

/// Claims `path` for this process.
pub fn claim(path: &Path) -> Result<PidFile, PidFileError> {
    let io_error = |source| PidFileError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(io_error)?;
    if let Err(error) = file.try_lock() {
        return match error {
            std::fs::TryLockError::WouldBlock => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(io_error)?;
                Err(PidFileError::Held {
                    path: path.to_owned(),
                    pid: pid.trim().to_owned(),
                })
            }
            std::fs::TryLockError::Error(error) => Err(io_error(error)),
        };
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        write!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(io_error)?;
    Ok(PidFile { _locked: file })
}

/// Looks who holds `path`, claiming nothing.
pub fn holder(path: &Path) -> Result<Holder, PidFileError> {
    let io_error = |source| PidFileError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Holder::NoFile),
        Err(error) => return Err(io_error(error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Holder::Nobody),
        Err(std::fs::TryLockError::Error(error)) => Err(io_error(error)),
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(io_error)?;
            // Locked, but the pid is still to be written: in a moment it is held.
            if pid.trim().is_empty() {
                return Ok(Holder::Nobody);
            }
            let number = pid.trim().parse().map_err(|_| {
                let text = format!("'{}' is not a process id", pid.trim());
                io_error(std::io::Error::new(std::io::ErrorKind::InvalidData, text))
            })?;
            Ok(Holder::Process(number))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_without_a_pid_yet_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        let _claimed = claim(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert_eq!(holder(&path).unwrap(), Holder::Nobody);
        std::fs::write(&path, "nonsense").unwrap();
        assert!(holder(&path).is_err());
    }

    #[test]
    fn only_one_claim_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        assert_eq!(holder(&path).unwrap(), Holder::NoFile);
        let claimed = claim(&path).unwrap();
        assert_eq!(holder(&path).unwrap(), Holder::Process(std::process::id()));
        assert!(matches!(claim(&path), Err(PidFileError::Held { .. })));
        drop(claimed);
        assert_eq!(holder(&path).unwrap(), Holder::Nobody);
        claim(&path).unwrap();
    }
}
