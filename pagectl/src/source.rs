//! Where the parts of a timeline are: its directory, and its objects if there is object storage.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use pageserver::remote::index::{FILE_LEN_MAX, IndexPart};
use pageserver::remote::paths;
use pageserver::timeline::metadata::{self, TimelineMetadata};
use remote_storage::{GenericRemoteStorage, RemotePath, RemoteStorageError, RetryError, retry_download};
use tokio_util::sync::CancellationToken;
use utils::id::{TenantId, TenantTimelineId, TimelineId};

/// A timeline, by where it is.
#[derive(Clone, Debug)]
pub struct Source {
    /// Which timeline.
    pub id: TenantTimelineId,
    /// Its directory, `.../<tenant>/timelines/<timeline>`, which may be missing.
    pub dir: PathBuf,
    /// Where its objects are, if anywhere.
    pub remote: Option<GenericRemoteStorage>,
}

impl Source {
    /// The timeline whose directory is, or was, `dir`; the path says which it is.
    pub fn new(dir: &Path, remote: Option<GenericRemoteStorage>) -> Result<Self> {
        let absolute = std::path::absolute(dir).with_context(|| format!("cannot use {}", dir.display()))?;
        let component = |level: usize| absolute.ancestors().nth(level)?.file_name()?.to_str();
        let timeline = component(0).and_then(|name| name.parse::<TimelineId>().ok());
        let tenant = component(2).and_then(|name| name.parse::<TenantId>().ok());
        let (tenant, timeline) = tenant.zip(timeline).ok_or_else(|| {
            anyhow!(
                "{} is not a path .../<tenant>/timelines/<timeline>",
                absolute.display()
            )
        })?;
        Ok(Source {
            id: TenantTimelineId::new(tenant, timeline),
            dir: absolute,
            remote,
        })
    }

    /// The directory of all timelines of the tenant.
    pub fn siblings_dir(&self) -> &Path {
        self.dir.parent().expect("the path has a tenant's id in it")
    }

    /// The metadata file; `None` if there is none.
    pub fn read_metadata(&self) -> Result<Option<TimelineMetadata>> {
        read_metadata(&self.dir)
    }

    /// The index object as it is; `None` if there is none, or no object storage.
    pub async fn read_index(&self) -> Result<Option<Vec<u8>>> {
        match &self.remote {
            Some(storage) => read_object(storage, &paths::index(self.id)).await,
            None => Ok(None),
        }
    }

    /// The timelines that branched off this one, and where, as far as they can be read here and in object storage.
    pub async fn branch_points(&self) -> Result<Vec<(TimelineId, utils::lsn::Lsn)>> {
        let mut found = std::collections::BTreeMap::new();
        let mut add = |id, metadata: TimelineMetadata| {
            if let Some((ancestor, lsn)) = metadata.ancestor
                && ancestor == self.id.timeline_id
            {
                found.insert(id, lsn);
            }
        };
        for id in subdirectories(self.siblings_dir()) {
            if let Ok(Some(metadata)) = read_metadata(&self.siblings_dir().join(id.to_string())) {
                add(id, metadata);
            }
        }
        if let Some(storage) = &self.remote {
            let listing = storage.list(Some(&paths::timelines(self.id.tenant_id))).await;
            let prefixes = listing.context("cannot list the tenant's timelines")?.prefixes;
            for id in prefixes
                .iter()
                .filter_map(|prefix| prefix.object_name().parse().ok())
            {
                let path = paths::index(TenantTimelineId::new(self.id.tenant_id, id));
                let raw = read_object(storage, &path).await?;
                if let Some(Ok(index)) = raw.map(|raw| IndexPart::decode(&raw)) {
                    add(id, index.metadata);
                }
            }
        }
        let mut points: Vec<_> = found.into_iter().collect();
        points.sort_by_key(|(_, lsn)| *lsn);
        Ok(points)
    }
}

/// The metadata file in a timeline's directory; `None` if there is none.
fn read_metadata(dir: &Path) -> Result<Option<TimelineMetadata>> {
    let path = dir.join(metadata::FILE_NAME);
    let raw = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        raw => raw.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let metadata = TimelineMetadata::decode(&raw);
    metadata
        .map(Some)
        .with_context(|| format!("cannot use {}", path.display()))
}

/// Timelines that have a directory in `dir`.
fn subdirectories(dir: &Path) -> Vec<TimelineId> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// An object as it is, up to the length of the longest index; `None` if there is none.
async fn read_object(storage: &GenericRemoteStorage, path: &RemotePath) -> Result<Option<Vec<u8>>> {
    let cancel = CancellationToken::new();
    let read = || storage.read(path, FILE_LEN_MAX);
    match retry_download(format!("download of {path}"), &cancel, read).await {
        Err(RetryError::Failed(RemoteStorageError::NotFound(_))) => Ok(None),
        read => read
            .map(Some)
            .with_context(|| format!("cannot read object {path}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_says_which_timeline_it_is() {
        let (tenant, timeline) = (TenantId::generate(), TimelineId::generate());
        let dir = PathBuf::from(format!("x/tenants/{tenant}/timelines/{timeline}"));
        let source = Source::new(&dir, None).unwrap();
        assert_eq!(source.id, TenantTimelineId::new(tenant, timeline));
        for bad in ["/", "x", &format!("{tenant}"), &format!("timelines/{timeline}")] {
            assert!(Source::new(Path::new(bad), None).is_err(), "{bad}");
        }
    }
}
