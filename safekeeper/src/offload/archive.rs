//! Reading WAL back from object storage, for readers that need more than is on disk.

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use remote_storage::{
    ByteStream, DOWNLOAD_ATTEMPTS_MAX, GenericRemoteStorage, RemoteStorageError, RetryError, retry_download,
};
use tokio_util::sync::CancellationToken;
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

use super::object_name;
use crate::wal_storage::WalDir;

/// WAL could not be read from object storage.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The segment cannot be had.
    #[error("cannot read WAL at {at} from object storage")]
    Storage {
        /// Where reading stood.
        at: Lsn,
        /// The cause.
        source: RetryError<RemoteStorageError>,
    },
    /// What arrives ends early, again and again.
    #[error("WAL at {at} from object storage is cut off")]
    CutOff {
        /// Where reading stood.
        at: Lsn,
    },
}

/// A position in the offloaded WAL of a timeline, inside one segment.
pub struct Archive {
    storage: GenericRemoteStorage,
    timeline: TenantTimelineId,
    dir: WalDir,
    at: Lsn,
    /// What follows `at`, once it was asked for.
    contents: Option<ByteStream>,
    /// What has arrived and was not taken.
    arrived: Bytes,
}

impl Archive {
    /// Starts at `at`.
    pub fn new(storage: GenericRemoteStorage, timeline: TenantTimelineId, dir: WalDir, at: Lsn) -> Self {
        Archive {
            storage,
            timeline,
            dir,
            at,
            contents: None,
            arrived: Bytes::new(),
        }
    }

    /// Position of the next byte.
    pub fn position(&self) -> Lsn {
        self.at
    }

    /// The next bytes of the segment, 1 at least and `bytes_max` at most.
    ///
    /// # Errors
    /// The object is not there, or cannot be read for longer than downloads are tried.
    pub async fn next(&mut self, bytes_max: usize) -> Result<Bytes, ArchiveError> {
        let mut failures = 0;
        while self.arrived.is_empty() {
            let contents = match &mut self.contents {
                Some(contents) => contents,
                None => {
                    let opened = self.open().await?;
                    self.contents.insert(opened)
                }
            };
            match contents.next().await {
                Some(Ok(piece)) => self.arrived = piece,
                // Cut off: go on from here with another request.
                Some(Err(_)) | None => {
                    self.contents = None;
                    failures += 1;
                    if failures == DOWNLOAD_ATTEMPTS_MAX {
                        return Err(ArchiveError::CutOff { at: self.at });
                    }
                }
            }
        }
        let taken = self.arrived.split_to(bytes_max.min(self.arrived.len()));
        self.at += taken.len() as u64;
        if self.at.segment_offset(self.dir.segment_size) == 0 {
            self.contents = None;
        }
        Ok(taken)
    }

    async fn open(&self) -> Result<ByteStream, ArchiveError> {
        let size = self.dir.segment_size;
        let segment = self.dir.segment_name(self.at.segment_number(size));
        let object = object_name(self.timeline, &segment);
        let range = self.at.segment_offset(size) as u64..size as u64;
        // Whoever reads drops the whole reader when it has gone.
        let cancel = CancellationToken::new();
        let download = || async { self.storage.download(&object, Some(range.clone())).await };
        let downloaded = retry_download(format!("download of {object}"), &cancel, download);
        // On the heap: the connections that read WAL are nested deeply enough without it.
        match downloaded.boxed().await {
            Ok(download) => Ok(download.contents),
            Err(source) => Err(ArchiveError::Storage { at: self.at, source }),
        }
    }
}
