//! Object storage in a directory: an object is a file of the same relative name.
//!
//! An upload goes to a file `<name>.<number>.___temp` of its own, is fsynced and renamed, so that neither a crash
//! nor another upload of the same name leaves a half object. Temporary files are not objects: listings leave
//! them out. Metadata, where an object has any, is JSON in `<name>.metadata`; no object can have such a name.

use std::io::SeekFrom;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use futures::TryStreamExt;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::{ReaderStream, StreamReader};
use utils::crashsafe::{TEMP_SUFFIX, with_suffix};

use crate::{ByteStream, Download, Listing, READ_BYTES, RemotePath, RemoteStorageError, StorageMetadata};

/// Suffix of the files with the objects' metadata.
const METADATA_SUFFIX: &str = ".metadata";

/// A directory as object storage.
#[derive(Clone, Debug)]
pub struct LocalFs {
    root: PathBuf,
}

fn io_error<'a>(
    action: &'static str,
    object: &'a (impl std::fmt::Display + ?Sized),
) -> impl FnOnce(std::io::Error) -> RemoteStorageError + 'a {
    move |source| RemoteStorageError::Io {
        action,
        object: object.to_string(),
        source,
    }
}

impl LocalFs {
    /// Uses the directory `root`, making it if needed.
    pub async fn new(root: PathBuf) -> Result<Self, RemoteStorageError> {
        tokio::fs::create_dir_all(&root)
            .await
            .map_err(io_error("create", &root.display()))?;
        Ok(LocalFs { root })
    }

    fn file(&self, path: &RemotePath) -> PathBuf {
        self.root.join(path.as_str())
    }

    fn metadata_file(&self, path: &RemotePath) -> PathBuf {
        with_suffix(&self.file(path), METADATA_SUFFIX)
    }

    pub(crate) async fn upload(
        &self,
        path: &RemotePath,
        contents: ByteStream,
        length: u64,
        metadata: &StorageMetadata,
    ) -> Result<(), RemoteStorageError> {
        if path.as_str().ends_with(METADATA_SUFFIX) {
            return Err(RemoteStorageError::Refused {
                action: "upload",
                object: path.to_string(),
                source: format!("names that end with {METADATA_SUFFIX} are taken").into(),
            });
        }
        let target = self.file(path);
        let parent = target.parent().unwrap_or(&self.root).to_owned();
        let create = move || utils::crashsafe::create_dir_all(&parent);
        blocking(create)
            .await
            .map_err(io_error("create directory of", path))?;
        let temp = TempFile(temp_path(&target));
        let got = write_all(&temp.0, contents)
            .await
            .map_err(io_error("write", path))?;
        if got != length {
            return Err(RemoteStorageError::WrongLength {
                path: path.clone(),
                want: length,
                got,
            });
        }
        self.store_metadata(path, metadata).await?;
        let from = temp.0.clone();
        let rename = move || utils::crashsafe::rename(&from, &target);
        blocking(rename).await.map_err(io_error("rename", path))
    }

    async fn store_metadata(
        &self,
        path: &RemotePath,
        metadata: &StorageMetadata,
    ) -> Result<(), RemoteStorageError> {
        let file = self.metadata_file(path);
        let is_absent = matches!(tokio::fs::try_exists(&file).await, Ok(false));
        if metadata.is_empty() && is_absent {
            return Ok(());
        }
        let json = serde_json::to_vec(metadata).expect("a map of strings can be written as JSON");
        let temp = temp_path(&file);
        let write = move || utils::crashsafe::write_atomically(&file, &temp, &json);
        blocking(write).await.map_err(io_error("write metadata of", path))
    }

    async fn load_metadata(&self, path: &RemotePath) -> Result<StorageMetadata, RemoteStorageError> {
        let json = match tokio::fs::read(self.metadata_file(path)).await {
            Ok(json) => json,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(StorageMetadata::new()),
            Err(error) => return Err(io_error("read metadata of", path)(error)),
        };
        let parsed = serde_json::from_slice(&json).map_err(std::io::Error::from);
        parsed.map_err(io_error("read metadata of", path))
    }

