//! The layers of a timeline as a reader sees them: one immutable snapshot.

use std::sync::Arc;

use utils::lsn::RecordLsn;

use crate::layers::in_memory::InMemoryLayer;
use crate::layers::map::LayerMap;

/// All layers of a timeline. Replaced as a whole, under the lock of the write state.
#[derive(Clone, Debug, Default)]
pub struct LayerSet {
    /// Takes new versions; made when the first one comes.
    pub open: Option<Arc<InMemoryLayer>>,
    /// On their way to disk, oldest first.
    pub frozen: Vec<FrozenLayer>,
    /// On disk.
    pub files: LayerMap,
}

/// What is to be made durable next.
#[derive(Clone, Debug)]
pub struct FrozenLayer {
    /// The versions; `None` if there were records, but none that changed a value.
    pub layer: Option<Arc<InMemoryLayer>>,
    /// The last record before it was frozen.
    pub end: RecordLsn,
}

impl LayerSet {
    /// The layers in memory, newest first.
    pub fn in_memory(&self) -> impl Iterator<Item = &Arc<InMemoryLayer>> {
        let frozen = self.frozen.iter().rev();
        self.open
            .iter()
            .chain(frozen.filter_map(|frozen| frozen.layer.as_ref()))
    }
}
