//! The layer map as text: one line per layer, the newest first.

use std::io::Write;

use anyhow::Result;

use super::{kind, place};
use crate::dump;
use crate::view::{LayerView, TimelineView, describe_key};

/// Writes the map.
pub fn write(view: &TimelineView, out: &mut impl Write) -> Result<()> {
    writeln!(out, "timeline              {}", view.id)?;
    dump::show_metadata(&view.metadata, out)?;
    for (branch, lsn) in &view.branch_points {
        writeln!(out, "branch                {branch} at {lsn}")?;
    }
    writeln!(out)?;
    for layer in view.layers.iter().rev() {
        writeln!(out, "{}", line(layer))?;
    }
    let bytes: u64 = view.layers.iter().filter_map(|layer| layer.len).sum();
    let count = |wanted| view.layers.iter().filter(|layer| kind(layer) == wanted).count();
    writeln!(
        out,
        "\n{} layers, {bytes} bytes: {} of level 0, {} deltas above it, {} images",
        view.layers.len(),
        count("L0"),
        count("delta"),
        count("image")
    )?;
    Ok(())
}

fn line(layer: &LayerView) -> String {
    let (keys, lsns) = (layer.name.key_range(), layer.name.lsn_range());
    let lsns = if layer.name.is_delta() {
        format!("{}..{}", lsns.start, lsns.end)
    } else {
        lsns.start.to_string()
    };
    let len = layer.len.map_or("?".to_owned(), |len| len.to_string());
    format!(
        "{:<5}  {lsns:<24}  {:<6}  {len:>10}  {} .. {}",
        kind(layer),
        place(layer.place),
        describe_key(keys.start),
        describe_key(keys.end)
    )
}
