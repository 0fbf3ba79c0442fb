//! The remote half of a timeline: carries out what its upload queue says, and fetches layers.
//!
//! Uploads and deletions are repeated until they succeed or the client is stopped; nobody waits for them
//! but [`TimelineClient::wait_uploaded`]. Downloads are the reader's affair: they end with an error after ten attempts.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pageserver_api::layer_name::LayerFileName;
use parking_lot::Mutex;
use remote_storage::{ByteStream, GenericRemoteStorage, RemoteStorageError, contents_of_file, pause_after};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utils::id::TenantTimelineId;
use utils::lsn::{AtomicLsn, Lsn};

use super::download::{self, DownloadError};
use super::index::IndexPart;
use super::paths;
use super::queue::{Change, DELETE_BATCH_MAX, Operation, UploadQueue};
use super::retry;
use crate::disk_space::DiskSpace;
use crate::layers::LayerError;
use crate::layers::file::Layer;
use crate::metrics::remote::{FileKind, OpKind, RemoteMetrics};
use crate::task_kind::TaskKind;
use crate::timeline::metadata::TimelineMetadata;

/// See the module head.
pub struct TimelineClient {
    storage: GenericRemoteStorage,
    id: TenantTimelineId,
    disk: Arc<DiskSpace>,
    state: Mutex<State>,
    /// Bumped whenever the queue has changed.
    progress: watch::Sender<u64>,
    remote_consistent: AtomicLsn,
    metrics: RemoteMetrics,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

struct State {
    queue: UploadQueue,
    /// Keeps the files of layers to be uploaded where they are.
    layers: HashMap<LayerFileName, Arc<Layer>>,
}

/// Changes did not reach object storage in time.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
pub enum WaitUploadedError {
    /// Object storage does not keep up, or is away.
    #[error("timed out after {0:?} waiting for uploads to object storage")]
    Timeout(Duration),
    /// The timeline was stopped.
    #[error("the timeline was stopped before it was uploaded")]
    Stopped,
}

/// An attempt to upload or delete failed.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// Object storage refused, or the file cannot be opened.
    #[error("cannot be uploaded or deleted")]
    Storage(#[from] RemoteStorageError),
    /// The layer is not here.
    #[error("cannot read the layer")]
    Layer(#[from] LayerError),
    /// A test asked for it.
    #[error("failpoint {0}")]
    Failpoint(&'static str),
}

impl TimelineClient {
    /// For the timeline `id`, of which object storage has `durable`. Uploads nothing before it is started.
    ///
    /// `disk` is where it downloads to.
    pub fn new(
        storage: GenericRemoteStorage,
        id: TenantTimelineId,
        durable: Option<IndexPart>,
        disk: Arc<DiskSpace>,
    ) -> Arc<Self> {
        let lsn = durable
            .as_ref()
            .map_or(Lsn::INVALID, |index| index.metadata.disk_consistent_lsn);
        let metrics = RemoteMetrics::new(id);
        metrics.set_physical_size(durable.as_ref().map_or(0, IndexPart::layer_bytes));
        Arc::new(TimelineClient {
            storage,
            id,
            disk,
            state: Mutex::new(State {
                queue: UploadQueue::new(durable),
                layers: HashMap::new(),
            }),
            progress: watch::Sender::new(0),
            remote_consistent: AtomicLsn::new(lsn),
            metrics,
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// The object storage.
    pub fn storage(&self) -> &GenericRemoteStorage {
        &self.storage
    }

    /// Everything at or below is in object storage.
    pub fn remote_consistent_lsn(&self) -> Lsn {
        self.remote_consistent.load()
    }

    /// Whether the durable index names the layer.
    pub fn is_durable(&self, name: &LayerFileName) -> bool {
        let state = self.state.lock();
        let durable = state.queue.durable();
        durable.is_some_and(|index| index.layers.contains_key(name))
    }

    /// The last index that is durable.
    pub fn durable_index(&self) -> Option<IndexPart> {
        self.state.lock().queue.durable().cloned()
    }

    /// Notes what has changed here; `layers` are those that the change adds. Returns at once.
    pub fn schedule(&self, mut change: Change, layers: &[Arc<Layer>]) {
        change.added = layers
            .iter()
            .map(|layer| (layer.name().clone(), layer.file_len()))
            .collect();
        let mut state = self.state.lock();
        let kept = layers
            .iter()
            .map(|layer| (layer.name().clone(), Arc::clone(layer)));
        state.layers.extend(kept);
        state.queue.push(change);
        drop(state);
        self.bump();
    }

    fn bump(&self) {
        self.progress.send_modify(|version| *version += 1);
    }

    /// Starts carrying out what was scheduled, once `ancestor` has an index.
    pub fn start(self: &Arc<Self>, ancestor: Option<Arc<TimelineClient>>) {
        let client = Arc::clone(self);
        self.tasks.spawn(TaskKind::RemoteUploadTask.scope(async move {
            if let Some(ancestor) = ancestor {
                client.wait_for_index_of(&ancestor).await;
            }
            client.run().await;
            // Their files may go now.
            client.state.lock().layers.clear();
        }));
    }

    /// Stops, after the attempts under way have ended: what was sent to object storage could still take effect
    /// later, and must not come after what others do then.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.bump();
    }

    /// Waits until everything scheduled before is durable.
    pub async fn wait_uploaded(&self, timeout: Duration) -> Result<(), WaitUploadedError> {
        let mut progress = self.progress.subscribe();
        let uploaded =
            progress.wait_for(|_| self.cancel.is_cancelled() || self.state.lock().queue.is_uploaded());
        match tokio::time::timeout(timeout, uploaded).await {
            Err(_) => Err(WaitUploadedError::Timeout(timeout)),
            Ok(_) if self.state.lock().queue.is_uploaded() => Ok(()),
            Ok(_) => Err(WaitUploadedError::Stopped),
        }
    }

    /// Waits until everything is durable and nothing is left to delete.
    pub async fn wait_idle(&self, timeout: Duration) -> Result<(), WaitUploadedError> {
        let mut progress = self.progress.subscribe();
        let idle = progress.wait_for(|_| self.cancel.is_cancelled() || self.state.lock().queue.is_idle());
        match tokio::time::timeout(timeout, idle).await {
            Err(_) => Err(WaitUploadedError::Timeout(timeout)),
            Ok(_) if self.state.lock().queue.is_idle() => Ok(()),
            Ok(_) => Err(WaitUploadedError::Stopped),
        }
    }

    async fn wait_for_index_of(&self, ancestor: &TimelineClient) {
        let mut progress = ancestor.progress.subscribe();
        let indexed = progress.wait_for(|_| ancestor.state.lock().queue.durable().is_some());
        tokio::select! {
            indexed = indexed => drop(indexed.expect("the sender is the ancestor's")),
            () = self.cancel.cancelled() => {}
        }
    }

    async fn run(self: &Arc<Self>) {
        let mut progress = self.progress.subscribe();
        let mut running = JoinSet::new();
        while !self.cancel.is_cancelled() {
            progress.mark_unchanged();
            while let Some(operation) = self.next_operation() {
                let client = Arc::clone(self);
                running.spawn(TaskKind::RemoteUploadTask.scope(async move {
                    let done = client.until_done(&operation).await;
                    done.map(|()| operation)
                }));
            }
            tokio::select! {
                changed = progress.changed() => changed.expect("the sender is ours"),
                Some(ended) = running.join_next() => self.ended(ended),
                () = self.cancel.cancelled() => {}
            }
        }
        while let Some(ended) = running.join_next().await {
            self.ended(ended);
        }
    }

    fn ended(&self, ended: Result<Result<Operation, WaitUploadedError>, JoinError>) {
        match ended {
            Ok(Ok(operation)) => self.finished(operation),
            Ok(Err(_stopped)) => {}
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn next_operation(&self) -> Option<Operation> {
        self.state.lock().queue.next_operation()
    }

    fn finished(&self, operation: Operation) {
        let mut state = self.state.lock();
        match &operation {
            Operation::UploadLayer(name) => drop(state.layers.remove(name)),
            Operation::UploadIndex(index) => {
                self.metrics.set_physical_size(index.layer_bytes());
                self.remote_consistent
                    .fetch_max(index.metadata.disk_consistent_lsn);
            }
            Operation::Delete(_) => {}
        }
        state.queue.finished(operation);
        drop(state);
        self.bump();
    }

    /// Repeats the operation until it succeeds or the client is stopped.
    async fn until_done(&self, operation: &Operation) -> Result<(), WaitUploadedError> {
        let (file, op) = kind_of(operation);
        let _unfinished = self.metrics.begin(file, op);
        let mut failures = 0_u32;
        loop {
            let started = Instant::now();
            let result = self.perform(operation).await;
            self.metrics.observe(file, op, &result, started.elapsed());
            let Err(error) = result else { break };
            let what = format!(
                "{} failed to perform remote task {}",
                self.id,
                describe(operation)
            );
            failures = failures.saturating_add(1);
            retry::log_failure(&what, failures, &error);
            tokio::select! {
                () = tokio::time::sleep(pause_after(failures)) => {}
                () = self.cancel.cancelled() => return Err(WaitUploadedError::Stopped),
            }
        }
        if failures > 0 {
            tracing::info!(
                "{} remote task {} succeeded after {failures} retries",
                self.id,
                describe(operation)
            );
        }
        Ok(())
    }

    async fn perform(&self, operation: &Operation) -> Result<(), UploadError> {
        match operation {
            Operation::UploadLayer(name) => self.upload_layer(name).await,
            Operation::UploadIndex(index) => self.upload_index(index).await,
            Operation::Delete(names) => {
                fail::fail_point!("before-delete-layer", |_| {
                    Err(UploadError::Failpoint("before-delete-layer"))
                });
                let paths: Vec<_> = names.iter().map(|name| paths::layer(self.id, name)).collect();
                self.storage.delete(&paths).await?;
                fail::fail_point!("after-delete-layer", |_| {
                    Err(UploadError::Failpoint("after-delete-layer"))
                });
                Ok(())
            }
        }
    }

    async fn upload_layer(&self, name: &LayerFileName) -> Result<(), UploadError> {
        fail::fail_point!("before-upload-layer", |_| {
            Err(UploadError::Failpoint("before-upload-layer"))
        });
        let layer = self.state.lock().layers.get(name).cloned();
        let layer = layer.expect("layers stay here until they are uploaded");
        let _pin = layer.pin().await?;
        let contents = contents_of_file(layer.path()).await?;
        let path = paths::layer(self.id, name);
        self.storage.upload(&path, contents, layer.file_len()).await?;
        self.metrics
            .add_bytes(FileKind::Layer, OpKind::Upload, layer.file_len());
        fail::fail_point!("after-upload-layer", |_| {
            Err(UploadError::Failpoint("after-upload-layer"))
        });
        Ok(())
    }

    async fn upload_index(&self, index: &IndexPart) -> Result<(), UploadError> {
        fail::fail_point!("before-upload-index", |_| {
            Err(UploadError::Failpoint("before-upload-index"))
        });
        let raw = index.encode();
        let length = raw.len() as u64;
        let contents: ByteStream = Box::pin(futures::stream::iter([Ok(raw.into())]));
        self.storage
            .upload(&paths::index(self.id), contents, length)
            .await?;
        self.metrics.add_bytes(FileKind::Index, OpKind::Upload, length);
        fail::fail_point!("after-upload-index", |_| {
            Err(UploadError::Failpoint("after-upload-index"))
        });
        Ok(())
    }

    /// Fetches a layer into the file `target`.
    pub async fn download_layer(
        &self,
        name: &LayerFileName,
        file_len: u64,
        target: &Path,
    ) -> Result<(), DownloadError> {
        let _unfinished = self.metrics.begin(FileKind::Layer, OpKind::Download);
        let started = Instant::now();
        let from = (&self.storage, &self.cancel);
        let to = (target, &*self.disk);
        let result = download::download_layer(from, self.id, (name, file_len), to).await;
        self.metrics
            .observe(FileKind::Layer, OpKind::Download, &result, started.elapsed());
        if result.is_ok() {
            self.metrics
                .add_bytes(FileKind::Layer, OpKind::Download, file_len);
        }
        result
    }

    /// Says in object storage that the timeline, whose metadata is `metadata`, is deleted: from then on it
    /// does not exist. Repeated until it succeeds or `cancel` fires. The client must have been stopped.
    pub async fn mark_deleted(
        &self,
        metadata: TimelineMetadata,
        cancel: &CancellationToken,
    ) -> Result<(), WaitUploadedError> {
        let mut index = self.durable_index().unwrap_or_else(|| IndexPart::empty(metadata));
        index.deleted_at = Some(humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string());
        let what = format!("{} mark the timeline as deleted", self.id);
        repeat(&what, cancel, || self.upload_index(&index)).await?;
        fail::fail_point!("after-mark-timeline-deleted");
        Ok(())
    }
}

/// Repeats `attempt` until it succeeds or `cancel` fires.
async fn repeat<T, F: Future<Output = Result<T, UploadError>>>(
    what: &str,
    cancel: &CancellationToken,
    mut attempt: impl FnMut() -> F,
) -> Result<T, WaitUploadedError> {
    let mut failures = 0_u32;
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        failures = failures.saturating_add(1);
        retry::log_failure(&format!("{what} failed"), failures, &error);
        tokio::select! {
            () = tokio::time::sleep(pause_after(failures)) => {}
            () = cancel.cancelled() => return Err(WaitUploadedError::Stopped),
        }
    }
}

fn kind_of(operation: &Operation) -> (FileKind, OpKind) {
    match operation {
        Operation::UploadLayer(_) => (FileKind::Layer, OpKind::Upload),
        Operation::UploadIndex(_) => (FileKind::Index, OpKind::Upload),
        Operation::Delete(_) => (FileKind::Layer, OpKind::Delete),
    }
}

fn describe(operation: &Operation) -> String {
    match operation {
        Operation::UploadLayer(name) => format!("UploadLayer({name})"),
        Operation::UploadIndex(index) => {
            format!("UploadMetadata(lsn: {})", index.metadata.disk_consistent_lsn)
        }
        Operation::Delete(names) => match &names[..] {
            [name] => format!("Delete({name})"),
            names => format!("Delete({} layers)", names.len()),
        },
    }
}

/// Removes all objects of a timeline, its index last. Repeats each step that fails until `cancel` fires.
pub async fn delete_objects(
    storage: &GenericRemoteStorage,
    id: TenantTimelineId,
    cancel: &CancellationToken,
) -> Result<(), WaitUploadedError> {
    let (prefix, index) = (paths::timeline(id), paths::index(id));
    let what = format!("list the objects of {prefix}");
    let listing = repeat(&what, cancel, || async { Ok(storage.list(Some(&prefix)).await?) }).await?;
    let objects = listing.objects.into_iter().map(|(path, _)| path);
    let layers: Vec<_> = objects.filter(|path| *path != index).collect();
    fail::fail_point!("before-delete-timeline-layers");
    let what = format!("delete the objects of {prefix}");
    for batch in layers.chunks(DELETE_BATCH_MAX) {
        repeat(&what, cancel, || async { Ok(storage.delete(batch).await?) }).await?;
    }
    fail::fail_point!("before-delete-timeline-index");
    let last = [index];
    repeat(&what, cancel, || async { Ok(storage.delete(&last).await?) }).await?;
    fail::fail_point!("after-delete-timeline-index");
    Ok(())
}
