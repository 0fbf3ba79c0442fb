//! A timeline's directory.

use anyhow::Result;
use pageserver::remote::download::TEMP_DOWNLOAD_SUFFIX;
use pageserver::timeline::metadata::{self, TimelineMetadata};
use pageserver_api::layer_name::LayerFileName;
use utils::blocking;
use utils::crashsafe::TEMP_SUFFIX;

use super::remote::Remote;
use super::{Copies, Report, Severity};
use crate::dump::open_layer;
use crate::source::Source;
use crate::view::list_files;

/// What is in the directory.
pub struct Local {
    /// The metadata, if it is usable.
    pub metadata: Option<TimelineMetadata>,
    /// All layer files.
    pub layers: Copies,
}

/// Reads all files of the directory; reports all that is wrong but for layers.
pub async fn check(source: &Source, remote: &Remote, report: &mut Report) -> Result<Local> {
    let mut local = Local {
        metadata: check_metadata(source, remote, report),
        layers: Copies::new(),
    };
    for (text, len) in list_files(source)? {
        let path = source.dir.join(&text);
        if let Ok(name) = text.parse::<LayerFileName>() {
            let checked = check_layer(source, remote, &name, len).await;
            report.sound_files += usize::from(checked.is_ok());
            if let Some(problem) = misplaced(&name, local.metadata.as_ref(), remote) {
                report.notice(path.display(), problem);
            }
            local.layers.insert(name, checked);
        } else if text.ends_with(TEMP_SUFFIX)
            || text.ends_with(TEMP_DOWNLOAD_SUFFIX)
            || text.starts_with("ephemeral-")
        {
            report.notice(
                path.display(),
                "unfinished; the next start of the server removes it",
            );
        } else if text.ends_with(".old") {
            report.notice(path.display(), "set aside by the server");
        } else if text != metadata::FILE_NAME {
            report.notice(path.display(), "unrecognized name");
        }
    }
    Ok(local)
}

fn check_metadata(source: &Source, remote: &Remote, report: &mut Report) -> Option<TimelineMetadata> {
    let what = format!("file {}", source.dir.join(metadata::FILE_NAME).display());
    let has_index = remote.index.is_some();
    match source.read_metadata() {
        Ok(Some(metadata)) => {
            report.sound_files += 1;
            Some(metadata)
        }
        // All of it is in object storage.
        Ok(None) if has_index && !source.dir.exists() => None,
        Ok(None) if has_index => {
            report.add(
                Severity::Repairable,
                what,
                "missing; the index in object storage has what it said",
            );
            None
        }
        Ok(None) => {
            report.add(Severity::Damage, what, "missing");
            None
        }
        Err(error) => {
            let severity = if has_index {
                Severity::Repairable
            } else {
                Severity::Damage
            };
            report.add(severity, what, format!("{:#}", error.root_cause()));
            None
        }
    }
}

async fn check_layer(source: &Source, remote: &Remote, name: &LayerFileName, len: u64) -> Result<(), String> {
    let index = remote.index.as_ref();
    if let Some(Some(want)) = index.and_then(|index| index.layers.get(name).copied())
        && want != len
    {
        return Err(format!(
            "has {len} bytes instead of the {want} that the index names"
        ));
    }
    let layer = open_layer(&source.dir.join(name.to_string()), source.id, name.clone(), len);
    let scrubbed = blocking::run(move || layer.scrub()).await;
    scrubbed.map_err(|error| pageserver::remote::retry::error_chain(&error))
}

/// Why a layer file is not where a timeline at rest has it, if so.
fn misplaced(
    name: &LayerFileName,
    metadata: Option<&TimelineMetadata>,
    remote: &Remote,
) -> Option<&'static str> {
    let covers = |metadata: &TimelineMetadata| name.lsn_range().end.0 <= metadata.disk_consistent_lsn.0 + 1;
    if !metadata.is_none_or(covers) {
        return Some("not covered by the metadata; the next start of the server sets it aside");
    }
    let index = remote.index.as_ref()?;
    let is_named = index.layers.contains_key(name);
    (!is_named).then_some("not in the index: not uploaded yet, or about to be removed")
}
