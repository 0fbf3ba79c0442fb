//! Fetching from object storage: indexes whole, layers into files.

use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use pageserver_api::layer_name::LayerFileName;
use remote_storage::{
    GenericRemoteStorage, RemotePath, RemoteStorageError, RetryError, Retryable, retry_download,
};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;
use utils::crashsafe;
use utils::id::{TenantId, TenantTimelineId, TimelineId};

use super::index::{DecodeIndexError, FILE_LEN_MAX, IndexPart};
use super::paths;
use crate::disk_space::{DiskSpace, is_out_of_space};

/// Suffix of a file that is being downloaded.
pub const TEMP_DOWNLOAD_SUFFIX: &str = ".temp_download";

/// Something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Object storage does not have it, or cannot be reached.
    #[error("cannot download {path}")]
    Storage {
        /// The object.
        path: RemotePath,
        /// The cause.
        source: RemoteStorageError,
    },
    /// It broke off.
    #[error("download of {path} broke off")]
    Stream {
        /// The object.
        path: RemotePath,
        /// The cause.
        source: std::io::Error,
    },
    /// The object is not what the index says.
    #[error("object {path} has {got} bytes instead of {want}")]
    Length {
        /// The object.
        path: RemotePath,
        /// In the index.
        want: u64,
        /// What came.
        got: u64,
    },
    /// The file cannot be written here.
    #[error("cannot write {path}")]
    Local {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The object is not an index.
    #[error("{path} is unusable")]
    Index {
        /// The object.
        path: RemotePath,
        /// The cause.
        source: DecodeIndexError,
    },
    /// A test asked for it.
    #[error("failpoint {0}")]
    Failpoint(&'static str),
    /// The timeline is being stopped.
    #[error("the timeline is shutting down")]
    Stopping,
}

impl Retryable for DownloadError {
    fn is_permanent(&self) -> bool {
        match self {
            DownloadError::Storage { source, .. } => source.is_permanent(),
            // An object that is still being replaced, or a read cut short: the next may be whole.
            DownloadError::Length { .. } | DownloadError::Stream { .. } | DownloadError::Failpoint(_) => {
                false
            }
            // There may be room soon.
            DownloadError::Local { source, .. } => !is_out_of_space(source),
            DownloadError::Index { .. } | DownloadError::Stopping => true,
        }
    }
}

impl DownloadError {
    /// Whether there is no such object.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            DownloadError::Storage {
                source: RemoteStorageError::NotFound(_),
                ..
            }
        )
    }

    fn storage(path: &RemotePath) -> impl FnOnce(RemoteStorageError) -> Self {
        let path = path.clone();
        move |source| DownloadError::Storage { path, source }
    }
}

impl From<RetryError<DownloadError>> for DownloadError {
    fn from(error: RetryError<DownloadError>) -> Self {
        match error {
            RetryError::Cancelled => DownloadError::Stopping,
            RetryError::Failed(error) => error,
        }
    }
}

/// Where to read from, and what ends the attempts.
pub type Source<'a> = (&'a GenericRemoteStorage, &'a CancellationToken);

/// The timelines of a tenant of which there is anything in object storage, complete or not.
pub async fn list_timelines(
    (storage, cancel): Source<'_>,
    tenant: TenantId,
) -> Result<Vec<TimelineId>, DownloadError> {
    let path = paths::timelines(tenant);
    let listing = retry_download(format!("list prefixes of {path}"), cancel, async || {
        fail::fail_point!("storage-sync-list-remote-timelines", |_| {
            Err(DownloadError::Failpoint("storage-sync-list-remote-timelines"))
        });
        let listed = storage.list(Some(&path)).await;
        listed.map_err(DownloadError::storage(&path))
    })
    .await?;
    let mut found = Vec::new();
    for prefix in listing.prefixes {
        match prefix.object_name().parse() {
            Ok(id) => found.push(id),
            Err(_) => tracing::warn!("unrecognized name {prefix} in object storage"),
        }
    }
    Ok(found)
}

