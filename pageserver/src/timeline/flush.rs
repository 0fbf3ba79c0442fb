//! From memory to disk: frozen layers become layer files, then `metadata` says so.
//!
//! Steps, each durable before the next: layer file; its directory; metadata. Only then the file takes the place
//! of the layer in memory. A crash in between leaves a file that metadata does not cover: it is set
//! aside at the next start, and its WAL is fetched again.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pageserver_api::key::Key;
use pageserver_api::layer_name::LayerFileName;
use pageserver_api::value::Value;
use utils::crashsafe::{self, CrashsafeError};
use utils::id::TenantTimelineId;
use utils::lsn::RecordLsn;

use super::Timeline;
use super::layer_set::FrozenLayer;
use super::metadata::TimelineMetadata;
use crate::layers::LayerError;
use crate::layers::access::ResidenceEvent;
use crate::layers::file::Layer;
use crate::layers::in_memory::InMemoryLayer;
use crate::layers::residence::Residence;
use crate::layers::writer::{DeltaLayerWriter, ImageLayerWriter, WrittenLayer};

/// Pause after a failed flush, doubled with each failure.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause between tries.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Versions could not be made durable. They stay in memory, and it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// A layer file could not be written.
    #[error("cannot write a layer file")]
    Layer(#[from] LayerError),
    /// The metadata or a directory could not be written.
    #[error("cannot make layer files durable")]
    Metadata(#[from] CrashsafeError),
    /// A test asked for it.
    #[error("{0}")]
    Failpoint(String),
}

impl Timeline {
    /// Starts the task that freezes the open layer when it is time, and writes out frozen ones.
    pub(super) fn start_flushing(self: &Arc<Self>) {
        let timeline = Arc::clone(self);
        self.spawn(async move {
            let stopping = timeline.cancel.clone();
            tokio::select! {
                () = stopping.cancelled() => {}
                () = timeline.flush_loop() => {}
            }
        });
    }

    async fn flush_loop(self: &Arc<Self>) {
        let mut pause = RETRY_PAUSE_MIN;
        let mut last_freeze = Instant::now();
        loop {
            let frozen = self.frozen_changed.notified();
            if self.layers.load().frozen.is_empty() {
                let timeout = self.config().checkpoint_timeout;
                let due = tokio::time::Instant::from_std(last_freeze + timeout);
                tokio::select! {
                    () = frozen => {}
                    () = tokio::time::sleep_until(due) => {
                        last_freeze = Instant::now();
                        self.freeze();
                    }
                    () = self.context.memory.wait_exceeded() => self.freeze_if_worthwhile(),
                }
                continue;
            }
            last_freeze = Instant::now();
            let flushed = self.flush_frozen().await;
            self.context.disk.note(&flushed);
            match flushed {
                Ok(()) => pause = RETRY_PAUSE_MIN,
                Err(error) => {
                    tracing::error!(tenant_id = %self.tenant_id, timeline_id = %self.timeline_id,
                        "flush failed, will retry in {pause:?}: {:#}", anyhow::Error::from(error));
                    self.context.disk.pause(pause).await;
                    pause = RETRY_PAUSE_MAX.min(pause * 2);
                }
            }
        }
    }

    fn freeze_if_worthwhile(&self) {
        let bytes = self
            .layers
            .load()
            .open
            .as_ref()
            .map_or(0, |open| open.memory_bytes());
        if bytes >= self.context.memory.worthwhile_bytes() {
            self.freeze();
        }
    }

    /// Makes everything up to the last record durable.
    pub async fn flush(self: &Arc<Self>) -> Result<(), FlushError> {
        self.freeze();
        self.flush_frozen().await
    }

    /// Writes out all layers that are frozen now.
    async fn flush_frozen(self: &Arc<Self>) -> Result<(), FlushError> {
        let mut metadata = self.saved_metadata.lock().await;
        let last = self.layers.load().frozen.last().map(|frozen| frozen.end.last);
        while let Some(frozen) = self.layers.load().frozen.first().cloned()
            && Some(frozen.end.last) <= last
        {
            let written = match &frozen.layer {
                Some(layer) => self.write_layer(layer).await?,
                None => Vec::new(),
            };
            fail::fail_point!("checkpoint-before-saving-metadata", |text| {
                Err(FlushError::Failpoint(text.unwrap_or_default()))
            });
            *metadata = self.save_metadata(frozen.end).await?;
            fail::fail_point!("checkpoint-after-saving-metadata");
            self.replace_frozen(&frozen, written, *metadata);
        }
        Ok(())
    }

    async fn write_layer(
        self: &Arc<Self>,
        layer: &Arc<InMemoryLayer>,
    ) -> Result<Vec<WrittenLayer>, FlushError> {
        let (timeline, layer) = (Arc::clone(self), Arc::clone(layer));
        self.run_blocking(move || {
            let (dir, id) = (timeline.dir(), timeline.id());
            let is_import = timeline.ancestor.is_none() && timeline.layers.load().files.is_empty();
            let written = match is_import.then(|| write_images(dir, id, &layer)) {
                Some(Ok(written)) => vec![written],
                Some(Err(NotImages::Failed(error))) => return Err(error.into()),
                Some(Err(NotImages::Deltas)) | None => vec![write_deltas(dir, id, &layer)?],
            };
            fail::fail_point!("flush-frozen-before-sync");
            crashsafe::fsync_dir(dir)?;
            fail::fail_point!("checkpoint-after-sync");
            Ok(written)
        })
        .await
    }

    /// Writes the metadata file, as of `end`.
    async fn save_metadata(&self, end: RecordLsn) -> Result<TimelineMetadata, CrashsafeError> {
        let metadata = TimelineMetadata {
            disk_consistent_lsn: end.last,
            prev_record_lsn: end.prev.is_valid().then_some(end.prev),
            ancestor: self
                .ancestor
                .as_ref()
                .map(|ancestor| (ancestor.timeline.timeline_id, ancestor.lsn)),
            latest_gc_cutoff_lsn: self.horizon.cutoff.load(),
            initdb_lsn: self.initdb_lsn.load(),
            pg_version: self.pg_version,
        };
        let dir = self.dir.clone();
        self.run_blocking(move || metadata.write(&dir)).await?;
        Ok(metadata)
    }

    /// What the metadata file says.
    pub(crate) async fn saved_metadata(&self) -> TimelineMetadata {
        *self.saved_metadata.lock().await
    }

    /// Makes the present cutoff durable.
    pub(super) async fn save_cutoff(&self) -> Result<(), CrashsafeError> {
        let mut saved = self.saved_metadata.lock().await;
        if saved.latest_gc_cutoff_lsn == self.horizon.cutoff.load() {
            return Ok(());
        }
        let end = RecordLsn {
            last: saved.disk_consistent_lsn,
            prev: saved.prev_record_lsn.unwrap_or_default(),
        };
        *saved = self.save_metadata(end).await?;
        self.schedule_upload(&[], Vec::new(), Some(*saved));
        Ok(())
    }

    /// Writes the metadata file of a timeline that has nothing to flush.
    pub(crate) async fn save_first_metadata(&self) -> Result<(), CrashsafeError> {
        let mut saved = self.saved_metadata.lock().await;
        *saved = self.save_metadata(self.last_record()).await?;
        self.schedule_upload(&[], Vec::new(), Some(*saved));
        Ok(())
    }

    /// The files take the place of the oldest frozen layer.
    fn replace_frozen(&self, frozen: &FrozenLayer, written: Vec<WrittenLayer>, metadata: TimelineMetadata) {
        let state = self.write_state.lock();
        let mut layers = (*self.layers.load_full()).clone();
        let first = layers.frozen.remove(0);
        assert_eq!(
            first.end, frozen.end,
            "layers are flushed in the order in which they are frozen"
        );
        let added = self.open_files(written);
        self.schedule_upload(&added, Vec::new(), Some(metadata));
        layers.files = layers.files.changed(added, &Default::default());
        self.layers.store(Arc::new(layers));
        drop(state);
        self.disk_consistent.advance(frozen.end.last);
        self.frozen_changed.notify_waiters();
    }

    /// Layers for files just written.
    pub(super) fn open_files(&self, written: Vec<WrittenLayer>) -> Vec<Arc<Layer>> {
        let open = |written| self.open_file(written, ResidenceEvent::Created);
        written.into_iter().map(open).collect()
    }

    /// The layer of a file known since `event`.
    pub(super) fn open_file(&self, layer: WrittenLayer, event: ResidenceEvent) -> Arc<Layer> {
        let path = self.dir.join(layer.name.to_string());
        let named = (layer.name, layer.file_len);
        let residence = Residence::new(named, path, self.remote.clone(), event);
        Layer::new(&self.context.cache, self.id(), residence)
    }
}

fn write_deltas(dir: &Path, id: TenantTimelineId, layer: &InMemoryLayer) -> Result<WrittenLayer, LayerError> {
    let end = layer.end().expect("only frozen layers are written out");
    let mut writer = DeltaLayerWriter::create(dir, id, Key::MIN, layer.start()..end)?;
    layer.for_each(|key, lsn, value| writer.add(key, lsn, value))?;
    writer.finish(Key::MIN..Key::MAX)
}

enum NotImages {
    Deltas,
    Failed(LayerError),
}

impl From<LayerError> for NotImages {
    fn from(error: LayerError) -> Self {
        NotImages::Failed(error)
    }
}

/// An imported cluster: nothing precedes it, and all its values are images at one LSN.
fn write_images(dir: &Path, id: TenantTimelineId, layer: &InMemoryLayer) -> Result<WrittenLayer, NotImages> {
    let lsn = layer.start();
    if layer.end()
        != Some(
            LayerFileName::Image {
                key_range: Key::MIN..Key::MAX,
                lsn,
            }
            .lsn_range()
            .end,
        )
    {
        return Err(NotImages::Deltas);
    }
    let mut writer = ImageLayerWriter::create(dir, id, Key::MIN, lsn)?;
    layer.for_each(|key, _, value| match value {
        Value::Image(image) => Ok(writer.add(key, image)?),
        Value::WalRecord(_) => Err(NotImages::Deltas),
    })?;
    Ok(writer.finish(Key::MIN..Key::MAX)?)
}
