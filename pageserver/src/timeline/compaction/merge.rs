//! Merging delta layers into ones over fewer keys. Blocking.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use pageserver_api::key::Key;
use pageserver_api::layer_name::LayerFileName;
use tokio_util::sync::CancellationToken;
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

use super::CompactionError;
use crate::layers::LayerError;
use crate::layers::file::{Layer, LayerScan, ScannedValue};
use crate::layers::map::LayerMap;
use crate::layers::writer::{DeltaLayerWriter, NewFiles};

/// A layer that a new file is not stretched over has at least this part of the size that files should have.
const OBSTACLE_PART: u64 = 8;

/// What the files made of merged layers have in common.
pub(super) struct PieceSpec {
    /// Where the files go.
    pub(super) dir: PathBuf,
    /// The timeline.
    pub(super) id: TenantTimelineId,
    /// How large a file should be.
    pub(super) target_bytes: u64,
    /// What is merged.
    pub(super) lsn_range: Range<Lsn>,
    /// Layers that are there already, perhaps from before a crash: they are not written again.
    pub(super) existing: HashSet<LayerFileName>,
    /// Layers that no file should be stretched over.
    pub(super) obstacles: Obstacles,
    /// Cancelled when the work is to be given up.
    pub(super) stopping: CancellationToken,
}

/// Where larger layers lie. A new file ends before one that it has nothing for: it would count as a delta above it, and
/// so lead to images of keys that nobody has changed.
pub(super) struct Obstacles {
    /// Ascending: where a layer starts, and the least end of it and all that start behind it.
    starts: Vec<(Key, Key)>,
}

impl Obstacles {
    /// Among `files`, for new ones of `target_bytes`.
    pub(super) fn new(files: &LayerMap, target_bytes: u64) -> Self {
        let large =
            |layer: &&Arc<Layer>| !layer.name().is_l0() && layer.file_len() >= target_bytes / OBSTACLE_PART;
        let ranges = files.iter().filter(large).map(|layer| layer.name().key_range());
        let mut starts: Vec<(Key, Key)> = ranges.map(|range| (range.start, range.end)).collect();
        starts.sort_unstable();
        let mut least = Key::MAX;
        for (_, end) in starts.iter_mut().rev() {
            least = least.min(*end);
            *end = least;
        }
        Obstacles { starts }
    }

    /// Whether there is one with no other keys than those between `last` and `next`.
    fn between(&self, last: Key, next: Key) -> bool {
        let behind = self.starts.partition_point(|(start, _)| *start <= last);
        self.starts.get(behind).is_some_and(|(_, end)| *end <= next)
    }
}

/// Writes the values of `layers` into new files.
pub(super) fn merge(layers: &[Arc<Layer>], spec: PieceSpec) -> Result<NewFiles, CompactionError> {
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
        let is_full = |(open, _, last): &(DeltaLayerWriter, Key, Key)| {
            open.bytes() + bytes > self.spec.target_bytes || self.spec.obstacles.between(*last, key)
        };
        if self.open.as_ref().is_some_and(is_full) {
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
