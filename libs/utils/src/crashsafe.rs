//! Files and directories that are there after a crash, whole or not at all.
//!
//! A new file becomes durable in four steps: write under a temporary name, fsync it, rename it, fsync
//! the directory. A crash before the rename leaves a temporary file that start-up removes by its
//! suffix; a crash after it leaves the whole new file or the whole old one.
//!
//! Blocking: call from `spawn_blocking` or at start-up.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Suffix of files and directories that a crash may leave behind and start-up removes.
pub const TEMP_SUFFIX: &str = ".___temp";

/// A step of a durable change failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct CrashsafeError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

impl CrashsafeError {
    fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| CrashsafeError { action, path, source }
    }
}

/// `path` with `suffix` appended to its last component, dots or not.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes the names in the directory `path` durable.
pub fn fsync_dir(path: &Path) -> Result<(), CrashsafeError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(CrashsafeError::at("fsync directory", path))
}

/// Makes the contents of the file `path` durable.
pub fn fsync_file(path: &Path) -> Result<(), CrashsafeError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(CrashsafeError::at("fsync file", path))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Creates a directory whose parent exists, and makes its name durable.
pub fn create_dir(path: &Path) -> Result<(), CrashsafeError> {
    std::fs::create_dir(path).map_err(CrashsafeError::at("create directory", path))?;
    fsync_dir(parent(path))
}

/// Creates a directory and the parents it lacks, and makes all their names durable.
pub fn create_dir_all(path: &Path) -> Result<(), CrashsafeError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    std::fs::create_dir_all(path).map_err(CrashsafeError::at("create directory", path))?;
    missing
        .iter()
        .rev()
        .filter(|dir| **dir != Path::new(""))
        .try_for_each(|dir| fsync_dir(parent(dir)))
}

/// Renames within one file system and makes both directories' names durable.
/// What `from` holds must be durable already.
pub fn rename(from: &Path, to: &Path) -> Result<(), CrashsafeError> {
    std::fs::rename(from, to).map_err(CrashsafeError::at("rename", from))?;
    fsync_dir(parent(to))?;
    if parent(from) == parent(to) {
        Ok(())
    } else {
        fsync_dir(parent(from))
    }
}

/// Removes a file, and makes that durable. A file that is not there is a success.
pub fn remove_file(path: &Path) -> Result<(), CrashsafeError> {
    match std::fs::remove_file(path) {
        Ok(()) => fsync_dir(parent(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(CrashsafeError::at("remove file", path)(error)),
    }
}

/// Removes a directory with all it holds. One that is not there is a success.
///
/// Not atomic: rename the directory to a name with [`TEMP_SUFFIX`] first where half of it matters.
pub fn remove_dir_all(path: &Path) -> Result<(), CrashsafeError> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => fsync_dir(parent(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(CrashsafeError::at("remove directory", path)(error)),
    }
}

/// Replaces the file `path` by one that holds `contents`: after a crash it has the old contents or
/// the new, never a mixture. `temp` is the temporary name, on the same file system.
pub fn write_atomically(path: &Path, temp: &Path, contents: &[u8]) -> Result<(), CrashsafeError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(temp)
        .map_err(CrashsafeError::at("create file", temp))?;
    file.write_all(contents)
        .map_err(CrashsafeError::at("write file", temp))?;
    file.sync_all().map_err(CrashsafeError::at("fsync file", temp))?;
    drop(file);
    rename(temp, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, temp) = (dir.path().join("f"), dir.path().join("f.___temp"));
        std::fs::write(&temp, "left over from a crash, and longer than what follows").unwrap();
        write_atomically(&path, &temp, b"one").unwrap();
        write_atomically(&path, &temp, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert!(!temp.exists());
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no/such/dir");
        let error = write_atomically(&missing, &missing, b"").unwrap_err();
        assert!(error.to_string().contains("no/such/dir"), "{error}");
        remove_file(&missing).unwrap();
        remove_dir_all(&missing).unwrap();
        create_dir_all(&missing).unwrap();
        create_dir_all(&missing).unwrap();
    }
}
