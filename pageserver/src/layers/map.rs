//! Which layer file to read next for a key: the layer files of a timeline, searchable by key and LSN.
//!
//! A map never changes; a changed one is made from it. Level 0 deltas, which cover all keys and come
//! with every flush, are searched apart from the others, so that adding one does not rebuild anything.
//!
//! The others are in a segment tree over the key space: all their key bounds cut it into
//! elementary intervals, which are the leaves; each layer is entered at the few inner nodes that together
//! make up its key range. A lookup goes from one leaf to the root, and in each node needs one binary search
//! by LSN. Time O(log^2 n), memory O(n log n), whatever the layers' shapes.

mod coverage;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use pageserver_api::key::Key;
use pageserver_api::layer_name::LayerFileName;
use utils::lsn::Lsn;

use self::coverage::{Best, Coverage, LsnIndex};
use super::file::Layer;

/// See the module head.
#[derive(Clone, Debug, Default)]
pub struct LayerMap {
    l0: Arc<Vec<Arc<Layer>>>,
    l0_index: Arc<LsnIndex>,
    others: Arc<Vec<Arc<Layer>>>,
    coverage: Arc<Coverage>,
}

/// The layer to read next for a key.
#[derive(Clone, Debug)]
pub struct NextLayer<'a> {
    /// The layer.
    pub layer: &'a Arc<Layer>,
    /// Versions below are to be had more cheaply elsewhere; after this layer, only they are missing.
    pub floor: Lsn,
}

impl LayerMap {
    /// The map with the layers `added`, and without those named in `removed`.
    pub fn changed(&self, added: Vec<Arc<Layer>>, removed: &HashSet<LayerFileName>) -> LayerMap {
        let stays = |layer: &&Arc<Layer>| !removed.contains(layer.name());
        let mut changed = self.clone();
        let (l0, others): (Vec<_>, Vec<_>) = added.into_iter().partition(|layer| layer.name().is_l0());
        if !l0.is_empty() || !self.l0.iter().all(|layer| stays(&layer)) {
            let mut layers: Vec<_> = self.l0.iter().filter(stays).cloned().chain(l0).collect();
            layers.sort_by_key(|layer| layer.name().lsn_range().start);
            changed.l0_index = Arc::new(LsnIndex::new(layers.iter().map(|layer| layer.name())));
            changed.l0 = Arc::new(layers);
        }
        if !others.is_empty() || !self.others.iter().all(|layer| stays(&layer)) {
            let layers: Vec<_> = self.others.iter().filter(stays).cloned().chain(others).collect();
            changed.coverage = Arc::new(Coverage::new(layers.iter().map(|layer| layer.name())));
            changed.others = Arc::new(layers);
        }
        changed
    }

    /// All layers, level 0 first and in the order of their LSNs.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Layer>> {
        self.l0.iter().chain(self.others.iter())
    }

    /// Level 0 layers, ascending by LSN.
    pub fn l0(&self) -> &[Arc<Layer>] {
        &self.l0
    }

    /// Number of layers.
    pub fn len(&self) -> usize {
        self.l0.len() + self.others.len()
    }

    /// Whether there are no layers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a layer has this name.
    pub fn contains(&self, name: &LayerFileName) -> bool {
        self.iter().any(|layer| layer.name() == name)
    }

    /// Bytes of all layer files.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|layer| layer.file_len()).sum()
    }

    /// Where to look for versions of `key` below `upper`; `None` if this timeline's files have none.
    pub fn next(&self, key: Key, upper: Lsn) -> Option<NextLayer<'_>> {
        let Best { delta, image } = self.coverage.best(key, upper);
        let mut delta = delta.map(|(end, at)| (end, &self.others[at as usize]));
        if let Some((end, at)) = self.l0_index.delta_below(upper)
            && delta.is_none_or(|(other, _)| end > other)
        {
            delta = Some((end, &self.l0[at as usize]));
        }
        let above_image = image.map_or(Lsn(0), |(lsn, _)| Lsn(lsn.0 + 1));
        match (delta, image) {
            // An upper bound between the delta's end and the image makes no difference: see the module `layers`.
            (Some((end, layer)), _) if end.min(upper) > above_image => Some(NextLayer {
                layer,
                floor: layer.name().lsn_range().start.max(above_image),
            }),
            (_, Some((lsn, at))) => Some(NextLayer {
                layer: &self.others[at as usize],
                floor: lsn,
            }),
            _ => None,
        }
    }

    /// What a scan of `range` at LSNs below `upper` has to look at, by part of the range.
    pub fn plan_scan(&self, range: &Range<Key>, upper: Lsn) -> Vec<ScanPart> {
        let meets = |layer: &Arc<Layer>| {
            let keys = layer.name().key_range();
            keys.start < range.end && range.start < keys.end && layer.name().lsn_range().start < upper
        };
        let layers: Vec<&Arc<Layer>> = self.iter().filter(|layer| meets(layer)).collect();
        let mut bounds = vec![range.start, range.end];
        for layer in layers.iter().filter(|layer| !layer.name().is_delta()) {
            let keys = layer.name().key_range();
            bounds.extend(
                [keys.start, keys.end]
                    .into_iter()
                    .filter(|key| range.contains(key)),
            );
        }
        bounds.sort_unstable();
        bounds.dedup();
        let parts = bounds.windows(2).map(|pair| pair[0]..pair[1]);
        parts.map(|part| self.plan_part(part, upper, &layers)).collect()
    }

    /// Within `part` no image layer begins or ends.
    fn plan_part(&self, part: Range<Key>, upper: Lsn, layers: &[&Arc<Layer>]) -> ScanPart {
        let image = self.coverage.best(part.start, upper).image;
        let above_image = image.map_or(Lsn(0), |(lsn, _)| Lsn(lsn.0 + 1));
        let newer = layers.iter().filter(|layer| {
            let (keys, lsns) = (layer.name().key_range(), layer.name().lsn_range());
            let meets = keys.start < part.end && part.start < keys.end;
            layer.name().is_delta() && meets && lsns.end > above_image
        });
        let image_layer = image.map(|(_, at)| &self.others[at as usize]);
        ScanPart {
            layers: newer.copied().chain(image_layer).cloned().collect(),
            complete: image.is_some(),
            range: part,
        }
    }
}

/// A part of a scanned range, and where its keys are.
#[derive(Clone, Debug)]
pub struct ScanPart {
    /// Keys.
    pub range: Range<Key>,
    /// The newest image layer and the deltas after it.
    pub layers: Vec<Arc<Layer>>,
    /// Whether there is an image layer, so that ancestors have nothing to add.
    pub complete: bool,
}

#[cfg(test)]
mod tests;
