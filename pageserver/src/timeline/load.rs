//! Finding the layer files of a timeline at start.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pageserver_api::layer_name::LayerFileName;
use utils::crashsafe::{self, TEMP_SUFFIX};

use super::{Timeline, metadata};
use crate::layers::LayerError;
use crate::layers::access::ResidenceEvent;
use crate::layers::file::Layer;
use crate::layers::writer::WrittenLayer;
use crate::remote::download::TEMP_DOWNLOAD_SUFFIX;
use crate::remote::index::IndexPart;

/// Suffix of files that were set aside.
const OLD_SUFFIX: &str = ".old";

/// What a file in a timeline's directory is, by its name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TimelineFile {
    /// The metadata.
    Metadata,
    /// A layer.
    Layer(LayerFileName),
    /// Left behind by a crash; the next start removes it.
    Unfinished,
    /// Set aside at a start, for people.
    SetAside,
    /// Not ours.
    Unknown,
}

impl TimelineFile {
    /// What the file called `name` is.
    pub fn of(name: &str) -> Self {
        let unfinished = [TEMP_SUFFIX, TEMP_DOWNLOAD_SUFFIX];
        if unfinished.iter().any(|suffix| name.ends_with(suffix)) || name.starts_with("ephemeral-") {
            TimelineFile::Unfinished
        } else if let Ok(layer) = name.parse() {
            TimelineFile::Layer(layer)
        } else if name == metadata::FILE_NAME {
            TimelineFile::Metadata
        } else if name.ends_with(OLD_SUFFIX) {
            TimelineFile::SetAside
        } else {
            TimelineFile::Unknown
        }
    }
}

impl Timeline {
    /// Reads the names of all layer files; removes what was not finished, sets aside what metadata does not
    /// cover. What only `index`, of object storage, names is there, too; what it lacks is uploaded. Blocking.
    pub fn load_layers(&self, index: Option<&IndexPart>) -> Result<(), LayerError> {
        let mut found = Vec::new();
        let entries = std::fs::read_dir(&self.dir).map_err(LayerError::io("list", &self.dir))?;
        for entry in entries {
            let entry = entry.map_err(LayerError::io("list", &self.dir))?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            match TimelineFile::of(&name) {
                TimelineFile::Unfinished => {
                    std::fs::remove_file(&path).map_err(LayerError::io("remove", &path))?;
                }
                TimelineFile::Layer(name) => {
                    let metadata = entry.metadata().map_err(LayerError::io("inspect", &path))?;
                    found.extend(self.keep_or_set_aside(&path, name, metadata.len())?);
                }
                TimelineFile::Metadata | TimelineFile::SetAside => {}
                TimelineFile::Unknown => tracing::warn!(path = %path.display(), "unrecognized name"),
            }
        }
        let found = self.compare_lengths(found, index)?;
        self.take_over(found, index);
        Ok(())
    }

    /// Sets aside files that are not as long as the index says: the object is used instead.
    fn compare_lengths(
        &self,
        found: Vec<WrittenLayer>,
        index: Option<&IndexPart>,
    ) -> Result<Vec<WrittenLayer>, LayerError> {
        let wanted = |name: &LayerFileName| index.and_then(|index| index.layers.get(name).copied().flatten());
        let mut kept = Vec::new();
        for layer in found {
            match wanted(&layer.name) {
                Some(want) if want != layer.file_len => {
                    let path = self.dir.join(layer.name.to_string());
                    tracing::warn!(
                        "removing local file {} because it has unexpected length {} instead of {want}",
                        path.display(),
                        layer.file_len
                    );
                    std::fs::rename(&path, free_old_name(&path)).map_err(LayerError::io("rename", &path))?;
                }
                _ => kept.push(layer),
            }
        }
        Ok(kept)
    }

    /// Makes the layer map of the files `found` and of what `index` names beyond them, and schedules the upload
    /// of what it lacks.
    fn take_over(&self, found: Vec<WrittenLayer>, index: Option<&IndexPart>) {
        let local: HashSet<LayerFileName> = found.iter().map(|layer| layer.name.clone()).collect();
        let is_new = |layer: &Arc<Layer>| !index.is_some_and(|index| index.layers.contains_key(layer.name()));
        let mut added: Vec<Arc<Layer>> = found
            .into_iter()
            .map(|layer| self.open_file(layer, ResidenceEvent::Loaded))
            .collect();
        let new: Vec<Arc<Layer>> = added.iter().filter(|layer| is_new(layer)).cloned().collect();
        let named = index.into_iter().flat_map(|index| &index.layers);
        let remote = named.filter(|(name, _)| !local.contains(name));
        added.extend(remote.map(|(name, file_len)| {
            let file_len = file_len.expect("lengths are completed before layers are loaded");
            let name = name.clone();
            self.open_file(WrittenLayer { name, file_len }, ResidenceEvent::LoadedRemote)
        }));
        let _state = self.write_state.lock();
        let metadata = *self
            .saved_metadata
            .try_lock()
            .expect("nobody else has the timeline yet");
        let is_same = index.is_some_and(|index| index.metadata == metadata);
        if !is_same || !new.is_empty() {
            self.schedule_upload(&new, Vec::new(), Some(metadata));
        }
        let mut layers = (*self.layers.load_full()).clone();
        layers.files = layers.files.changed(added, &Default::default());
        self.layers.store(Arc::new(layers));
    }

    fn keep_or_set_aside(
        &self,
        path: &Path,
        name: LayerFileName,
        file_len: u64,
    ) -> Result<Option<WrittenLayer>, LayerError> {
        if name.lsn_range().end.0 <= self.disk_consistent_lsn().0 + 1 {
            return Ok(Some(WrittenLayer { name, file_len }));
        }
        let kind = if name.is_delta() { "delta" } else { "image" };
        tracing::info!("found future {kind} layer {name} on timeline {}", self.id());
        let old = free_old_name(path);
        std::fs::rename(path, old).map_err(LayerError::io("rename", path))?;
        Ok(None)
    }
}

/// `<name>.<n>.old` with the first free n.
fn free_old_name(path: &Path) -> PathBuf {
    let name = |n: u32| crashsafe::with_suffix(path, &format!(".{n}{OLD_SUFFIX}"));
    let free = (0..u32::MAX)
        .map(name)
        .find(|path| matches!(path.try_exists(), Ok(false)));
    free.unwrap_or_else(|| name(u32::MAX))
}
