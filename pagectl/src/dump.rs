//! Single files as text.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use pageserver::layers::access::ResidenceEvent;
use pageserver::layers::cache::PageCache;
use pageserver::layers::file::Layer;
use pageserver::layers::format::{SUMMARY_LEN, Summary};
use pageserver::layers::residence::Residence;
use pageserver::remote::index::IndexPart;
use pageserver::timeline::metadata::TimelineMetadata;
use pageserver_api::layer_name::LayerFileName;
use pageserver_api::value::{Value, WalRecord};
use postgres_ffi::v15::rmgr::{record_name, rmgr_name};
use utils::id::TenantTimelineId;

use crate::view::describe_key;

/// Where `xl_info` and `xl_rmid` stand in a record.
const XL_INFO_OFFSET: usize = 16;
const XL_RMID_OFFSET: usize = 17;
/// Room of a cache that nothing is put into.
const CACHE_BYTES: u64 = 128 * 1024;

/// How much of a layer is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LayerDetail {
    /// What the summary says.
    Summary,
    /// Each value, too.
    Values,
}

/// The layer in the file `path`, which is `name` of the timeline `id`. Nothing is read yet.
pub(crate) fn open_layer(path: &Path, id: TenantTimelineId, name: LayerFileName, len: u64) -> Arc<Layer> {
    // Only `scan` and `scrub` are called, which go past the cache.
    let cache = Arc::new(PageCache::new(CACHE_BYTES, 1));
    let residence = Residence::new((name, len), path.to_owned(), None, ResidenceEvent::Loaded);
    Layer::new(&cache, id, residence)
}

/// Shows a layer file, whatever its name.
pub fn layer(path: &Path, detail: LayerDetail, out: &mut impl Write) -> Result<()> {
    let what = || format!("cannot read {}", path.display());
    let file = std::fs::File::open(path).with_context(what)?;
    let len = file.metadata().with_context(what)?.len();
    let mut raw = [0; SUMMARY_LEN];
    std::io::Read::read_exact(&mut std::io::BufReader::new(file), &mut raw).with_context(what)?;
    let summary = match Summary::decode(&raw) {
        Ok(summary) => summary,
        Err(reason) => bail!("{} is no layer file: {reason}", path.display()),
    };
    show_summary(&summary, out)?;
    let layer = open_layer(path, summary.id, summary.name, len);
    if detail == LayerDetail::Summary {
        return Ok(());
    }
    for value in layer.scan()? {
        let (key, lsn, raw) = value?;
        let text = if layer.name().is_delta() {
            let value = Value::decode(raw).with_context(|| format!("value of {key} at {lsn}"))?;
            describe_value(&value)
        } else {
            format!("image, {} bytes", raw.len())
        };
        writeln!(out, "{key} at {lsn}: {text} ({})", describe_key(key))?;
    }
    Ok(())
}

fn show_summary(summary: &Summary, out: &mut impl Write) -> Result<()> {
    let name = &summary.name;
    let kind = match (name.is_delta(), name.is_l0()) {
        (true, true) => "delta, level 0",
        (true, false) => "delta",
        (false, _) => "image",
    };
    let (keys, lsns) = (name.key_range(), name.lsn_range());
    writeln!(out, "layer      {name}")?;
    writeln!(out, "kind       {kind}")?;
    writeln!(out, "tenant     {}", summary.id.tenant_id)?;
    writeln!(out, "timeline   {}", summary.id.timeline_id)?;
    writeln!(out, "first key  {} ({})", keys.start, describe_key(keys.start))?;
    writeln!(out, "end key    {} ({})", keys.end, describe_key(keys.end))?;
    writeln!(out, "LSNs       {} to {} (exclusive)", lsns.start, lsns.end)?;
    writeln!(out, "values     {}", summary.value_count)?;
    writeln!(out, "keys       {}", summary.key_count)?;
    writeln!(out, "bytes      {}", summary.file_len)?;
    let root = summary.root;
    writeln!(
        out,
        "index      {} levels, root at {} with {} bytes",
        summary.root_level, root.offset, root.len
    )?;
    Ok(())
}

fn describe_value(value: &Value) -> String {
    match value {
        Value::Image(page) => format!("image, {} bytes", page.len()),
        Value::WalRecord(WalRecord::Postgres { will_init, record }) => {
            let init = if *will_init { ", needs no page" } else { "" };
            format!("{}, {} bytes{init}", describe_record(record), record.len())
        }
        Value::WalRecord(record) => format!("{record:?}"),
    }
}

fn describe_record(record: &[u8]) -> String {
    let (Some(info), Some(rmid)) = (record.get(XL_INFO_OFFSET), record.get(XL_RMID_OFFSET)) else {
        return "record without a header".to_owned();
    };
    match rmgr_name(*rmid) {
        Some(rmgr) => format!("{rmgr}/{}", record_name(*rmid, *info)),
        None => format!("record of resource manager {rmid}"),
    }
}

/// Shows an `index_part.json`.
pub fn index(path: &Path, out: &mut impl Write) -> Result<()> {
    let raw = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let index = IndexPart::decode(&raw).with_context(|| format!("cannot use {}", path.display()))?;
    show_metadata(&index.metadata, out)?;
    if let Some(at) = &index.deleted_at {
        writeln!(out, "deleted_at            {at}")?;
    }
    writeln!(
        out,
        "layers                {}, {} bytes",
        index.layers.len(),
        index.layer_bytes()
    )?;
    let mut layers: Vec<_> = index.layers.iter().collect();
    layers.sort_by_key(|(name, _)| (name.lsn_range().start, name.key_range().start));
    for (name, len) in layers {
        let len = len.map_or("of unknown length".to_owned(), |len| format!("{len} bytes"));
        writeln!(out, "{name} {len}")?;
    }
    Ok(())
}

/// Shows a timeline's `metadata` file.
pub fn metadata(path: &Path, out: &mut impl Write) -> Result<()> {
    let raw = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let metadata =
        TimelineMetadata::decode(&raw).with_context(|| format!("cannot use {}", path.display()))?;
    show_metadata(&metadata, out)
}

pub(crate) fn show_metadata(metadata: &TimelineMetadata, out: &mut impl Write) -> Result<()> {
    writeln!(out, "disk_consistent_lsn   {}", metadata.disk_consistent_lsn)?;
    match metadata.prev_record_lsn {
        Some(lsn) => writeln!(out, "prev_record_lsn       {lsn}")?,
        None => writeln!(out, "prev_record_lsn       unknown")?,
    }
    match metadata.ancestor {
        Some((id, lsn)) => writeln!(out, "ancestor              {id} at {lsn}")?,
        None => writeln!(out, "ancestor              none")?,
    }
    writeln!(out, "latest_gc_cutoff_lsn  {}", metadata.latest_gc_cutoff_lsn)?;
    writeln!(out, "initdb_lsn            {}", metadata.initdb_lsn)?;
    writeln!(out, "pg_version            {}", metadata.pg_version)?;
    Ok(())
}
