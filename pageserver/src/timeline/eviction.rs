//! Taking layer files off the local disk.
//!
//! Only what a durable index names is evicted, and nothing that is being read.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pageserver_api::layer_name::LayerFileName;

use super::Timeline;
use crate::layers::LayerError;
use crate::layers::file::Layer;

/// What came of a request about one layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LayerMoved {
    /// Its file came, or went.
    Yes,
    /// It was so already, or cannot be.
    No,
}

/// A layer that may leave the disk.
#[derive(Clone, Debug)]
pub struct EvictionCandidate {
    /// When somebody last had use of it.
    pub last_access: SystemTime,
    /// The layer.
    pub layer: Arc<Layer>,
}

impl Timeline {
    /// The layer of this name, if it is one of the timeline's.
    pub fn find_layer(&self, name: &LayerFileName) -> Option<Arc<Layer>> {
        let layers = self.layers.load();
        layers.files.iter().find(|layer| layer.name() == name).cloned()
    }

    /// All layers whose files are on the disk and need not be.
    pub fn eviction_candidates(&self) -> Vec<EvictionCandidate> {
        let layers = self.layers.load();
        let local = layers.files.iter().filter(|layer| layer.residence().is_local());
        let durable = local.filter(|layer| layer.residence().is_durable());
        let candidate = |layer: &Arc<Layer>| EvictionCandidate {
            last_access: layer.residence().access.last_access(),
            layer: Arc::clone(layer),
        };
        durable.map(candidate).collect()
    }

    /// Evicts all layers nobody had use of for so long. Returns their number.
    pub async fn evict_unused_for(&self, threshold: Duration) -> Result<usize, LayerError> {
        let now = SystemTime::now();
        let is_old = |candidate: &EvictionCandidate| {
            now.duration_since(candidate.last_access)
                .is_ok_and(|age| age >= threshold)
        };
        let mut candidates = self.eviction_candidates();
        candidates.retain(is_old);
        let mut evicted = 0;
        for candidate in candidates {
            evicted += usize::from(evict(candidate.layer).await? == LayerMoved::Yes);
        }
        if evicted > 0 {
            tracing::info!(tenant_id = %self.tenant_id, timeline_id = %self.timeline_id,
                "evicted {evicted} layers that were not used for {threshold:?}");
        }
        Ok(evicted)
    }
}

/// Takes the layer's file off the disk, if it may go.
pub async fn evict(layer: Arc<Layer>) -> Result<LayerMoved, LayerError> {
    let evicted = utils::blocking::run(move || layer.evict()).await?;
    Ok(if evicted { LayerMoved::Yes } else { LayerMoved::No })
}

/// Brings the layer's file to the disk, if it is not there.
pub async fn fetch(layer: &Layer) -> Result<LayerMoved, LayerError> {
    if layer.residence().is_local() {
        return Ok(LayerMoved::No);
    }
    layer.pin().await?;
    Ok(LayerMoved::Yes)
}
