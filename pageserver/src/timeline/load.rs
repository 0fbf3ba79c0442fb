//! Finding the layer files of a timeline at start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pageserver_api::layer_name::LayerFileName;
use utils::crashsafe::{self, TEMP_SUFFIX};

use super::{Timeline, metadata};
use crate::layers::LayerError;
use crate::layers::writer::WrittenLayer;

/// Suffix of files that were set aside.
const OLD_SUFFIX: &str = ".old";

impl Timeline {
    /// Reads the names of all layer files; removes what was not finished, sets aside what metadata does not
    /// cover. Blocking.
    pub fn load_layers(&self) -> Result<(), LayerError> {
        let mut found = Vec::new();
        let entries = std::fs::read_dir(&self.dir).map_err(LayerError::io("list", &self.dir))?;
        for entry in entries {
            let entry = entry.map_err(LayerError::io("list", &self.dir))?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if name.ends_with(TEMP_SUFFIX)
                || name.ends_with(".temp_download")
                || name.starts_with("ephemeral-")
            {
                std::fs::remove_file(&path).map_err(LayerError::io("remove", &path))?;
            } else if let Ok(name) = name.parse::<LayerFileName>() {
                let metadata = entry.metadata().map_err(LayerError::io("inspect", &path))?;
                found.extend(self.keep_or_set_aside(&path, name, metadata.len())?);
            } else if name != metadata::FILE_NAME && !name.ends_with(OLD_SUFFIX) {
                tracing::warn!(path = %path.display(), "unrecognized name");
            }
        }
        let _state = self.write_state.lock();
        let mut layers = (*self.layers.load_full()).clone();
        layers.files = layers.files.changed(self.open_files(found), &Default::default());
        self.layers.store(Arc::new(layers));
        Ok(())
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
