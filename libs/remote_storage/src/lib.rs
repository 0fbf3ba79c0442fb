//! Object storage: whole objects under relative names, never changed in place.
//!
//! Callers hold a [`GenericRemoteStorage`] and call its methods; they never ask which kind it is.
//! All operations are single attempts: who calls decides about retries, guided by
//! [`RemoteStorageError::is_permanent`], most simply with [`retry_download`] and [`retry_upload`].
//!
//! Guarantees of every kind
//! * An object appears whole or not at all, and is durable when `upload` returns.
//! * Deleting what is not there succeeds.
//! * No call waits for ever: a request that the storage does not answer fails after the configured time.
//! * Dropping a call's future cancels it; an upload dropped half-way leaves no object.
//!
//! Not here: which objects exist and in what order they are made. That is the upload queue's.

mod config;
mod error;
mod local_fs;
mod path;
mod retry;
#[cfg(feature = "s3")]
mod s3;
mod unreliable;

pub use config::{ConfigError, RemoteStorageConfig, RemoteStorageKind, S3Config};
pub use error::{Cause, RemoteStorageError};
pub use local_fs::LocalFs;
pub use path::{BadRemotePath, RemotePath};
pub use retry::{
    DOWNLOAD_ATTEMPTS_MAX, RetryError, Retryable, WARN_FROM_FAILURE, pause_after, retry_download,
    retry_upload,
};
#[cfg(feature = "s3")]
pub use s3::S3;
pub use unreliable::Unreliable;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use tokio_util::io::ReaderStream;

use crate::unreliable::Operation;

/// Contents of an object as they arrive.
pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send + Sync>>;

/// How much of a file is read at once, in bytes.
const READ_BYTES: usize = 256 * 1024;

/// The file `path` as the contents of an upload.
pub async fn contents_of_file(path: &Path) -> Result<ByteStream, RemoteStorageError> {
    let opened = tokio::fs::File::open(path).await;
    let file = opened.map_err(|source| RemoteStorageError::Io {
        action: "open for upload",
        object: path.display().to_string(),
        source,
    })?;
    Ok(Box::pin(ReaderStream::with_capacity(file, READ_BYTES)))
}

/// Names and values kept with an object. Names are lower-case ASCII.
pub type StorageMetadata = BTreeMap<String, String>;

/// An object being read.
pub struct Download {
    /// Its contents, or the part that was asked for.
    pub contents: ByteStream,
    /// What was given with the upload; empty if nothing was.
    pub metadata: StorageMetadata,
}

/// What lies under a prefix.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listing {
    /// Names one component longer than the prefix under which there are more objects; sorted.
    pub prefixes: Vec<RemotePath>,
    /// Objects one component longer than the prefix, with their sizes in bytes; sorted.
    pub objects: Vec<(RemotePath, u64)>,
}

/// Object storage of some kind. Cheap to clone.
#[derive(Clone, Debug)]
pub enum GenericRemoteStorage {
    /// A directory.
    LocalFs(LocalFs),
    /// A bucket.
    #[cfg(feature = "s3")]
    S3(S3),
    /// One of the others, failing at first.
    Unreliable(Unreliable),
}

impl GenericRemoteStorage {
    /// The storage that a configuration describes.
    ///
    /// # Errors
    /// The storage cannot be used at all: a directory that cannot be made, no credentials in the
    /// environment. Whether a bucket is there is not asked.
    pub async fn from_config(config: &RemoteStorageConfig) -> Result<Self, RemoteStorageError> {
        match &config.kind {
            RemoteStorageKind::LocalFs { path } => LocalFs::new(path.clone())
                .await
                .map(GenericRemoteStorage::LocalFs),
            #[cfg(feature = "s3")]
            RemoteStorageKind::S3(config) => S3::new(config).map(GenericRemoteStorage::S3),
            #[cfg(not(feature = "s3"))]
            RemoteStorageKind::S3(_) => {
                let message = "this program is built without S3";
                Err(RemoteStorageError::Unusable(message.to_owned()))
            }
        }
    }

