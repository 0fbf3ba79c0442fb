//! The layers of a timeline as a reader sees them: one immutable snapshot.

use std::sync::Arc;

use crate::layers::in_memory::InMemoryLayer;

/// All layers of a timeline. Replaced as a whole, under the lock of the write state.
#[derive(Clone, Debug, Default)]
pub struct LayerSet {
    /// Takes new versions; made when the first one comes.
    pub open: Option<Arc<InMemoryLayer>>,
    /// On their way to disk, oldest first.
    pub frozen: Vec<Arc<InMemoryLayer>>,
}

impl LayerSet {
    /// The layers in memory, newest first.
    pub fn in_memory(&self) -> impl Iterator<Item = &Arc<InMemoryLayer>> {
        self.open.iter().chain(self.frozen.iter().rev())
    }
}
