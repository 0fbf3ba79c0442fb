//! Image layers: made where so many deltas lie over the last image, or such heavy ones, that reads become slow.
//!
//! What is dropped or cut off is not copied: a block counts while its relation fork's directory entry says
//! that the fork exists, and the block is below the fork's size.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use pageserver_api::key::{Key, KeyKind, rel_dir_entry_key, rel_size_key};
use pageserver_api::reltag::RelTag;
use utils::crashsafe;
use utils::lsn::Lsn;

use super::compaction::{CompactionError, outweighs_images};
use super::{ReadError, Timeline};
use crate::layers::file::Layer;
use crate::layers::map::LayerMap;
use crate::layers::writer::{ImageLayerWriter, NewFiles};

/// Keys read together; bounds the pages in memory.
const BATCH_KEYS: usize = 256;

impl Timeline {
    /// Makes image layers for all key ranges that need them.
    pub(super) async fn create_images(self: &Arc<Self>) -> Result<(), CompactionError> {
        let files = self.layers.load().files.clone();
        let Some(lsn) = image_lsn(&files) else {
            return Ok(());
        };
        let mut done = Ok(());
        for range in ranges_to_image(&files, self.config().image_creation_threshold.max(1)).await {
            // A range that cannot be read does not keep the others from getting their images.
            let created = self.create_image(range, lsn).await;
            done = done.and(created);
        }
        done
    }

    /// Notes how many layers a read may have to visit.
    pub(super) fn note_read_depth(&self) {
        let files = self.layers.load().files.clone();
        let deepest = parts_of(&files).iter().map(|part| part.deltas.len()).max();
        let depth = files.l0().len() + deepest.unwrap_or(0) + 1;
        self.read_depth.store(depth, Ordering::Relaxed);
    }

    /// Layer files of this timeline that a read may have to visit, as of the last compaction.
    pub fn read_depth(&self) -> usize {
        self.read_depth.load(Ordering::Relaxed)
    }

    /// Writes the image layers of `range`, which is made of `parts`.
    async fn create_image(self: &Arc<Self>, parts: Vec<Range<Key>>, lsn: Lsn) -> Result<(), CompactionError> {
        let timeline = Arc::clone(self);
        let runtime = tokio::runtime::Handle::current();
        // Writing blocks, reading does so rarely: both run on a thread that may block.
        let work = move || -> Result<_, CompactionError> {
            let mut job = ImageJob::new(timeline, lsn);
            runtime.block_on(job.run(&parts))?;
            fail::fail_point!("image-creation-before-sync");
            crashsafe::fsync_dir(&job.timeline.dir)?;
            fail::fail_point!("image-creation-after-sync");
            Ok(job.written.take())
        };
        let written = self.run_blocking(work).await;
        self.context.disk.note(&written);
        self.replace_files(written?, Default::default());
        Ok(())
    }
}

/// Up to where compacted deltas reach: images are made there.
fn image_lsn(files: &LayerMap) -> Option<Lsn> {
    let deltas = files
        .iter()
        .filter(|layer| layer.name().is_delta() && !layer.name().is_l0());
    let last = deltas.map(|layer| layer.name().lsn_range().end).max()?;
    Some(Lsn(last.0 - 1))
}

/// Key ranges in which at least `threshold` deltas lie above the newest image, or one that weighs more than images of its
/// keys. Each comes as the parts between the bounds of layers, which adjoin.
async fn ranges_to_image(files: &LayerMap, threshold: usize) -> Vec<Vec<Range<Key>>> {
    let parts = parts_of(files);
    let heavy = heavy_deltas(&parts).await;
    let mut ranges: Vec<Vec<Range<Key>>> = Vec::new();
    for part in parts {
        let is_heavy = |layer: &&Arc<Layer>| heavy.contains(&layer.number());
        if part.deltas.len() < threshold && !part.deltas.iter().any(is_heavy) {
            continue;
        }
        match ranges.last_mut() {
            Some(range) if range.last().is_some_and(|last| last.end == part.keys.start) => {
                range.push(part.keys)
            }
            _ => ranges.push(vec![part.keys]),
        }
    }
    ranges
}

/// Numbers of the deltas that outweigh images of all keys there are between their ends.
async fn heavy_deltas(parts: &[Part<'_>]) -> HashSet<u64> {
    let mut beside: HashMap<u64, HashMap<u64, &Arc<Layer>>> = HashMap::new();
    for part in parts {
        for delta in &part.deltas {
            let layers = part.layers().map(|layer| (layer.number(), layer));
            beside.entry(delta.number()).or_default().extend(layers);
        }
    }
    let mut heavy = HashSet::new();
    for (delta, layers) in beside {
        if outweighs_images(layers[&delta].file_len(), layers.into_values()).await {
            heavy.insert(delta);
        }
    }
    heavy
}

/// Keys between two neighbouring bounds of layers above level 0, and the layers that a read of them visits.
struct Part<'a> {
    keys: Range<Key>,
    image: Option<&'a Arc<Layer>>,
    /// Those above the image.
    deltas: Vec<&'a Arc<Layer>>,
}

