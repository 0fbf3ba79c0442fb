//! Compaction: level 0 deltas, each over all keys, become deltas over few keys; where those pile up, image layers.
//!
//! Neither changes what any read returns. New files are durable and in the map before old ones go, and a
//! crash in between leaves layers that overlap, which is harmless (see the module `layers`). A step that
//! fails leaves its temporary files removed and everything else as it was, and is tried again.

mod merge;
mod weight;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use pageserver_api::layer_name::LayerFileName;
use utils::crashsafe::{self, CrashsafeError};
use utils::lsn::Lsn;

use self::merge::{Obstacles, PieceSpec, merge};
pub(super) use self::weight::outweighs_images;
use super::{ReadError, Timeline};
use crate::disk_space::is_out_of_space;
use crate::layers::LayerError;
use crate::layers::file::Layer;
use crate::layers::map::LayerMap;
use crate::layers::residence::Pin;
use crate::layers::writer::WrittenLayer;
use crate::task_kind::TaskKind;

/// Level 0 layers merged at once; bounds open files and buffers. Fewer where the disk has no room for so many: they have
/// to be here while they are merged.
pub(super) const L0_MERGE_MAX: usize = 64;

/// Bytes in memory from which on they are compacted together with a load on level 0: few would come all the time.
const REST_BYTES_MIN: u64 = 1024 * 1024;

