//! A timeline as names show it: metadata, and which layers it has here and in object storage.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use pageserver::remote::index::IndexPart;
use pageserver::timeline::metadata::TimelineMetadata;
use pageserver_api::key::{Key, KeyKind};
use pageserver_api::layer_name::LayerFileName;
use utils::id::{TenantTimelineId, TimelineId};
use utils::lsn::Lsn;

use crate::source::Source;

/// Where copies of a layer are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// A file that no index names.
    Local,
    /// Named by the index, and no file.
    Remote,
    /// File and object.
    Both,
}

/// A layer by its name.
#[derive(Clone, Debug)]
pub struct LayerView {
    /// Its name.
    pub name: LayerFileName,
    /// Length in bytes, where known.
    pub len: Option<u64>,
    /// Where it is.
    pub place: Place,
}

/// See the module head.
#[derive(Clone, Debug)]
pub struct TimelineView {
    /// Which timeline.
    pub id: TenantTimelineId,
    /// Of file and index that which has come farther.
    pub metadata: TimelineMetadata,
    /// All layers, by the start of their LSNs and then of their keys.
    pub layers: Vec<LayerView>,
    /// Timelines that branched off this one, ascending by LSN.
    pub branch_points: Vec<(TimelineId, Lsn)>,
}

impl TimelineView {
    /// Reads names, metadata and index of a timeline.
    pub async fn read(source: &Source) -> Result<Self> {
        let index = source.read_index().await?;
        let index = index.map(|raw| IndexPart::decode(&raw)).transpose();
        let index = index.with_context(|| format!("cannot use the index of {}", source.id))?;
        let Some(metadata) = newest(source.read_metadata()?, index.as_ref()) else {
            bail!("there is no timeline {} here", source.id);
        };
        let mut layers: HashMap<LayerFileName, LayerView> = HashMap::new();
        for (name, len) in index.into_iter().flat_map(|index| index.layers) {
            let place = Place::Remote;
            layers.insert(name.clone(), LayerView { name, len, place });
        }
        for (name, len) in local_layers(source)? {
            let (len, place) = match layers.contains_key(&name) {
                true => (Some(len), Place::Both),
                false => (Some(len), Place::Local),
            };
            layers.insert(name.clone(), LayerView { name, len, place });
        }
        let mut layers: Vec<_> = layers.into_values().collect();
        layers.sort_by_key(|layer| (layer.name.lsn_range().start, layer.name.key_range().start));
        Ok(TimelineView {
            id: source.id,
            metadata,
            layers,
            branch_points: source.branch_points().await?,
        })
    }
}

/// What a server would go on from.
pub fn newest(here: Option<TimelineMetadata>, index: Option<&IndexPart>) -> Option<TimelineMetadata> {
    let there = index.map(|index| index.metadata);
    match (here, there) {
        (Some(here), Some(there)) => Some(here.newer(there)),
        (here, there) => here.or(there),
    }
}

fn local_layers(source: &Source) -> Result<Vec<(LayerFileName, u64)>> {
    let mut found = Vec::new();
    for (name, len) in list_files(source)? {
        found.extend(name.parse().ok().map(|name| (name, len)));
    }
    Ok(found)
}

/// Names and lengths of all files of a timeline's directory; none if there is no directory.
pub fn list_files(source: &Source) -> Result<Vec<(String, u64)>> {
    let what = || format!("cannot list {}", source.dir.display());
    let entries = match std::fs::read_dir(&source.dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(what)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(what)?;
        let len = entry.metadata().with_context(what)?.len();
        found.push((entry.file_name().to_string_lossy().into_owned(), len));
    }
    found.sort_unstable();
    Ok(found)
}

/// A key for people: what it addresses, if it does.
pub fn describe_key(key: Key) -> String {
    if key == Key::MIN {
        return "first key".to_owned();
    }
    if key == Key::MAX {
        return "last key".to_owned();
    }
    match key.kind() {
        Some(KeyKind::RelBlock { rel, block }) => format!("{rel} block {block}"),
        Some(KeyKind::RelSize(rel)) => format!("{rel} size"),
        Some(KeyKind::RelDirEntry(rel)) => format!("{rel} directory entry"),
        Some(KeyKind::SlruBlock { kind, segno, block }) => {
            format!("{kind:?} segment {segno:04X} block {block}")
        }
        Some(KeyKind::SlruSegmentSize { kind, segno }) => format!("{kind:?} segment {segno:04X} size"),
        Some(other) => format!("{other:?}"),
        None => key.to_string(),
    }
}
