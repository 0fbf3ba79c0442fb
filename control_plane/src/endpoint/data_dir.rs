//! What is in an endpoint's data directory, and how it gets there.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio_util::io::{StreamReader, SyncIoBridge};
use utils::lsn::Lsn;

use super::EndpointConf;
use crate::account::Account;
use crate::env::LocalEnv;
use crate::pageserver::Pageserver;

/// PostgreSQL refuses a data directory that others can read.
const DIR_MODE: u32 = 0o700;

/// What outlives a start: the endpoint's identity, the log of earlier runs, and what `--sync-safekeepers`
/// tells the proposer of the server to come.
const KEPT: [&str; 3] = ["postgresql.conf", "pg.log", "walproposer.empty"];

/// Makes the directory, which must not exist; its parents are open to all.
pub fn create(dir: &Path) -> Result<()> {
    let parent = dir.parent().context("a data directory has a parent")?;
    std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    std::fs::DirBuilder::new()
        .mode(DIR_MODE)
        .create(dir)
        .with_context(|| format!("cannot create {}", dir.display()))
}

/// Removes everything that a base backup brings anew.
pub fn wipe(dir: &Path) -> Result<()> {
    let context = || format!("cannot empty {}", dir.display());
    for entry in std::fs::read_dir(dir).with_context(context)? {
        let entry = entry.with_context(context)?;
        if KEPT.iter().any(|kept| entry.file_name() == *kept) {
            continue;
        }
        let path = entry.path();
        let removed = match entry.file_type().with_context(context)?.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Fills the directory from the pageserver, as of `lsn` or the end of the timeline.
pub async fn fetch_base_backup(
    env: &LocalEnv,
    conf: &EndpointConf,
    lsn: Option<Lsn>,
    dir: &Path,
) -> Result<()> {
    let mut client = Pageserver::new(env).connect(conf.tenant_id).await?;
    let mut command = format!("basebackup {} {}", conf.tenant_id, conf.timeline_id);
    if let Some(lsn) = lsn {
        command.push_str(&format!(" {lsn}"));
    }
    let copy = client
        .copy_out(&command)
        .await
        .context("the pageserver refused a base backup")?;
    let chunks = futures::stream::try_unfold(copy, async |mut copy| {
        let chunk = copy.next().await.map_err(std::io::Error::other)?;
        Ok::<_, std::io::Error>(chunk.map(|chunk| (chunk, copy)))
    });
    let reader = StreamReader::new(Box::pin(chunks));
    let bridge = SyncIoBridge::new(reader);
    let mut archive = tar::Archive::new(bridge);
    // An error inside the stream comes after the archive's end marker.
    archive.set_ignore_zeros(true);
    archive.set_overwrite(true);
    let unpacked = tokio::task::block_in_place(|| unpack(archive, dir));
    unpacked.with_context(|| format!("cannot unpack the base backup into {}", dir.display()))
}

/// Unpacks all but the configuration, which is ours.
fn unpack(mut archive: tar::Archive<impl std::io::Read>, dir: &Path) -> std::io::Result<()> {
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.as_os_str() != "postgresql.conf" {
            entry.unpack_in(dir)?;
        }
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(DIR_MODE))
}

/// Replication slots, below a data directory.
fn slots(dir: &Path) -> Result<Vec<PathBuf>> {
    let path = dir.join("pg_replslot");
    let context = || format!("cannot list {}", path.display());
    let entries = std::fs::read_dir(&path).with_context(context)?;
    entries
        .map(|entry| Ok(entry.with_context(context)?.path()))
        .collect()
}

/// Whether the base backup brought replication slots.
pub fn has_replication_slots(dir: &Path) -> Result<bool> {
    Ok(!slots(dir)?.is_empty())
}

/// Removes them: a compute that only reads serves no subscriber, and may lack the settings they need.
pub fn remove_replication_slots(dir: &Path) -> Result<()> {
    for slot in slots(dir)? {
        std::fs::remove_dir_all(&slot).with_context(|| format!("cannot remove {}", slot.display()))?;
    }
    Ok(())
}

/// A walproposer that PostgreSQL's account can run: the installed one, or a copy beside the data
/// directories if the installed one lies below a private directory.
pub fn reachable_walproposer(env: &LocalEnv, account: &Account) -> Result<PathBuf> {
    let program = env.binary("walproposer");
    if account.reaches(&program) {
        return Ok(program);
    }
    let dir = env.compute_root().join("bin");
    let copy = dir.join("walproposer");
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    let current = match (modified(&copy), modified(&program)) {
        (Ok(copied), Ok(built)) => copied >= built,
        _ => false,
    };
    if !current {
        // By way of a new file: a walproposer may be running from the old one.
        let context = || format!("cannot copy {} to {}", program.display(), copy.display());
        std::fs::create_dir_all(&dir).with_context(context)?;
        let temp = utils::crashsafe::with_suffix(&copy, ".___temp");
        std::fs::copy(&program, &temp).with_context(context)?;
        std::fs::rename(&temp, &copy).with_context(context)?;
    }
    Ok(copy)
}