/// Layers could not be rewritten; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum CompactionError {
    /// A layer cannot be read or written.
    #[error("cannot rewrite layers")]
    Layer(#[from] LayerError),
    /// A value cannot be read.
    #[error("cannot make an image layer")]
    Read(#[from] ReadError),
    /// The timeline is being stopped.
    #[error("the timeline is being stopped")]
    Stopping,
    /// The layers to be merged would have to be here all at once. Others need the room that there is.
    #[error("there is no room on the disk for {0} layers to be merged")]
    NoRoom(usize),
    /// New layers could not be made durable.
    #[error("cannot make layer files durable")]
    Durability(#[from] CrashsafeError),
}

/// What has become of level 0 since the last compaction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Level0 {
    /// Layers have come.
    Growing,
    /// None has.
    AtRest,
}

impl Timeline {
    /// Rewrites layers as far as the tenant's settings ask for.
    pub async fn compact(self: &Arc<Self>) -> Result<(), CompactionError> {
        let _turn = self.housekeeping_turn.lock().await;
        let level0 = self.look_at_level0();
        // Neither step depends on the other: what one cannot read, the other may not need.
        let (l0, images) = (self.compact_l0(level0).await, self.create_images().await);
        self.note_read_depth();
        l0.and(images)
    }

    /// Compares level 0 with what it was when this was asked last.
    fn look_at_level0(&self) -> Level0 {
        let layers = self.layers.load();
        let newest = layers.files.l0().last().map(|layer| layer.name().clone());
        let mut newest_before = self.newest_l0_seen.lock();
        if std::mem::replace(&mut *newest_before, newest.clone()) == newest {
            Level0::AtRest
        } else {
            Level0::Growing
        }
    }

    /// Whether level 0 holds what was loaded, rather than changed here and there: at least a file of the size that
    /// compaction makes, heavier than images of its pages. If no more comes, to wait for more layers would only keep
    /// its pages from getting images.
    async fn is_load(&self, l0: &[Arc<Layer>]) -> bool {
        let bytes: u64 = l0.iter().map(|layer| layer.file_len()).sum();
        bytes >= self.config().compaction_target_size && outweighs_images(bytes, l0).await
    }

    /// Has the end of a load, which is in memory, join the rest of it on level 0, to be merged with it at a later compaction.
    /// Whether there is such an end.
    fn freeze_rest_of_load(&self) -> bool {
        let layers = self.layers.load();
        let bytes = layers.open.as_ref().map_or(0, |open| open.memory_bytes());
        let is_worthwhile = bytes >= REST_BYTES_MIN;
        if is_worthwhile {
            self.freeze();
        }
        is_worthwhile
    }

    /// Compacts level 0 layers. Each that cannot be read is left where it is, with an error.
    async fn compact_l0(self: &Arc<Self>, level0: Level0) -> Result<(), CompactionError> {
        let (mut healed, mut unreadable) = (HashSet::new(), HashSet::new());
        let mut first_error = None;
        loop {
            let began = Instant::now();
            let Err(error) = self.compact_l0_but(&unreadable, level0).await else {
                return first_error.map_or(Ok(()), Err);
            };
            if is_no_room(&error) {
                return Err(error);
            }
            let Some(layer) = self.layer_of(&error).filter(|name| !unreadable.contains(name)) else {
                return Err(error);
            };
            if matches!(error, CompactionError::Layer(LayerError::Damaged { .. }))
                && healed.insert(layer.clone())
                && let Some(layer) = self.find_layer(&layer)
                && layer.heal(began).await
            {
                continue;
            }
            tracing::error!(tenant_id = %self.tenant_id, timeline_id = %self.timeline_id,
                "layer {layer} cannot be compacted, the others are");
            unreadable.insert(layer);
            first_error = first_error.or(Some(error));
        }
    }

    /// The layer that an error is about.
    fn layer_of(&self, error: &CompactionError) -> Option<LayerFileName> {
        let CompactionError::Layer(error) = error else {
            return None;
        };
        let (LayerError::Damaged { path, .. } | LayerError::Io { path, .. }) = error else {
            let LayerError::Download { name, .. } = error else {
                return None;
            };
            return Some((**name).clone());
        };
        path.file_name()?.to_str()?.parse().ok()
    }

    async fn compact_l0_but(
        self: &Arc<Self>,
        unreadable: &HashSet<LayerFileName>,
        level0: Level0,
    ) -> Result<(), CompactionError> {
        let files = self.layers.load().files.clone();
        let threshold = self.config().compaction_threshold.max(1);
        let mut run = run_to_merge(files.l0(), unreadable, threshold);
        if run.is_none()
            && level0 == Level0::AtRest
            && self.is_load(files.l0()).await
            && !self.freeze_rest_of_load()
        {
            run = run_to_merge(files.l0(), unreadable, 1);
        }
        let Some(run) = run else {
            return Ok(());
        };
        let merge_max = self.l0_merge_max.load(Ordering::Relaxed);
        let merged = run[..run.len().min(merge_max)].to_vec();
        let merged_count = merged.len();
        let compacted = self.merge_l0(merged, &files).await;
        let next_max = match &compacted {
            Err(error) if is_no_room(error) => (merged_count / 2).max(1),
            _ => (merge_max * 2).min(L0_MERGE_MAX),
        };
        self.l0_merge_max.store(next_max, Ordering::Relaxed);
        compacted
    }

    /// Brings the files of all layers to the local disk, and keeps them there; gives up as soon as the disk is full.
    async fn pin_all(&self, layers: &[Arc<Layer>]) -> Result<Vec<Pin>, CompactionError> {
        let mut failures = self.context.disk.failures();
        let pins = futures::future::try_join_all(layers.iter().map(|layer| layer.pin()));
        tokio::select! {
            pins = pins => Ok(pins?),
            // What was fetched for nothing can be evicted now.
            _ = failures.changed() => Err(CompactionError::NoRoom(layers.len())),
        }
    }

    async fn merge_l0(
        self: &Arc<Self>,
        merged: Vec<Arc<Layer>>,
        files: &LayerMap,
    ) -> Result<(), CompactionError> {
        let target_bytes = self.config().compaction_target_size;
        let spec = PieceSpec {
            dir: self.dir.clone(),
            id: self.id(),
            target_bytes,
            obstacles: Obstacles::new(files, target_bytes),
            lsn_range: lsn_span(&merged),
            existing: files.iter().map(|layer| layer.name().clone()).collect(),
            stopping: self.cancel.clone(),
        };
        let removed = merged.iter().map(|layer| layer.name().clone()).collect();
        let pins = self.pin_all(&merged).await?;
        let task_kind = TaskKind::current();
        let work = move || -> Result<_, CompactionError> {
            let (dir, _pins) = (spec.dir.clone(), pins);
            let written = task_kind.sync_scope(|| merge(&merged, spec))?;
            fail::fail_point!("compaction-before-sync");
            crashsafe::fsync_dir(&dir)?;
            fail::fail_point!("compaction-after-sync");
            Ok(written.take())
        };
        let written = self.run_blocking(work).await;
        self.context.disk.note(&written);
        self.replace_files(written?, removed);
        Ok(())
    }

    /// Takes new files into the map and old ones out of it, which go when their last reader does.
    pub(super) fn replace_files(&self, added: Vec<WrittenLayer>, removed: HashSet<LayerFileName>) {
        let _state = self.write_state.lock();
        let mut layers = (*self.layers.load_full()).clone();
        let doomed = layers.files.iter().filter(|layer| removed.contains(layer.name()));
        doomed.for_each(|layer| layer.doom());
        let added = self.open_files(added);
        self.schedule_upload(&added, removed.iter().cloned().collect(), None);
        layers.files = layers.files.changed(added, &removed);
        self.layers.store(Arc::new(layers));
    }
}

/// The longest run of level 0 layers that is worth merging: one of `threshold` layers, or one that will not grow.
///
/// What is merged claims to have all versions between its ends, so a run ends where a layer is unreadable, and
/// where one is missing: a crash may have left some of the layers that an earlier compaction had replaced.
fn run_to_merge<'a>(
    l0: &'a [Arc<Layer>],
    unreadable: &HashSet<LayerFileName>,
    threshold: usize,
) -> Option<&'a [Arc<Layer>]> {
    let adjoin = |a: &Arc<Layer>, b: &Arc<Layer>| b.name().lsn_range().start <= a.name().lsn_range().end;
    let newest = l0.last()?.name();
    l0.split(|layer| unreadable.contains(layer.name()))
        .flat_map(|readable| readable.chunk_by(adjoin))
        .filter(|run| run.len() >= threshold || run.last().is_some_and(|last| last.name() != newest))
        .max_by_key(|run| run.len())
}

fn is_no_room(error: &CompactionError) -> bool {
    matches!(error, CompactionError::NoRoom(_)) || is_out_of_space(error)
}

fn lsn_span(layers: &[Arc<Layer>]) -> Range<Lsn> {
    let ranges = || layers.iter().map(|layer| layer.name().lsn_range());
    let start = ranges().map(|range| range.start).min();
    let end = ranges().map(|range| range.end).max();
    start.expect("there are layers to merge")..end.expect("there are layers to merge")
}
