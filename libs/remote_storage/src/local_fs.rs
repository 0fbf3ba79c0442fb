//! Object storage in a directory: an object is a file of the same relative name.
//!
//! An upload goes to `<name>.___temp`, is fsynced and renamed, so that a crash leaves no half object.
//! Temporary files are not objects: listings leave them out.

use std::io::SeekFrom;
use std::ops::Range;
use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::{ReaderStream, StreamReader};
use utils::crashsafe::{TEMP_SUFFIX, with_suffix};

use crate::{ByteStream, Download, Listing, RemotePath, RemoteStorageError};

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

    pub(crate) async fn upload(
        &self,
        path: &RemotePath,
        contents: ByteStream,
        length: u64,
    ) -> Result<(), RemoteStorageError> {
        let target = self.file(path);
        let parent = target.parent().unwrap_or(&self.root).to_owned();
        let create = move || utils::crashsafe::create_dir_all(&parent);
        blocking(create)
            .await
            .map_err(io_error("create directory of", path))?;
        let temp = with_suffix(&target, TEMP_SUFFIX);
        let got = write_all(&temp, contents)
            .await
            .map_err(io_error("write", path))?;
        if got != length {
            tokio::fs::remove_file(&temp)
                .await
                .map_err(io_error("remove temporary file of", path))?;
            return Err(RemoteStorageError::WrongLength {
                path: path.clone(),
                want: length,
                got,
            });
        }
        let rename = move || utils::crashsafe::rename(&temp, &target);
        blocking(rename).await.map_err(io_error("rename", path))
    }

    pub(crate) async fn download(
        &self,
        path: &RemotePath,
        range: Option<Range<u64>>,
    ) -> Result<Download, RemoteStorageError> {
        let mut file = match File::open(self.file(path)).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
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
            contents: Box::pin(ReaderStream::new(part)),
        })
    }

    pub(crate) async fn list(&self, prefix: Option<&RemotePath>) -> Result<Listing, RemoteStorageError> {
        let dir = prefix.map_or_else(|| self.root.clone(), |prefix| self.file(prefix));
        let mut listing = Listing::default();
        let mut entries = match tokio::fs::read_dir(&dir).await {
            Ok(entries) => entries,
            // A prefix under which nothing was ever stored is as good as an empty one.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(listing),
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
            } else if !name.ends_with(TEMP_SUFFIX) {
                listing.objects.push((full, metadata.len()));
            }
        }
        listing.prefixes.sort();
        listing.objects.sort();
        Ok(listing)
    }

    pub(crate) async fn delete(&self, paths: &[RemotePath]) -> Result<(), RemoteStorageError> {
        for path in paths {
            let file = self.file(path);
            let remove = move || utils::crashsafe::remove_file(&file);
            match blocking(remove).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error("delete", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn path(text: &str) -> RemotePath {
        text.parse().unwrap()
    }

    fn stream(chunks: &[&'static str]) -> ByteStream {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|chunk| Ok(Bytes::from_static(chunk.as_bytes())))
            .collect();
        Box::pin(futures::stream::iter(chunks))
    }

    async fn read(storage: &LocalFs, name: &str, range: Option<Range<u64>>) -> String {
        let chunks: Vec<Bytes> = storage
            .download(&path(name), range)
            .await
            .unwrap()
            .contents
            .try_collect()
            .await
            .unwrap();
        String::from_utf8(chunks.concat()).unwrap()
    }

    #[tokio::test]
    async fn objects_are_stored_listed_read_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let storage = LocalFs::new(dir.path().join("root")).await.unwrap();
        storage
            .upload(&path("a/b/one"), stream(&["hello ", "world"]), 11)
            .await
            .unwrap();
        storage.upload(&path("a/two"), stream(&[]), 0).await.unwrap();
        assert_eq!(read(&storage, "a/b/one", None).await, "hello world");
        assert_eq!(read(&storage, "a/b/one", Some(6..9)).await, "wor");
        assert_eq!(read(&storage, "a/b/one", Some(6..99)).await, "world");
        let listing = storage.list(Some(&path("a"))).await.unwrap();
        assert_eq!(listing.prefixes, [path("a/b")]);
        assert_eq!(listing.objects, [(path("a/two"), 0)]);
        assert_eq!(
            storage.list(Some(&path("nothing/here"))).await.unwrap(),
            Listing::default()
        );
        storage
            .delete(&[path("a/b/one"), path("a/never"), path("x/never")])
            .await
            .unwrap();
        let gone = storage.download(&path("a/b/one"), None).await;
        assert!(matches!(gone, Err(RemoteStorageError::NotFound(_))));
    }

    #[tokio::test]
    async fn an_upload_cut_short_leaves_the_old_object() {
        let dir = tempfile::tempdir().unwrap();
        let storage = LocalFs::new(dir.path().to_owned()).await.unwrap();
        storage.upload(&path("x"), stream(&["old"]), 3).await.unwrap();
        let short = storage.upload(&path("x"), stream(&["ne"]), 3).await;
        assert!(matches!(
            short,
            Err(RemoteStorageError::WrongLength { want: 3, got: 2, .. })
        ));
        let broken: ByteStream = Box::pin(futures::stream::iter([
            Ok(Bytes::from_static(b"n")),
            Err(std::io::Error::other("cut")),
        ]));
        assert!(storage.upload(&path("x"), broken, 3).await.is_err());
        assert_eq!(read(&storage, "x", None).await, "old");
        assert_eq!(storage.list(None).await.unwrap().objects, [(path("x"), 3)]);
    }
}
