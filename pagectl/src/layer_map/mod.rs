//! A timeline's layer map for people: as text, and as a picture with keys across and LSNs up.

pub mod svg;
pub mod text;

use crate::view::{LayerView, Place};

/// What a layer is.
fn kind(layer: &LayerView) -> &'static str {
    match (layer.name.is_delta(), layer.name.is_l0()) {
        (true, true) => "L0",
        (true, false) => "delta",
        (false, _) => "image",
    }
}

fn place(place: Place) -> &'static str {
    match place {
        Place::Local => "local",
        Place::Remote => "remote",
        Place::Both => "both",
    }
}