impl<'a> Part<'a> {
    fn new(keys: Range<Key>, covering: &[&'a Arc<Layer>]) -> Self {
        let end = |layer: &&'a Arc<Layer>| layer.name().lsn_range().end;
        let (deltas, images): (Vec<_>, Vec<_>) = covering
            .iter()
            .copied()
            .partition(|layer| layer.name().is_delta());
        let image = images.into_iter().max_by_key(end);
        let above = image.as_ref().map_or(Lsn(0), end);
        Part {
            keys,
            image,
            deltas: deltas.into_iter().filter(|layer| end(layer) > above).collect(),
        }
    }

    fn layers(&self) -> impl Iterator<Item = &'a Arc<Layer>> {
        self.deltas.iter().copied().chain(self.image)
    }
}

/// All parts, ascending.
fn parts_of(files: &LayerMap) -> Vec<Part<'_>> {
    let mut layers: Vec<&Arc<Layer>> = files.iter().filter(|layer| !layer.name().is_l0()).collect();
    layers.sort_by_key(|layer| layer.name().key_range().start);
    let mut bounds: Vec<Key> = layers
        .iter()
        .flat_map(|layer| [layer.name().key_range().start, layer.name().key_range().end])
        .collect();
    bounds.sort_unstable();
    bounds.dedup();
    let mut coming = layers.into_iter().peekable();
    let mut covering: Vec<&Arc<Layer>> = Vec::new();
    let part = |bounds: &[Key]| {
        let keys = bounds[0]..bounds[1];
        covering.retain(|layer| layer.name().key_range().end > keys.start);
        while let Some(layer) = coming.next_if(|layer| layer.name().key_range().start <= keys.start) {
            covering.push(layer);
        }
        Part::new(keys, &covering)
    };
    bounds.windows(2).map(part).collect()
}

/// A relation fork at the LSN of the images.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ForkState {
    /// Nothing of it is needed.
    Dropped,
    /// It has so many blocks.
    Blocks(u32),
    /// That cannot be told, so nothing of it is left out.
    Unknown,
}

struct ImageJob {
    timeline: Arc<Timeline>,
    lsn: Lsn,
    /// The file being filled, and the start of its key range.
    open: Option<(ImageLayerWriter, Key)>,
    /// The relation forks met.
    forks: HashMap<RelTag, ForkState>,
    written: NewFiles,
}

impl ImageJob {
    fn new(timeline: Arc<Timeline>, lsn: Lsn) -> Self {
        ImageJob {
            written: NewFiles::new(&timeline.dir),
            timeline,
            lsn,
            open: None,
            forks: HashMap::new(),
        }
    }

    /// Images of all keys in the adjoining `parts`.
    async fn run(&mut self, parts: &[Range<Key>]) -> Result<(), CompactionError> {
        let (first, last) = (parts.first(), parts.last());
        let mut start = first.expect("a range has parts").start;
        let end = last.expect("a range has parts").end;
        let target_bytes = self.timeline.config().compaction_target_size;
        for part in parts {
            let keys = self.timeline.keys(part.clone(), self.lsn).await?;
            for batch in keys.chunks(BATCH_KEYS) {
                if self.timeline.cancel.is_cancelled() {
                    return Err(CompactionError::Stopping);
                }
                let full = self
                    .open
                    .as_ref()
                    .is_some_and(|(open, _)| open.bytes() >= target_bytes);
                if full {
                    self.close(batch[0])?;
                    start = batch[0];
                }
                self.add(batch, start).await?;
            }
        }
        self.close(end)
    }

    fn close(&mut self, end: Key) -> Result<(), CompactionError> {
        if let Some((writer, start)) = self.open.take() {
            self.written.push(writer.finish(start..end)?);
        }
        Ok(())
    }

    async fn add(&mut self, keys: &[Key], start: Key) -> Result<(), CompactionError> {
        let values = self.timeline.read_many(keys, self.lsn).await?;
        for (key, value) in keys.iter().zip(values) {
            let Some(value) = value else { continue };
            if !self.is_live(*key).await? {
                continue;
            }
            let (writer, _) = match &mut self.open {
                Some(open) => open,
                None => {
                    let timeline = &self.timeline;
                    let writer = ImageLayerWriter::create(&timeline.dir, timeline.id(), start, self.lsn)?;
                    self.open.insert((writer, start))
                }
            };
            writer.add(*key, &value)?;
        }
        Ok(())
    }

    async fn is_live(&mut self, key: Key) -> Result<bool, ReadError> {
        Ok(match key.kind() {
            Some(KeyKind::RelBlock { rel, block }) => match self.fork(rel).await? {
                ForkState::Dropped => false,
                ForkState::Blocks(count) => block < count,
                ForkState::Unknown => true,
            },
            // A fork without blocks has a size, too.
            Some(KeyKind::RelSize(rel)) => self.fork(rel).await? != ForkState::Dropped,
            _ => true,
        })
    }

    async fn fork(&mut self, rel: RelTag) -> Result<ForkState, ReadError> {
        if let Some(state) = self.forks.get(&rel) {
            return Ok(*state);
        }
        let keys = [rel_dir_entry_key(rel), rel_size_key(rel)];
        let values = self.timeline.read_many(&keys, self.lsn).await?;
        let state = match &values[..] {
            [Some(entry), _] if entry[..] == [0] => ForkState::Dropped,
            [Some(_), Some(size)] => size_of(size).map_or(ForkState::Unknown, ForkState::Blocks),
            _ => ForkState::Unknown,
        };
        self.forks.insert(rel, state);
        Ok(state)
    }
}

fn size_of(raw: &Bytes) -> Option<u32> {
    let raw: [u8; 4] = raw[..].try_into().ok()?;
    Some(u32::from_le_bytes(raw))
}

#[cfg(test)]
mod tests;
