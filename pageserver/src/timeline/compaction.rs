//! Compaction: level 0 deltas, each over all keys, become deltas over few keys; where those pile up, image layers.
//!
//! Neither changes what any read returns. New files are durable and in the map before old ones go, and a
//! crash in between leaves layers that overlap, which is harmless (see the module `layers`). A step that
//! fails leaves its temporary files removed and everything else as it was, and is tried again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use pageserver_api::key::Key;
use pageserver_api::layer_name::LayerFileName;
use tokio_util::sync::CancellationToken;
use utils::crashsafe::{self, CrashsafeError};
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

use super::{ReadError, Timeline};
use crate::disk_space::is_out_of_space;
use crate::layers::LayerError;
use crate::layers::file::{Layer, LayerScan, ScannedValue};
use crate::layers::map::LayerMap;
use crate::layers::residence::Pin;
use crate::layers::writer::{DeltaLayerWriter, NewFiles, WrittenLayer};
use crate::task_kind::TaskKind;

/// Level 0 layers merged at once; bounds open files and buffers. Fewer where the disk has no room for so many: they have
/// to be here while they are merged.
pub(super) const L0_MERGE_MAX: usize = 64;

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

impl Timeline {
    /// Rewrites layers as far as the tenant's settings ask for.
    pub async fn compact(self: &Arc<Self>) -> Result<(), CompactionError> {
        let _turn = self.housekeeping_turn.lock().await;
        // Neither step depends on the other: what one cannot read, the other may not need.
        let (l0, images) = (self.compact_l0().await, self.create_images().await);
        self.note_read_depth();
        l0.and(images)
    }