    pub(crate) async fn download(
        &self,
        path: &RemotePath,
        range: Option<Range<u64>>,
    ) -> Result<Download, RemoteStorageError> {
        let mut file = match File::open(self.file(path)).await {
            Ok(file) => file,
            Err(error) if is_absent(&error) => {
                return Err(RemoteStorageError::NotFound(path.clone()));
            }
            Err(error) => return Err(io_error("open", path)(error)),
        };
        let Range { start, end } = range.unwrap_or(0..u64::MAX);
        file.seek(SeekFrom::Start(start))
            .await
            .map_err(io_error("read", path))?;
        let part = file.take(end.saturating_sub(start));
        Ok(Download {
            contents: Box::pin(ReaderStream::with_capacity(part, READ_BYTES)),
            metadata: self.load_metadata(path).await?,
        })
    }

    pub(crate) async fn list(&self, prefix: Option<&RemotePath>) -> Result<Listing, RemoteStorageError> {
        let dir = prefix.map_or_else(|| self.root.clone(), |prefix| self.file(prefix));
        let mut listing = Listing::default();
        let mut entries = match tokio::fs::read_dir(&dir).await {
            Ok(entries) => entries,
            // A prefix under which nothing was ever stored is as good as an empty one.
            Err(error) if is_absent(&error) => return Ok(listing),
            Err(error) => return Err(io_error("list", &dir.display())(error)),
        };
        while let Some(entry) = entries
            .next_entry()
            .await
            .map_err(io_error("list", &dir.display()))?
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            let full = match prefix {
                Some(prefix) => prefix.join(&name),
                None => name.parse(),
            };
            let Ok(full) = full else { continue };
            let metadata = entry.metadata().await.map_err(io_error("examine", &full))?;
            if metadata.is_dir() {
                listing.prefixes.push(full);
            } else if !name.ends_with(TEMP_SUFFIX) && !name.ends_with(METADATA_SUFFIX) {
                listing.objects.push((full, metadata.len()));
            }
        }
        listing.prefixes.sort();
        listing.objects.sort();
        Ok(listing)
    }

    pub(crate) async fn delete(&self, paths: &[RemotePath]) -> Result<(), RemoteStorageError> {
        for path in paths {
            for file in [self.file(path), self.metadata_file(path)] {
                let remove = move || utils::crashsafe::remove_file(&file);
                match blocking(remove).await {
                    Err(error) if !is_absent(&error) => return Err(io_error("delete", path)(error)),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Whether there is no such file, be it for a component that is no directory.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
    )
}

/// A name for the contents of `target` that no other upload uses.
fn temp_path(target: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // Other processes may store under the same root.
    let process = std::process::id();
    with_suffix(target, &format!(".{process}-{number}{TEMP_SUFFIX}"))
}

/// A file that goes with this, unless it was renamed.
struct TempFile(PathBuf);

impl Drop for TempFile {
    fn drop(&mut self) {
        // One that cannot be removed is no object all the same.
        std::fs::remove_file(&self.0).ok();
    }
}

/// Runs a durable step where it may block.
async fn blocking(
    step: impl FnOnce() -> Result<(), utils::crashsafe::CrashsafeError> + Send + 'static,
) -> std::io::Result<()> {
    match tokio::task::spawn_blocking(step).await {
        Ok(done) => done.map_err(|error| error.source),
        Err(panicked) => Err(std::io::Error::other(panicked)),
    }
}

/// Writes the stream to a new file, durably; returns the number of bytes.
async fn write_all(path: &Path, contents: ByteStream) -> std::io::Result<u64> {
    let mut file = File::create(path).await?;
    let mut reader = StreamReader::new(contents.map_err(std::io::Error::other));
    let length = tokio::io::copy(&mut reader, &mut file).await?;
    file.flush().await?;
    file.sync_all().await?;
    Ok(length)
}
