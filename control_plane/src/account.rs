//! The account PostgreSQL's programs run under.
//!
//! They refuse to run as root. When we are root, they run as the account `postgres` (or
//! `$NEON_POSTGRES_ACCOUNT`), which must own the data directories and be able to reach them and the
//! programs it starts.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::unistd::{Gid, Uid, User, chown};

const DEFAULT_ACCOUNT: &str = "postgres";

/// Runs PostgreSQL's programs: as ourselves, or as another account if we are root.
#[derive(Clone, Debug)]
pub struct Account {
    other: Option<User>,
}

impl Account {
    /// The account to use.
    ///
    /// # Errors
    /// We are root and there is no such account.
    pub fn find() -> Result<Self> {
        if !Uid::effective().is_root() {
            return Ok(Account { other: None });
        }
        let name = std::env::var("NEON_POSTGRES_ACCOUNT").unwrap_or_else(|_| DEFAULT_ACCOUNT.to_owned());
        let user = User::from_name(&name)
            .with_context(|| format!("cannot look up account '{name}'"))?
            .with_context(|| {
                format!(
                    "PostgreSQL refuses to run as root, and there is no account '{name}' to run it as. \
                     Create it, or name another in NEON_POSTGRES_ACCOUNT"
                )
            })?;
        Ok(Account { other: Some(user) })
    }

    /// Makes `command` run under this account.
    pub fn apply(&self, command: &mut Command) {
        if let Some(user) = &self.other {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
    }

    /// Gives `path` and everything below to this account.
    pub fn own_all(&self, path: &Path) -> Result<()> {
        let Some(user) = &self.other else { return Ok(()) };
        chown_tree(path, user.uid, user.gid)
            .with_context(|| format!("cannot give {} to account '{}'", path.display(), user.name))
    }

    /// Whether this account may enter all directories that lead to `path` and, if it is a program, run it.
    pub fn reaches(&self, path: &Path) -> bool {
        let Some(user) = &self.other else { return true };
        let Ok(path) = path.canonicalize() else {
            return false;
        };
        path.ancestors().all(|step| may_execute(step, user))
    }
}

/// Whether `user` has the execute (for a directory: enter) permission by the mode bits.
fn may_execute(path: &Path, user: &User) -> bool {
    let Ok(metadata) = path.metadata() else {
        return false;
    };
    let mode = metadata.permissions().mode();
    if metadata.uid() == user.uid.as_raw() {
        mode & 0o100 != 0
    } else if metadata.gid() == user.gid.as_raw() {
        mode & 0o010 != 0
    } else {
        mode & 0o001 != 0
    }
}

fn chown_tree(path: &Path, uid: Uid, gid: Gid) -> std::io::Result<()> {
    chown(path, Some(uid), Some(gid))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            chown_tree(&entry?.path(), uid, gid)?;
        }
    }
    Ok(())
}

/// A directory that any account can reach, for what the repository directory cannot hold because it
/// lies below a private directory. Made once; the caller keeps its name.
pub fn create_reachable_dir() -> Result<PathBuf> {
    let dir = tempfile::Builder::new()
        .prefix("neon_local.")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir_in("/var/tmp")
        .context("cannot create a directory in /var/tmp")?;
    Ok(dir.keep())
}
