//! Finding a tenant's timelines, on disk and in object storage, at start and when it is attached.
//!
//! What a crash left behind is removed, ancestors come before branches. Object storage is read even if all seems
//! to be here: another process may have come farther, or have deleted a timeline.
//!
//! A timeline whose metadata is damaged goes on from its index. One whose index is damaged, or that has neither, is left
//! out with all its branches, and the others go on: without garbage collection, since nobody knows what it reads of them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use remote_storage::{GenericRemoteStorage, Retryable, pause_after};
use utils::crashsafe::{self, CrashsafeError, TEMP_SUFFIX};
use utils::id::{TenantId, TenantTimelineId, TimelineId};

use super::{Tenant, TenantState, paths};
use crate::layers::LayerError;
use crate::remote::download::{self, DownloadError};
use crate::remote::index::IndexPart;
use crate::remote::retry::{self, error_chain};
use crate::timeline::metadata::{self, DecodeMetadataError, TimelineMetadata};
use crate::timeline::{Timeline, TimelineParts};

/// Indexes of one tenant that are downloaded at the same time.
const INDEX_DOWNLOADS_MAX: usize = 16;

/// A tenant cannot be read.
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
    /// What object storage has cannot be used.
    #[error("cannot load from object storage")]
    Remote(#[from] DownloadError),
    /// There is nothing to attach.
    #[error("no timelines found on the remote storage")]
    NothingRemote,
    /// The tenant is being stopped.
    #[error("the tenant is shutting down")]
    Stopping,
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

/// A timeline of which there is something, here or in object storage.
struct Found {
    metadata: TimelineMetadata,
    index: Option<IndexPart>,
}

/// What there is of each timeline, or why it cannot be used.
type PerTimeline<T> = BTreeMap<TimelineId, Result<T, LoadError>>;

/// What both sides together come to.
#[derive(Default)]
struct Merged {
    found: BTreeMap<TimelineId, Found>,
    unusable: BTreeMap<TimelineId, LoadError>,
}

impl Tenant {
    /// Finds all timelines, here and in object storage, and makes them visible together.
    ///
    /// What object storage refuses for now is asked for until the tenant is stopped.
    pub(super) async fn load_timelines(self: &Arc<Self>) -> Result<(), LoadError> {
        let dir = paths::timelines_dir(&self.dir);
        let mut local = utils::blocking::run(move || read_timelines_dir(&dir)).await?;
        let mut indexes = match self.context.remote.clone() {
            Some(storage) => self.find_remote(&storage).await?,
            None => BTreeMap::new(),
        };
        let is_deleted =
            |index: &Result<IndexPart, _>| index.as_ref().is_ok_and(|index| index.deleted_at.is_some());
        for (id, index) in indexes.extract_if(.., |_, index| is_deleted(index)) {
            let deleted_at = index.ok().and_then(|index| index.deleted_at);
            tracing::info!(tenant_id = %self.id, timeline_id = %id,
                "resuming the deletion begun at {}", deleted_at.unwrap_or_default());
            local.remove(&id);
            self.resume_deletion(id).await?;
        }
        if local.is_empty() && indexes.is_empty() && self.state() == TenantState::Attaching {
            return Err(LoadError::NothingRemote);
        }
        let tenant = Arc::clone(self);
        let timelines = utils::blocking::run(move || {
            let merged = tenant.merge(local, indexes)?;
            tenant.make_timelines(merged)
        })
        .await?;
        fail::fail_point!("attach-before-register");
        let mut registered = self.timelines.write();
        assert!(registered.is_empty(), "{self:?} is loaded once");
        *registered = timelines;
        Ok(())
    }

    /// The indexes of all timelines in object storage.
    async fn find_remote(&self, storage: &GenericRemoteStorage) -> Result<PerTimeline<IndexPart>, LoadError> {
        let mut failures = 0_u32;
        loop {
            let error = match download_indexes((storage, &self.cancel), self.id).await {
                Ok(indexes) => return Ok(indexes),
                Err(DownloadError::Stopping) => return Err(LoadError::Stopping),
                Err(error) if error.is_permanent() => return Err(error.into()),
                Err(error) => error,
            };
            failures = failures.saturating_add(1);
            let what = format!("tenant {}: cannot read its indexes", self.id);
            retry::log_failure(&what, failures, &error);
            tokio::select! {
                () = tokio::time::sleep(pause_after(failures)) => {}
                () = self.cancel.cancelled() => return Err(LoadError::Stopping),
            }
        }
    }

    /// Both sides together: whichever has come farther counts. Metadata that only object storage has is
    /// written here. Blocking.
    fn merge(
        &self,
        mut local: PerTimeline<TimelineMetadata>,
        indexes: PerTimeline<IndexPart>,
    ) -> Result<Merged, LoadError> {
        let mut merged = Merged::default();
        for (id, index) in indexes {
            let here = local.remove(&id);
            let index = match index {
                Ok(index) => index,
                Err(error) => {
                    merged.unusable.insert(id, error);
                    continue;
                }
            };
            let here = here.and_then(|here| {
                let damaged = |error: &LoadError| {
                    tracing::warn!(tenant_id = %self.id, timeline_id = %id,
                        "{}, going on from object storage", error_chain(error));
                };
                here.inspect_err(damaged).ok()
            });
            let metadata = here.map_or(index.metadata, |here| here.newer(index.metadata));
            if here != Some(metadata) {
                let dir = paths::timeline_dir(&self.dir, id);
                crashsafe::create_dir_all(&dir)?;
                fail::fail_point!("attach-before-write-metadata");
                metadata.write(&dir)?;
            }
            let index = Some(index);
            merged.found.insert(id, Found { metadata, index });
        }
        for (id, metadata) in local {
            match metadata {
                Ok(metadata) => drop(merged.found.insert(
                    id,
                    Found {
                        metadata,
                        index: None,
                    },
                )),
                Err(error) => drop(merged.unusable.insert(id, error)),
            }
        }
        Ok(merged)
    }

    /// Makes the timelines, ancestors first. Blocking.
    fn make_timelines(&self, merged: Merged) -> Result<BTreeMap<TimelineId, Arc<Timeline>>, LoadError> {
        let Merged {
            found: mut waiting,
            unusable,
        } = merged;
        let mut made: BTreeMap<TimelineId, Arc<Timeline>> = BTreeMap::new();
        while let Some(id) = next_loadable(&waiting, &made) {
            let Found { metadata, index } = waiting.remove(&id).expect("it was found there");
            let ancestor = metadata.ancestor.map(|(ancestor, lsn)| {
                let ancestor = Arc::clone(&made[&ancestor]);
                ancestor.keep_branch_point(id, lsn);
                ancestor
            });
            let timeline = Timeline::new(TimelineParts {
                id: TenantTimelineId::new(self.id, id),
                dir: paths::timeline_dir(&self.dir, id),
                metadata,
                index: index.clone(),
                ancestor,
                config: Arc::clone(&self.config),
                context: Arc::clone(&self.context),
            });
            timeline.load_layers(index.as_ref())?;
            made.insert(id, timeline);
        }
        let orphans = waiting.into_iter().map(|(timeline, found)| {
            let ancestor = found.metadata.ancestor.map(|(id, _)| id).unwrap_or_default();
            (timeline, LoadError::Ancestor { timeline, ancestor })
        });
        self.leave_out(unusable.into_iter().chain(orphans).collect(), &made)?;
        Ok(made)
    }

    /// Reserves the names of timelines that cannot be used, and keeps the others as they are for them.
    ///
    /// # Errors
    /// There are no others: why the first cannot be used.
    fn leave_out(
        &self,
        unusable: Vec<(TimelineId, LoadError)>,
        made: &BTreeMap<TimelineId, Arc<Timeline>>,
    ) -> Result<(), LoadError> {
        for (id, error) in unusable {
            if made.is_empty() {
                return Err(error);
            }
            tracing::error!(tenant_id = %self.id, timeline_id = %id,
                "timeline cannot be used and is left out: {}", error_chain(&error));
            self.creating.lock().insert(id);
            for timeline in made.values() {
                timeline.keep_all_for(id);
            }
        }
        Ok(())
    }
}

/// The indexes of all timelines of the tenant that have one. Fails as a whole if one cannot be had.
async fn download_indexes(
    source: download::Source<'_>,
    tenant: TenantId,
) -> Result<PerTimeline<IndexPart>, DownloadError> {
    let ids = download::list_timelines(source, tenant).await?;
    let indexes: Vec<(TimelineId, Option<Result<IndexPart, LoadError>>)> = futures::stream::iter(ids)
        .map(|id| async move {
            let index = download::download_index(source, TenantTimelineId::new(tenant, id)).await;
            match index {
                Ok(index) => Ok((id, index.map(Ok))),
                Err(error @ DownloadError::Index { .. }) => Ok((id, Some(Err(error.into())))),
                Err(error) => Err(error),
            }
        })
        .buffer_unordered(INDEX_DOWNLOADS_MAX)
        .try_collect()
        .await?;
    // Without an index there may be layers, of a timeline whose creation never ended.
    let with_index = indexes.into_iter().filter_map(|(id, index)| Some((id, index?)));
    Ok(with_index.collect())
}

/// A timeline whose ancestor, if it has one, is there already.
fn next_loadable(
    waiting: &BTreeMap<TimelineId, Found>,
    made: &BTreeMap<TimelineId, Arc<Timeline>>,
) -> Option<TimelineId> {
    let is_loadable = |found: &Found| {
        found
            .metadata
            .ancestor
            .is_none_or(|(id, _)| made.contains_key(&id))
    };
    let next = waiting.iter().find(|(_, found)| is_loadable(found));
    next.map(|(id, _)| *id)
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
fn read_timelines_dir(dir: &Path) -> Result<PerTimeline<TimelineMetadata>, LoadError> {
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
                if let Some(metadata) = read_metadata(&dir.join(name)).transpose() {
                    found.insert(id, metadata);
                }
            }
            Err(_) => tracing::warn!(dir = %dir.display(), "unrecognized name {name:?}"),
        }
    }
    Ok(found)
}

/// The metadata of a timeline; `None` for a directory without anything of worth, which is removed: a crash
/// came before there was metadata in it.
fn read_metadata(dir: &Path) -> Result<Option<TimelineMetadata>, LoadError> {
    let names = list_dir(dir)?;
    if names.iter().all(|name| name.ends_with(TEMP_SUFFIX)) {
        crashsafe::remove_dir_all(dir)?;
        return Ok(None);
    }
    let path = dir.join(metadata::FILE_NAME);
    let raw = std::fs::read(&path).map_err(LoadError::io(&path))?;
    TimelineMetadata::decode(&raw)
        .map(Some)
        .map_err(|source| LoadError::Metadata { path, source })
}
