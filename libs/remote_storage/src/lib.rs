//! Object storage: whole objects under relative names, never changed in place.
//!
//! Callers hold a [`GenericRemoteStorage`] and call its methods; they never ask which kind it is.
//! All operations are single attempts: who calls decides about retries, guided by
//! [`RemoteStorageError::is_permanent`].
//!
//! Guarantees of every kind
//! * An object appears whole or not at all, and is durable when `upload` returns.
//! * Deleting what is not there succeeds.
//!
//! Not here: which objects exist and in what order they are made. That is the upload queue's.

mod config;
mod error;
mod local_fs;
mod path;

pub use config::{ConfigError, RemoteStorageConfig, RemoteStorageKind};
pub use error::RemoteStorageError;
pub use local_fs::LocalFs;
pub use path::{BadRemotePath, RemotePath};

use std::ops::Range;
use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;

/// Contents of an object as they arrive.
pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send + Sync>>;

/// An object being read.
pub struct Download {
    /// Its contents, or the part that was asked for.
    pub contents: ByteStream,
}

/// What lies under a prefix.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listing {
    /// Names one component longer than the prefix under which there are more objects; sorted.
    pub prefixes: Vec<RemotePath>,
    /// Objects one component longer than the prefix, with their sizes in bytes; sorted.
    pub objects: Vec<(RemotePath, u64)>,
}

/// Object storage of some kind.
#[derive(Clone, Debug)]
pub enum GenericRemoteStorage {
    /// A directory.
    LocalFs(LocalFs),
}

impl GenericRemoteStorage {
    /// The storage that a configuration describes.
    ///
    /// # Errors
    /// The storage cannot be used at all, such as a directory that cannot be made.
    pub async fn from_config(config: &RemoteStorageConfig) -> Result<Self, RemoteStorageError> {
        match &config.kind {
            RemoteStorageKind::LocalFs { path } => LocalFs::new(path.clone())
                .await
                .map(GenericRemoteStorage::LocalFs),
        }
    }

    /// Stores `length` bytes of `contents` as the object `path`, replacing one of that name.
    pub async fn upload(
        &self,
        path: &RemotePath,
        contents: ByteStream,
        length: u64,
    ) -> Result<(), RemoteStorageError> {
        match self {
            GenericRemoteStorage::LocalFs(storage) => storage.upload(path, contents, length).await,
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
        }
    }

    /// Lists what lies directly under `prefix`; `None` is the root.
    pub async fn list(&self, prefix: Option<&RemotePath>) -> Result<Listing, RemoteStorageError> {
        match self {
            GenericRemoteStorage::LocalFs(storage) => storage.list(prefix).await,
        }
    }

    /// Deletes objects; those that are not there count as deleted.
    pub async fn delete(&self, paths: &[RemotePath]) -> Result<(), RemoteStorageError> {
        match self {
            GenericRemoteStorage::LocalFs(storage) => storage.delete(paths).await,
        }
    }
}
