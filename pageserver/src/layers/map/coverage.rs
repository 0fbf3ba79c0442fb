//! The segment tree of the layer map, as flat arrays.

use std::ops::Range;

use pageserver_api::key::Key;
use pageserver_api::layer_name::LayerFileName;
use utils::lsn::Lsn;

/// Layers that all cover the same keys, searchable by LSN.
#[derive(Debug, Default)]
pub struct LsnIndex {
    /// Start of each delta, ascending, with the end and the number of the one of those up to here that ends last.
    deltas: Vec<(Lsn, Lsn, u32)>,
    /// LSN and number of each image, ascending.
    images: Vec<(Lsn, u32)>,
}

/// What a search has found so far: numbers of layers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Best {
    /// End and number of the delta layer that ends last of those that start below the bound.
    pub delta: Option<(Lsn, u32)>,
    /// LSN and number of the last image layer below the bound.
    pub image: Option<(Lsn, u32)>,
}

impl LsnIndex {
    /// Layers are numbered in the order in which they come.
    pub fn new<'a>(names: impl Iterator<Item = &'a LayerFileName>) -> Self {
        let mut index = LsnIndex::default();
        for (number, name) in names.enumerate() {
            index.push(name, number as u32);
        }
        index.finish();
        index
    }

    fn push(&mut self, name: &LayerFileName, number: u32) {
        match name {
            LayerFileName::Delta { lsn_range, .. } => {
                self.deltas.push((lsn_range.start, lsn_range.end, number));
            }
            LayerFileName::Image { lsn, .. } => self.images.push((*lsn, number)),
        }
    }

    fn finish(&mut self) {
        self.images.sort_unstable();
        self.deltas.sort_unstable();
        for at in 1..self.deltas.len() {
            let (_, end, number) = self.deltas[at - 1];
            if end > self.deltas[at].1 {
                (self.deltas[at].1, self.deltas[at].2) = (end, number);
            }
        }
    }

    /// End and number of the delta that ends last of those that start below `upper`.
    pub fn delta_below(&self, upper: Lsn) -> Option<(Lsn, u32)> {
        let below = self.deltas.partition_point(|(start, ..)| *start < upper);
        let (_, end, number) = self.deltas.get(below.checked_sub(1)?)?;
        Some((*end, *number))
    }

    fn image_below(&self, upper: Lsn) -> Option<(Lsn, u32)> {
        let below = self.images.partition_point(|(lsn, _)| *lsn < upper);
        self.images.get(below.checked_sub(1)?).copied()
    }

    fn improve(&self, upper: Lsn, best: &mut Best) {
        best.delta = best.delta.max(self.delta_below(upper));
        best.image = best.image.max(self.image_below(upper));
    }
}

/// Layers of any key ranges. Node 1 is the root, nodes 2n and 2n + 1 are below node n, and the leaves, one for
/// each elementary interval, follow the inner nodes.
#[derive(Debug, Default)]
pub struct Coverage {
    /// Starts of the elementary intervals, and the end of the last.
    bounds: Vec<PackedKey>,
    nodes: Vec<Node>,
    indexes: Vec<LsnIndex>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    /// Index of its layers in `indexes`, or [`EMPTY`].
    index: u32,
    /// The nearest node above that is not empty, or 0: most nodes of a map that was compacted are.
    up: u32,
}

const EMPTY: u32 = u32::MAX;

/// A key as numbers, which are compared faster than its fields.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
struct PackedKey(u128, u16);

impl From<&Key> for PackedKey {
    fn from(key: &Key) -> Self {
        let raw = key.to_bytes();
        let (high, low) = raw.split_first_chunk().expect("a key has 18 bytes");
        let low = low.try_into().expect("two of them are left");
        PackedKey(u128::from_be_bytes(*high), u16::from_be_bytes(low))
    }
}

impl Coverage {
    /// Layers are numbered in the order in which they come.
    pub fn new<'a>(names: impl Iterator<Item = &'a LayerFileName> + Clone) -> Self {
        let mut bounds: Vec<PackedKey> = names
            .clone()
            .flat_map(|name| [&name.key_range().start, &name.key_range().end])
            .map(PackedKey::from)
            .collect();
        bounds.sort_unstable();
        bounds.dedup();
        let leaves = bounds.len().saturating_sub(1);
        let mut coverage = Coverage {
            bounds,
            nodes: vec![Node { index: EMPTY, up: 0 }; 2 * leaves],
            indexes: Vec::new(),
        };
        for (number, name) in names.enumerate() {
            coverage.insert(name, number as u32);
        }
        for index in &mut coverage.indexes {
            index.finish();
        }
        for node in 2..coverage.nodes.len() {
            let parent = coverage.nodes[node / 2];
            coverage.nodes[node].up = match parent.index {
                EMPTY => parent.up,
                _ => (node / 2) as u32,
            };
        }
        coverage
    }

    fn leaves(&self) -> usize {
        self.nodes.len() / 2
    }

    fn leaf_range(&self, keys: &Range<Key>) -> Range<usize> {
        let leaf = |key: &Key| {
            let at = self.bounds.binary_search(&key.into());
            at.expect("every bound of a layer is a bound of the tree") + self.leaves()
        };
        leaf(&keys.start)..leaf(&keys.end)
    }

    fn insert(&mut self, name: &LayerFileName, number: u32) {
        let Range {
            start: mut left,
            end: mut right,
        } = self.leaf_range(name.key_range());
        // The usual climb: whatever hangs over to the side of its parent is entered where it is.
        while left < right {
            if left % 2 == 1 {
                self.index_of(left).push(name, number);
                left += 1;
            }
            if right % 2 == 1 {
                right -= 1;
                self.index_of(right).push(name, number);
            }
            left /= 2;
            right /= 2;
        }
    }

    fn index_of(&mut self, node: usize) -> &mut LsnIndex {
        let index = &mut self.nodes[node].index;
        if *index == EMPTY {
            *index = self.indexes.len() as u32;
            self.indexes.push(LsnIndex::default());
        }
        &mut self.indexes[*index as usize]
    }

    /// The best of the layers that cover `key` and have LSNs below `upper`.
    pub fn best(&self, key: Key, upper: Lsn) -> Best {
        let mut best = Best::default();
        let key = PackedKey::from(&key);
        let at = self.bounds.partition_point(|bound| *bound <= key);
        if at > 0 && at <= self.leaves() {
            let mut node = at - 1 + self.leaves();
            while node > 0 {
                let Node { index, up } = self.nodes[node];
                if index != EMPTY {
                    self.indexes[index as usize].improve(upper, &mut best);
                }
                node = up as usize;
            }
        }
        best
    }
}
