//! Where a layer's file is: on the local disk, only in object storage, or on its way from there.
//!
//! Invariants
//! * A layer has at most one download, however many readers wait for it. It is a task of its own: a reader that
//!   gives up neither stops it nor leaves anything behind.
//! * While somebody holds a [`Pin`], the file stays.
//! * A file is evicted only if a durable index names the layer, so that it is found again.
//! * A file found damaged is fetched again, if it can be. Until that has succeeded it stays: what is sound in it can
//!   be read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use pageserver_api::layer_name::LayerFileName;
use parking_lot::Mutex;

use super::LayerError;
use super::access::{AccessLog, ResidenceEvent};
use crate::remote::{DownloadError, TimelineClient};

/// A file that was fetched again and is damaged still is left alone for so long: every reader of it asks.
const REFETCH_PAUSE: Duration = Duration::from_secs(5);

type Downloaded = Shared<BoxFuture<'static, Result<(), Arc<DownloadError>>>>;

enum Place {
    Local,
    Remote,
    Downloading(Downloaded),
}

struct State {
    place: Place,
    pins: usize,
    /// When the file was last fetched again because it was damaged.
    refetched: Option<Instant>,
}

/// See the module head.
pub struct Residence {
    name: LayerFileName,
    path: PathBuf,
    file_len: u64,
    remote: Option<Arc<TimelineClient>>,
    state: Mutex<State>,
    /// Who had use of the layer.
    pub access: AccessLog,
}

/// Keeps the file on the disk.
pub struct Pin(Arc<Residence>);

impl Residence {
    /// Of the layer `name` with `file_len` bytes at `path`, known since `event`.
    pub fn new(
        (name, file_len): (LayerFileName, u64),
        path: PathBuf,
        remote: Option<Arc<TimelineClient>>,
        event: ResidenceEvent,
    ) -> Arc<Self> {
        let place = match event {
            ResidenceEvent::LoadedRemote | ResidenceEvent::Evicted => Place::Remote,
            ResidenceEvent::Loaded | ResidenceEvent::Created | ResidenceEvent::Downloaded => Place::Local,
        };
        assert!(
            remote.is_some() || matches!(place, Place::Local),
            "{name} is in object storage, but there is none"
        );
        Arc::new(Residence {
            name,
            path,
            file_len,
            remote,
            state: Mutex::new(State {
                place,
                pins: 0,
                refetched: None,
            }),
            access: AccessLog::new(event),
        })
    }

    /// The layer's name.
    pub fn name(&self) -> &LayerFileName {
        &self.name
    }

    /// Where the file is when it is local.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Whether the file is on the local disk.
    pub fn is_local(&self) -> bool {
        matches!(self.state.lock().place, Place::Local)
    }

    /// Makes sure that the file is on the local disk, and stays while the result is held.
    pub async fn pin(self: &Arc<Self>) -> Result<Pin, LayerError> {
        loop {
            let Some(download) = self.pin_or_download() else {
                return Ok(Pin(Arc::clone(self)));
            };
            download.await.map_err(|source| LayerError::Download {
                name: Box::new(self.name.clone()),
                source,
            })?;
        }
    }

    fn pin_or_download(self: &Arc<Self>) -> Option<Downloaded> {
        let mut state = self.state.lock();
        match &state.place {
            Place::Local => {
                state.pins += 1;
                None
            }
            Place::Downloading(download) => Some(download.clone()),
            Place::Remote => {
                let download = self.start_download(Place::Remote);
                state.place = Place::Downloading(download.clone());
                Some(download)
            }
        }
    }

    /// Fetches the file again, in which damage was read since `read_at`, unless it cannot be or that was done a moment
    /// ago.
    ///
    /// Returns whether there may be another file than the one read.
    pub async fn refetch(self: &Arc<Self>, read_at: Instant) -> bool {
        if !self.is_durable() {
            return false;
        }
        let download = {
            let mut state = self.state.lock();
            let is_recent = |at: Instant| at.elapsed() < REFETCH_PAUSE;
            match &state.place {
                _ if state.refetched.is_some_and(|at| at > read_at) => return true,
                Place::Downloading(download) => download.clone(),
                Place::Local if !state.refetched.is_some_and(is_recent) => {
                    tracing::warn!(path = %self.path.display(), "layer file is damaged, will be downloaded again");
                    let download = self.start_download(Place::Local);
                    state.place = Place::Downloading(download.clone());
                    download
                }
                Place::Local | Place::Remote => return false,
            }
        };
        let fetched = download.await;
        if let Err(error) = &fetched {
            tracing::warn!(path = %self.path.display(), "cannot download a damaged layer file again: {error}");
        }
        self.state.lock().refetched = Some(Instant::now());
        fetched.is_ok()
    }

    /// Downloads the file. If that fails, it is where it was: at `before`.
    fn start_download(self: &Arc<Self>, before: Place) -> Downloaded {
        let residence = Arc::clone(self);
        let task = tokio::spawn(async move {
            let remote = residence.remote.as_ref();
            let remote = remote.expect("a layer without a remote client is always local");
            let downloaded = remote
                .download_layer(&residence.name, residence.file_len, &residence.path)
                .await;
            if downloaded.is_ok() {
                residence.access.note_residence(ResidenceEvent::Downloaded);
            }
            residence.state.lock().place = match &downloaded {
                Ok(()) => Place::Local,
                Err(_) => before,
            };
            downloaded.map_err(Arc::new)
        });
        let result = task.map(|ended| match ended {
            Ok(downloaded) => downloaded,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_runtime_ends) => Err(Arc::new(DownloadError::Stopping)),
            },
        });
        result.boxed().shared()
    }

    /// Somebody has removed the file behind our back: it is fetched again, if it can be.
    ///
    /// Returns whether that is possible.
    pub fn lost(&self) -> bool {
        let has_copy = self.is_durable();
        if has_copy {
            let mut state = self.state.lock();
            if matches!(state.place, Place::Local) {
                tracing::info!(path = %self.path.display(), "layer file is gone, will be downloaded again");
                state.place = Place::Remote;
            }
        }
        has_copy
    }

    /// Whether object storage has the layer and knows that it does.
    pub fn is_durable(&self) -> bool {
        self.remote
            .as_ref()
            .is_some_and(|remote| remote.is_durable(&self.name))
    }

    /// Removes the file from the local disk, unless somebody uses it or it is nowhere else. Blocking.
    ///
    /// Returns whether it was removed.
    pub fn evict(&self) -> Result<bool, LayerError> {
        if !self.is_durable() {
            return Ok(false);
        }
        let mut state = self.state.lock();
        if state.pins > 0 || !matches!(state.place, Place::Local) {
            return Ok(false);
        }
        fail::fail_point!("before-evict-layer");
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LayerError::io("evict", &self.path)(error));
            }
            _ => {}
        }
        fail::fail_point!("after-evict-layer");
        state.place = Place::Remote;
        drop(state);
        self.access.note_residence(ResidenceEvent::Evicted);
        Ok(true)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        assert!(state.pins > 0, "{} is unpinned twice", self.0.name);
        state.pins -= 1;
    }
}

impl std::fmt::Debug for Residence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.is_local() { "local" } else { "remote" };
        write!(f, "Residence({}, {place})", self.name)
    }
}
