//! Reading a tenant from disk at start: what a crash left behind is removed, ancestors come before branches.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use utils::crashsafe::{self, CrashsafeError, TEMP_SUFFIX};
use utils::id::{TenantTimelineId, TimelineId};

use super::{Tenant, paths};
use crate::layers::LayerError;
use crate::timeline::metadata::{self, DecodeMetadataError, TimelineMetadata};
use crate::timeline::{Timeline, TimelineParts};

/// A tenant cannot be read from disk.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The operating system refused.
    #[error("cannot read {path}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// What a crash left behind cannot be removed.
    #[error("cannot clean up")]
    CleanUp(#[from] CrashsafeError),
    /// The layer files of a timeline cannot be listed.
    #[error("cannot load the layers of a timeline")]
    Layers(#[from] LayerError),
    /// A metadata file is not one.
    #[error("cannot use {path}")]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: DecodeMetadataError,
    },
    /// A timeline's ancestor is missing, or its own descendant.
    #[error("timeline {timeline} has ancestor {ancestor}, which cannot be loaded before it")]
    Ancestor {
        /// The branch.
        timeline: TimelineId,
        /// What it branched off.
        ancestor: TimelineId,
    },
}

impl LoadError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| LoadError::Io { path, source }
    }
}

impl Tenant {
    /// Reads all timelines from disk. Blocking.
    pub(super) fn load_timelines(&self) -> Result<(), LoadError> {
        let mut waiting = read_timelines_dir(&paths::timelines_dir(&self.dir))?;
        loop {
            let next = next_loadable(&waiting, &self.timelines.read());
            let Some((id, metadata)) = next else {
                break;
            };
            waiting.remove(&id);
            let ancestor = metadata.ancestor.map(|(ancestor, lsn)| {
                let ancestor = Arc::clone(&self.timelines.read()[&ancestor]);
                ancestor.keep_branch_point(id, lsn);
                ancestor
            });
            let timeline = Timeline::new(TimelineParts {
                id: TenantTimelineId::new(self.id, id),
                dir: paths::timeline_dir(&self.dir, id),
                metadata,
                ancestor,
                config: Arc::clone(&self.config),
                context: Arc::clone(&self.context),
            });
            timeline.load_layers()?;
            self.timelines.write().insert(id, timeline);
        }
        match waiting.iter().next() {
            None => Ok(()),
            Some((timeline, metadata)) => Err(LoadError::Ancestor {
                timeline: *timeline,
                ancestor: metadata.ancestor.map(|(id, _)| id).unwrap_or_default(),
            }),
        }
    }
}

/// A timeline whose ancestor, if it has one, is there already.
fn next_loadable(
    waiting: &BTreeMap<TimelineId, TimelineMetadata>,
    loaded: &BTreeMap<TimelineId, Arc<Timeline>>,
) -> Option<(TimelineId, TimelineMetadata)> {
    waiting
        .iter()
        .find(|(_, metadata)| metadata.ancestor.is_none_or(|(id, _)| loaded.contains_key(&id)))
        .map(|(id, metadata)| (*id, *metadata))
}

/// Names in a directory; those that are not UTF-8 are none of ours. A missing directory is empty.
pub(super) fn list_dir(dir: &Path) -> Result<Vec<String>, LoadError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LoadError::io(dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(LoadError::io(dir))?.file_name();
        match name.into_string() {
            Ok(name) => names.push(name),
            Err(name) => tracing::warn!(dir = %dir.display(), "unrecognized name {name:?}"),
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Removes what is unfinished and reads the metadata of the rest.
fn read_timelines_dir(dir: &Path) -> Result<BTreeMap<TimelineId, TimelineMetadata>, LoadError> {
    let mut found = BTreeMap::new();
    for name in list_dir(dir)? {
        let path = dir.join(&name);
        if let Some(unfinished) = name.strip_suffix(paths::UNINIT_SUFFIX) {
            tracing::info!(timeline = unfinished, "removing unfinished timeline");
            paths::remove_unfinished_timeline(&dir.join(unfinished))?;
        } else if name.ends_with(TEMP_SUFFIX) {
            crashsafe::remove_dir_all(&path)?;
        }
    }
    for name in list_dir(dir)? {
        match name.parse::<TimelineId>() {
            Ok(id) => {
                if let Some(metadata) = read_metadata(&dir.join(name))? {
                    found.insert(id, metadata);
                }
            }
            Err(_) => tracing::warn!(dir = %dir.display(), "unrecognized name {name:?}"),
        }
    }
    Ok(found)
}

/// The metadata of a timeline; `None` for an empty directory, which is removed: its mark was lost
/// in a crash before anything was in it.
fn read_metadata(dir: &Path) -> Result<Option<TimelineMetadata>, LoadError> {
    if list_dir(dir)?.is_empty() {
        crashsafe::remove_dir_all(dir)?;
        return Ok(None);
    }
    let path = dir.join(metadata::FILE_NAME);
    let raw = std::fs::read(&path).map_err(LoadError::io(&path))?;
    TimelineMetadata::decode(&raw)
        .map(Some)
        .map_err(|source| LoadError::Metadata { path, source })
}