/// The index of a timeline; `None` if there is none, which means that the timeline is not there.
pub async fn download_index(
    (storage, cancel): Source<'_>,
    id: TenantTimelineId,
) -> Result<Option<IndexPart>, DownloadError> {
    let path = paths::index(id);
    let raw = retry_download(format!("download of {path}"), cancel, async || {
        // One byte more than there may be, so that too long an index does not look like a damaged one.
        let read = storage.read(&path, FILE_LEN_MAX + 1).await;
        read.map_err(DownloadError::storage(&path))
    })
    .await;
    let raw = match raw.map_err(DownloadError::from) {
        Err(error) if error.is_not_found() => return Ok(None),
        raw => raw?,
    };
    if raw.len() as u64 > FILE_LEN_MAX {
        return Err(DownloadError::Length {
            path,
            want: FILE_LEN_MAX,
            got: raw.len() as u64,
        });
    }
    let decoded = IndexPart::decode(&raw).map_err(|source| DownloadError::Index { path, source })?;
    Ok(Some(decoded))
}

/// Downloads a layer of `want` bytes to the file `target`, which appears whole or not at all. If `disk` has no room
/// for it, it is tried again like any other failure that may pass.
pub async fn download_layer(
    (storage, cancel): Source<'_>,
    id: TenantTimelineId,
    (name, want): (&LayerFileName, u64),
    (target, disk): (&Path, &DiskSpace),
) -> Result<(), DownloadError> {
    let path = paths::layer(id, name);
    let temp = crashsafe::with_suffix(target, TEMP_DOWNLOAD_SUFFIX);
    let local = |source| DownloadError::Local {
        path: target.to_owned(),
        source,
    };
    let downloaded = retry_download(format!("download of {path}"), cancel, async || {
        let got = fetch(storage, &path, &temp).await;
        disk.note(&got);
        if got.is_err() {
            // Others may need the room until the next attempt.
            let _ = tokio::fs::remove_file(&temp).await;
        }
        let got = got?;
        if got != want {
            let path = path.clone();
            return Err(DownloadError::Length { path, want, got });
        }
        fail::fail_point!("remote-storage-download-pre-rename", |_| {
            Err(DownloadError::Failpoint("remote-storage-download-pre-rename"))
        });
        // The name need not be durable: without it the layer is fetched again.
        tokio::fs::rename(&temp, target).await.map_err(local)?;
        fail::fail_point!("remote-storage-download-post-rename", |_| {
            Err(DownloadError::Failpoint("remote-storage-download-post-rename"))
        });
        Ok(())
    })
    .await;
    if downloaded.is_err() {
        // What is left of it is removed at the next start at the latest.
        let _ = tokio::fs::remove_file(&temp).await;
    }
    Ok(downloaded?)
}

/// Writes the object to `temp`, durably; returns its length.
async fn fetch(storage: &GenericRemoteStorage, path: &RemotePath, temp: &Path) -> Result<u64, DownloadError> {
    let local = |source| DownloadError::Local {
        path: temp.to_owned(),
        source,
    };
    let download = storage.download(path, None).await;
    let mut contents = download.map_err(DownloadError::storage(path))?.contents;
    let file = tokio::fs::File::create(temp).await.map_err(local)?;
    let mut file = tokio::io::BufWriter::with_capacity(256 * 1024, file);
    let mut length = 0;
    loop {
        let chunk = contents.try_next().await;
        let chunk = chunk.map_err(|source| DownloadError::Stream {
            path: path.clone(),
            source,
        })?;
        let Some(chunk) = chunk else { break };
        file.write_all(&chunk).await.map_err(local)?;
        length += chunk.len() as u64;
    }
    file.flush().await.map_err(local)?;
    file.get_ref().sync_all().await.map_err(local)?;
    Ok(length)
}
