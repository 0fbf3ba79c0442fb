//! The layer map as a picture: keys across, LSNs up.
//!
//! Neither axis is to scale: the keys between two neighbouring bounds of layers take the same width everywhere, and so
//! do LSNs their height, so that what is small in either can be seen. What a layer is says its tool tip.

use std::collections::BTreeMap;
use std::fmt::Write;

use pageserver_api::key::Key;
use utils::lsn::Lsn;

use super::{kind, place};
use crate::view::{LayerView, Place, TimelineView, describe_key};

/// Room for labels left of the picture.
const LEFT: f64 = 330.0;
const WIDTH: f64 = 1000.0;
const MARGIN: f64 = 20.0;
/// Height of the space between two neighbouring LSNs, as far as the picture does not become too high.
const STEP: f64 = 24.0;
const HEIGHT_MAX: f64 = 6000.0;

const STYLE: &str = "text{font:11px monospace}\
    .delta{fill:#7bafd4;fill-opacity:.45;stroke:#2b5f8a}\
    .L0{fill:#bbbbbb;fill-opacity:.35;stroke:#666666}\
    .image{fill:#c0392b;stroke:#c0392b}\
    .remote{stroke-dasharray:4 3}\
    .branch{stroke:#27ae60;stroke-width:2}\
    .cutoff{stroke:#e67e22;stroke-width:2;stroke-dasharray:8 4}\
    .end{stroke:#333333}";

/// Where keys and LSNs are in the picture.
struct Scale {
    keys: BTreeMap<Key, f64>,
    lsns: BTreeMap<Lsn, f64>,
    height: f64,
}

impl Scale {
    fn new(view: &TimelineView) -> Self {
        let names = || view.layers.iter().map(|layer| &layer.name);
        let mut keys: Vec<Key> = names()
            .flat_map(|name| [name.key_range().start, name.key_range().end])
            .chain([Key::MIN, Key::MAX])
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let mut lsns: Vec<Lsn> = names()
            .flat_map(|name| [name.lsn_range().start, name.lsn_range().end])
            .chain(marks(view).map(|(_, lsn, _)| lsn))
            .collect();
        lsns.sort_unstable();
        lsns.dedup();
        let steps = lsns.len().saturating_sub(1).max(1) as f64;
        let height = (steps * STEP).min(HEIGHT_MAX);
        let key_steps = (keys.len() - 1) as f64;
        Scale {
            keys: (0_u32..)
                .zip(keys)
                .map(|(at, key)| (key, LEFT + WIDTH * f64::from(at) / key_steps))
                .collect(),
            lsns: (0_u32..)
                .zip(lsns)
                .map(|(at, lsn)| (lsn, MARGIN + height * (1.0 - f64::from(at) / steps)))
                .collect(),
            height,
        }
    }

    /// Every key and LSN that is drawn was there when the scale was made.
    fn x(&self, key: Key) -> f64 {
        self.keys[&key]
    }

    fn y(&self, lsn: Lsn) -> f64 {
        self.lsns[&lsn]
    }
}

/// Lines across the picture: class, LSN, label.
fn marks(view: &TimelineView) -> impl Iterator<Item = (&'static str, Lsn, String)> {
    let metadata = &view.metadata;
    let own = [
        ("cutoff", metadata.latest_gc_cutoff_lsn, "GC cutoff".to_owned()),
        ("end", metadata.disk_consistent_lsn, "on disk up to".to_owned()),
    ];
    let ancestor = metadata
        .ancestor
        .map(|(id, lsn)| ("branch", lsn, format!("from {id}")));
    let branches = view
        .branch_points
        .iter()
        .map(|(id, lsn)| ("branch", *lsn, id.to_string()));
    own.into_iter().chain(ancestor).chain(branches)
}

/// The picture as an SVG document.
pub fn draw(view: &TimelineView) -> String {
    let scale = Scale::new(view);
    let (width, height) = (LEFT + WIDTH + MARGIN, scale.height + 2.0 * MARGIN);
    let mut parts = vec![
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\">"
        ),
        format!("<title>{}</title><style>{STYLE}</style>", view.id),
    ];
    // Images last: they are lines, which others would hide.
    let (deltas, images): (Vec<_>, Vec<_>) = view.layers.iter().partition(|layer| layer.name.is_delta());
    parts.extend(
        deltas
            .into_iter()
            .chain(images)
            .map(|layer| rectangle(layer, &scale)),
    );
    parts.extend(marks(view).map(|mark| line(mark, &scale)));
    parts.push("</svg>\n".to_owned());
    parts.join("\n")
}

fn rectangle(layer: &LayerView, scale: &Scale) -> String {
    let (keys, lsns) = (layer.name.key_range(), layer.name.lsn_range());
    let (left, right) = (scale.x(keys.start), scale.x(keys.end));
    let (mut top, bottom) = (scale.y(lsns.end), scale.y(lsns.start));
    if !layer.name.is_delta() {
        top = bottom - 2.0;
    }
    let remote = if layer.place == Place::Remote {
        " remote"
    } else {
        ""
    };
    let mut out = String::new();
    let drawn = write!(
        out,
        "<rect class=\"{}{remote}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{} {}, {} bytes, \
         {} .. {}, {}</title></rect>",
        kind(layer),
        right - left,
        bottom - top,
        kind(layer),
        layer.name,
        layer.len.map_or("?".to_owned(), |len| len.to_string()),
        describe_key(keys.start),
        describe_key(keys.end),
        place(layer.place),
    );
    drawn.expect("a string takes what is written to it");
    out
}

fn line((class, lsn, label): (&str, Lsn, String), scale: &Scale) -> String {
    let y = scale.y(lsn);
    format!(
        "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
         <text x=\"4\" y=\"{:.1}\">{lsn} {label}</text>",
        LEFT + WIDTH,
        y + 4.0
    )
}
