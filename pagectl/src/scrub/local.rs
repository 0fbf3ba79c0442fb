//! A timeline's directory.

use anyhow::Result;
use pageserver::timeline::TimelineFile;
use pageserver::timeline::metadata::{self, TimelineMetadata};
use pageserver_api::layer_name::LayerFileName;

use super::remote::Remote;
use super::{Copies, Report, Severity, read_layer, wrong_length};
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
        match TimelineFile::of(&text) {
            TimelineFile::Metadata => {}
            TimelineFile::Layer(name) => {
                let checked = check_layer(source, remote, &name, len).await;
                report.sound_files += usize::from(checked.is_ok());
                if let Some(problem) = misplaced(&name, local.metadata.as_ref(), remote) {
                    report.notice(path.display(), problem);
                }
                local.layers.insert(name, checked);
            }
            TimelineFile::Unfinished => report.notice(
                path.display(),
                "unfinished; the next start of the server removes it",
            ),
            TimelineFile::SetAside => report.notice(path.display(), "set aside by the server"),
            TimelineFile::Unknown => report.notice(path.display(), "unrecognized name"),
        }
    }
    Ok(local)
}

fn check_metadata(source: &Source, remote: &Remote, report: &mut Report) -> Option<TimelineMetadata> {
    let what = format!("file {}", source.dir.join(metadata::FILE_NAME).display());
    let has_index = remote.index.is_some();
    let severity = if has_index {
        Severity::Repairable
    } else {
        Severity::Damage
    };
    match source.read_metadata() {
        Ok(Some(metadata)) => {
            report.sound_files += 1;
            Some(metadata)
        }
        // All of it is in object storage.
        Ok(None) if has_index && !source.dir.exists() => None,
        missing => {
            let problem = match missing {
                Err(error) => format!("{:#}", error.root_cause()),
                Ok(_) if has_index => "missing; the index in object storage has what it said".to_owned(),
                Ok(_) => "missing".to_owned(),
            };
            report.add(severity, what, problem);
            None
        }
    }
}

async fn check_layer(source: &Source, remote: &Remote, name: &LayerFileName, len: u64) -> Result<(), String> {
    let index = remote.index.as_ref();
    if let Some(Some(want)) = index.and_then(|index| index.layers.get(name).copied())
        && want != len
    {
        return Err(wrong_length(len, want));
    }
    read_layer(source, &source.dir.join(name.to_string()), name, len).await
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