    /// This storage, but the first `failures` attempts of each operation on each path fail.
    pub fn unreliable(self, failures: u32) -> Self {
        GenericRemoteStorage::Unreliable(Unreliable::new(self, failures))
    }

    /// Stores `length` bytes of `contents` as the object `path`, replacing one of that name.
    pub async fn upload(
        &self,
        path: &RemotePath,
        contents: ByteStream,
        length: u64,
    ) -> Result<(), RemoteStorageError> {
        self.upload_with_metadata(path, contents, length, &StorageMetadata::new())
            .await
    }

    /// [`upload`](Self::upload) of an object that carries `metadata`.
    pub async fn upload_with_metadata(
        &self,
        path: &RemotePath,
        contents: ByteStream,
        length: u64,
        metadata: &StorageMetadata,
    ) -> Result<(), RemoteStorageError> {
        match self {
            GenericRemoteStorage::LocalFs(storage) => storage.upload(path, contents, length, metadata).await,
            #[cfg(feature = "s3")]
            GenericRemoteStorage::S3(storage) => storage.upload(path, contents, length, metadata).await,
            GenericRemoteStorage::Unreliable(storage) => {
                let inner = storage.attempt(Operation::Upload(path.clone()))?;
                Box::pin(inner.upload_with_metadata(path, contents, length, metadata)).await
            }
        }
    }

    /// Starts reading an object, or the bytes `range` of it (cut at the object's end).
    pub async fn download(
        &self,
        path: &RemotePath,
        range: Option<Range<u64>>,
    ) -> Result<Download, RemoteStorageError> {
        match self {
            GenericRemoteStorage::LocalFs(storage) => storage.download(path, range).await,
            #[cfg(feature = "s3")]
            GenericRemoteStorage::S3(storage) => storage.download(path, range).await,
            GenericRemoteStorage::Unreliable(storage) => {
                let inner = storage.attempt(Operation::Download(path.clone()))?;
                Box::pin(inner.download(path, range)).await
            }
        }
    }

    /// Reads an object whole, but not more than its first `len_max` bytes.
    pub async fn read(&self, path: &RemotePath, len_max: u64) -> Result<Vec<u8>, RemoteStorageError> {
        let contents = self.download(path, Some(0..len_max)).await?.contents;
        let pieces: Result<Vec<Bytes>, _> = contents.try_collect().await;
        let pieces = pieces.map_err(|source| RemoteStorageError::Io {
            action: "read to the end",
            object: path.to_string(),
            source,
        })?;
        Ok(pieces.concat())
    }

    /// Lists what lies directly under `prefix`; `None` is the root.
    pub async fn list(&self, prefix: Option<&RemotePath>) -> Result<Listing, RemoteStorageError> {
        match self {
            GenericRemoteStorage::LocalFs(storage) => storage.list(prefix).await,
            #[cfg(feature = "s3")]
            GenericRemoteStorage::S3(storage) => storage.list(prefix).await,
            GenericRemoteStorage::Unreliable(storage) => {
                let inner = storage.attempt(Operation::List(prefix.cloned()))?;
                Box::pin(inner.list(prefix)).await
            }
        }
    }

    /// Deletes objects; those that are not there count as deleted.
    ///
    /// # Errors
    /// One of them could not be deleted; others may have been.
    pub async fn delete(&self, paths: &[RemotePath]) -> Result<(), RemoteStorageError> {
        match self {
            GenericRemoteStorage::LocalFs(storage) => storage.delete(paths).await,
            #[cfg(feature = "s3")]
            GenericRemoteStorage::S3(storage) => storage.delete(paths).await,
            GenericRemoteStorage::Unreliable(storage) => {
                let inner = storage.attempt_delete(paths)?;
                Box::pin(inner.delete(paths)).await
            }
        }
    }
}