    /// Compacts level 0 layers. Each that cannot be read is left where it is, with an error.
    async fn compact_l0(self: &Arc<Self>) -> Result<(), CompactionError> {
        let (mut healed, mut unreadable) = (HashSet::new(), HashSet::new());
        let mut first_error = None;
        loop {
            let began = Instant::now();
            let Err(error) = self.compact_l0_but(&unreadable).await else {
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
    ) -> Result<(), CompactionError> {
        let config = self.config();
        let files = self.layers.load().files.clone();
        let Some(run) = run_to_merge(files.l0(), unreadable, config.compaction_threshold.max(1)) else {
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
        let spec = PieceSpec {
            dir: self.dir.clone(),
            id: self.id(),
            target_bytes: self.config().compaction_target_size,
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

/// What the files made of merged layers have in common.
struct PieceSpec {
    dir: PathBuf,
    id: TenantTimelineId,
    target_bytes: u64,
    lsn_range: Range<Lsn>,
    /// Layers that are there already, perhaps from before a crash: they are not written again.
    existing: HashSet<LayerFileName>,
    /// Cancelled when the work is to be given up.
    stopping: CancellationToken,
}

/// Merges delta layers into ones over fewer keys. Blocking.
fn merge(layers: &[Arc<Layer>], spec: PieceSpec) -> Result<NewFiles, CompactionError> {
    let mut pieces = Pieces::new(spec);
    let mut of_key: Vec<(Lsn, Bytes)> = Vec::new();
    let (mut current, mut bytes) = (None, 0);
    for value in Merge::new(layers)? {
        let (key, lsn, value) = value?;
        if pieces.spec.stopping.is_cancelled() {
            return Err(CompactionError::Stopping);
        }
        if current != Some(key) {
            pieces.end_key(current, &mut of_key)?;
            (current, bytes) = (Some(key), 0);
        }
        bytes += value.len() as u64;
        of_key.push((lsn, value));
        if bytes >= pieces.spec.target_bytes {
            pieces.split_key(key, &mut of_key)?;
            bytes = 0;
        }
    }
    pieces.end_key(current, &mut of_key)?;
    Ok(pieces.finish()?)
}

/// The files being written: cut between keys, and within a key that is larger than a file should be.
struct Pieces {
    spec: PieceSpec,
    /// The file being filled, and its first and last key.
    open: Option<(DeltaLayerWriter, Key, Key)>,
    /// The key that is being split, and the LSN from which on its versions are not written yet.
    split: Option<(Key, Lsn)>,
    written: NewFiles,
}

impl Pieces {
    fn new(spec: PieceSpec) -> Self {
        Pieces {
            written: NewFiles::new(&spec.dir),
            spec,
            open: None,
            split: None,
        }
    }

    /// All versions of `key`, or the last of them if it was split, are in `of_key`.
    fn end_key(&mut self, key: Option<Key>, of_key: &mut Vec<(Lsn, Bytes)>) -> Result<(), LayerError> {
        let Some(key) = key else {
            return Ok(());
        };
        if let Some((split, start)) = self.split.take() {
            assert_eq!(split, key, "a split key ends before the next one begins");
            let end = self.spec.lsn_range.end;
            return self.write_split(key, start..end, of_key);
        }
        let bytes: u64 = of_key.iter().map(|(_, value)| value.len() as u64).sum();
        if self
            .open
            .as_ref()
            .is_some_and(|(open, ..)| open.bytes() + bytes > self.spec.target_bytes)
        {
            self.close()?;
        }
        let (writer, _, last) = match &mut self.open {
            Some(open) => open,
            None => {
                let writer =
                    DeltaLayerWriter::create(&self.spec.dir, self.spec.id, key, self.spec.lsn_range.clone())?;
                self.open.insert((writer, key, key))
            }
        };
        *last = key;
        of_key
            .drain(..)
            .try_for_each(|(lsn, value)| writer.add_encoded(key, lsn, &value))
    }

    /// So many versions of `key` have come that they make a file of their own, and more may follow.
    fn split_key(&mut self, key: Key, of_key: &mut Vec<(Lsn, Bytes)>) -> Result<(), LayerError> {
        self.close()?;
        let start = self.split.map_or(self.spec.lsn_range.start, |(_, start)| start);
        let last = of_key.last().expect("versions came").0;
        let end = Lsn(last.0 + 1);
        self.write_split(key, start..end, of_key)?;
        self.split = Some((key, end));
        Ok(())
    }

    fn write_split(
        &mut self,
        key: Key,
        lsn_range: Range<Lsn>,
        of_key: &mut Vec<(Lsn, Bytes)>,
    ) -> Result<(), LayerError> {
        if of_key.is_empty() {
            return Ok(());
        }
        let mut writer = DeltaLayerWriter::create(&self.spec.dir, self.spec.id, key, lsn_range)?;
        of_key
            .drain(..)
            .try_for_each(|(lsn, value)| writer.add_encoded(key, lsn, &value))?;
        self.finish_file(writer, key..key.next())
    }

    fn close(&mut self) -> Result<(), LayerError> {
        match self.open.take() {
            Some((writer, first, last)) => self.finish_file(writer, first..last.next()),
            None => Ok(()),
        }
    }

    fn finish_file(&mut self, writer: DeltaLayerWriter, key_range: Range<Key>) -> Result<(), LayerError> {
        // The same rectangle holds the same versions; dropping the writer removes the copy.
        if !self.spec.existing.contains(&writer.name(key_range.clone())) {
            self.written.push(writer.finish(key_range)?);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<NewFiles, LayerError> {
        self.close()?;
        Ok(self.written)
    }
}

/// The next value of a scan, ordered by key and LSN.
struct Head {
    value: ScannedValue,
    scan: usize,
}

impl Head {
    fn order(&self) -> (Key, Lsn, usize) {
        (self.value.0, self.value.1, self.scan)
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// All versions of several layers by key and LSN; one that is in two layers comes once.
struct Merge {
    scans: Vec<LayerScan>,
    heads: BinaryHeap<Reverse<Head>>,
    last: Option<(Key, Lsn)>,
}

impl Merge {
    fn new(layers: &[Arc<Layer>]) -> Result<Self, LayerError> {
        let scans: Vec<LayerScan> = layers.iter().map(Layer::scan).collect::<Result<_, _>>()?;
        let mut merge = Merge {
            heads: BinaryHeap::with_capacity(scans.len()),
            scans,
            last: None,
        };
        (0..layers.len()).try_for_each(|scan| merge.advance(scan))?;
        Ok(merge)
    }

    fn advance(&mut self, scan: usize) -> Result<(), LayerError> {
        if let Some(value) = self.scans[scan].next() {
            let value = value?;
            self.heads.push(Reverse(Head { value, scan }));
        }
        Ok(())
    }
}

impl Iterator for Merge {
    type Item = Result<ScannedValue, LayerError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Reverse(Head { value, scan }) = self.heads.pop()?;
            if let Err(error) = self.advance(scan) {
                return Some(Err(error));
            }
            let at = Some((value.0, value.1));
            if at != self.last {
                self.last = at;
                return Some(Ok(value));
            }
        }
    }
}
