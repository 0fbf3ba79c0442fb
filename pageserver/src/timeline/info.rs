//! The layers of a timeline as the management API shows them.

use pageserver_api::models::{HistoricLayerInfo, InMemoryLayerInfo, LayerMapInfo};

use super::Timeline;
use crate::layers::access::ResetStats;
use crate::layers::file::Layer;

impl Timeline {
    /// What layers there are now; `reset` forgets statistics once they are shown.
    pub fn layer_map_info(&self, reset: ResetStats) -> LayerMapInfo {
        let layers = self.layers.load();
        let frozen = layers.frozen.iter().filter_map(|frozen| frozen.layer.as_ref());
        let in_memory = frozen.chain(&layers.open).map(|layer| match layer.end() {
            Some(lsn_end) => InMemoryLayerInfo::Frozen {
                lsn_start: layer.start(),
                lsn_end,
            },
            None => InMemoryLayerInfo::Open {
                lsn_start: layer.start(),
            },
        });
        LayerMapInfo {
            in_memory_layers: in_memory.collect(),
            historic_layers: layers.files.iter().map(|layer| historic(layer, reset)).collect(),
        }
    }

    /// Number of layer files on the local disk.
    pub fn resident_layer_count(&self) -> usize {
        let layers = self.layers.load();
        let files = layers.files.iter();
        files.filter(|layer| layer.residence().is_local()).count()
    }
}

fn historic(layer: &Layer, reset: ResetStats) -> HistoricLayerInfo {
    let name = layer.name();
    let (layer_file_name, layer_file_size) = (name.to_string(), Some(layer.file_len()));
    let lsns = name.lsn_range();
    let remote = !layer.residence().is_local();
    let access_stats = layer.residence().access.stats(reset);
    if name.is_delta() {
        HistoricLayerInfo::Delta {
            layer_file_name,
            layer_file_size,
            lsn_start: lsns.start,
            lsn_end: lsns.end,
            remote,
            access_stats,
        }
    } else {
        HistoricLayerInfo::Image {
            layer_file_name,
            layer_file_size,
            lsn_start: lsns.start,
            remote,
            access_stats,
        }
    }
}
