//! Running `initdb`.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User, chown};

use super::cluster::ImportError;

/// How to run `initdb`. All its answers are those of PostgreSQL's defaults, but: UTF-8, the C locale
/// (a database may choose another), no data checksums.
#[derive(Clone, Debug)]
pub struct Initdb {
    /// Directory of PostgreSQL's programs.
    pub bin_dir: PathBuf,
    /// Directory of PostgreSQL's shared libraries, if they are not where the system looks.
    pub lib_dir: Option<PathBuf>,
    /// Operating system account to run it as if this process is root, which PostgreSQL refuses.
    pub account: String,
    /// Name of the database superuser.
    pub superuser: String,
}

impl Initdb {
    /// Makes a cluster in a new temporary directory, which disappears with the returned value. Blocks for about a second.
    pub(super) fn run(&self) -> Result<tempfile::TempDir, ImportError> {
        let directory = tempfile::Builder::new()
            .prefix("initdb-")
            .tempdir()
            .map_err(|e| ImportError::Initdb(format!("cannot make a temporary directory for initdb: {e}")))?;
        let pgdata = directory.path().join("pgdata");
        let mut command = self.command(&pgdata);
        if Uid::effective().is_root() {
            self.drop_privileges(&mut command, directory.path())?;
        }
        let program = self.bin_dir.join("initdb");
        let output = command
            .output()
            .map_err(|e| ImportError::Initdb(format!("cannot run {}: {e}", program.display())))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(ImportError::Initdb(format!(
                "initdb failed ({}): {}",
                output.status,
                text.trim()
            )));
        }
        Ok(directory)
    }

    fn command(&self, pgdata: &Path) -> Command {
        let mut command = Command::new(self.bin_dir.join("initdb"));
        // One argument, so that no name is taken for an option.
        command.arg(format!("--username={}", self.superuser));
        command.args(["--encoding", "UTF8", "--no-locale", "--auth", "trust"]);
        command
            .args(["--no-sync", "--no-instructions", "--pgdata"])
            .arg(pgdata);
        // Nothing of our own environment may change the cluster.
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TZ", "UTC");
        if let Some(lib_dir) = &self.lib_dir {
            command.env("LD_LIBRARY_PATH", lib_dir);
        }
        command.current_dir("/");
        command
    }

    fn drop_privileges(&self, command: &mut Command, directory: &Path) -> Result<(), ImportError> {
        let fail = |reason: &dyn std::fmt::Display| {
            ImportError::Initdb(format!(
                "cannot run initdb as account '{}': {reason}",
                self.account
            ))
        };
        let user = User::from_name(&self.account).map_err(|e| fail(&e))?;
        let user = user.ok_or_else(|| fail(&"there is no such account"))?;
        chown(directory, Some(user.uid), Some(user.gid)).map_err(|e| fail(&e))?;
        // As root, setting the user id also drops the supplementary groups.
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        Ok(())
    }
}

/// All files under `directory`.
pub(super) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else if entry.path().extension() != Some(OsStr::new("pid")) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}
