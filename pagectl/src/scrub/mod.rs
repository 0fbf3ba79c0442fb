//! Whether a timeline is sound: every byte of its files and objects, and what should be there and is not.
//!
//! Files and objects are looked at as they are; nothing is repaired. A server that runs meanwhile changes them: what
//! is reported as missing or left over may be on its way, and a second look tells.

pub mod coverage;
mod local;
mod remote;

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use pageserver::remote::retry::error_chain;
use pageserver::timeline::metadata::TimelineMetadata;
use pageserver_api::key::Key;
use pageserver_api::layer_name::LayerFileName;
use utils::id::TimelineId;
use utils::lsn::Lsn;

use crate::dump::open_layer;
use crate::source::Source;
use crate::view::{describe_key, newest};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub enum Severity {
    /// Worth knowing; nothing needs to be done.
    Notice,
    /// Something is damaged of which there is a sound copy.
    Repairable,
    /// Something cannot be read any more.
    Damage,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Notice => "notice",
            Severity::Repairable => "repairable",
            Severity::Damage => "damage",
        })
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file or object.
    pub what: String,
    /// What is wrong with it.
    pub problem: String,
    /// What cannot be read because of it.
    pub affected: Option<String>,
}

/// What a scrub found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// All that is not as it should be, in the order in which it was found.
    pub findings: Vec<Finding>,
    /// Files that were read and are sound.
    pub sound_files: usize,
    /// Objects that were read and are sound.
    pub sound_objects: usize,
}

/// Copies of layers, and what is wrong with them.
type Copies = HashMap<LayerFileName, Result<(), String>>;

impl Report {
    /// The worst there is.
    pub fn severity(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Whether something is damaged.
    pub fn has_damage(&self) -> bool {
        self.severity() > Some(Severity::Notice)
    }

    fn add(&mut self, severity: Severity, what: impl fmt::Display, problem: impl fmt::Display) {
        self.findings.push(Finding {
            severity,
            what: what.to_string(),
            problem: problem.to_string(),
            affected: None,
        });
    }

    fn notice(&mut self, what: impl fmt::Display, problem: impl fmt::Display) {
        self.add(Severity::Notice, what, problem);
    }

    /// Writes it for people.
    pub fn write(&self, out: &mut impl Write) -> Result<()> {
        for finding in &self.findings {
            writeln!(out, "{}: {}: {}", finding.severity, finding.what, finding.problem)?;
            if let Some(affected) = &finding.affected {
                writeln!(out, "    affected: {affected}")?;
            }
        }
        let (files, objects) = (self.sound_files, self.sound_objects);
        let verdict = if self.has_damage() { "damaged" } else { "sound" };
        writeln!(
            out,
            "{verdict}: {files} files and {objects} objects are as they were written"
        )?;
        Ok(())
    }
}

/// Reads everything of a timeline, here and in object storage.
///
/// # Errors
/// Something could not be looked at at all: the directory, or object storage.
pub async fn scrub(source: &Source) -> Result<Report> {
    let mut report = Report::default();
    let remote = remote::check(source, &mut report).await?;
    let local = local::check(source, &remote, &mut report).await?;
    let metadata = newest(local.metadata, remote.index.as_ref());
    let branches = source.branch_points().await?;
    judge_layers(source, [&local.layers, &remote.layers], &branches, &mut report);
    let mut names: Vec<&LayerFileName> = local.layers.keys().collect();
    names.extend(
        remote
            .layers
            .keys()
            .filter(|name| !local.layers.contains_key(name)),
    );
    match metadata {
        Some(metadata) => judge_coverage(source, &metadata, &names, &mut report),
        None => report.add(
            Severity::Damage,
            format!("timeline {}", source.id),
            "there is neither usable metadata nor a usable index",
        ),
    }
    Ok(report)
}

/// Reads a whole copy of a layer; what is wrong with it.
async fn read_layer(source: &Source, path: &Path, name: &LayerFileName, len: u64) -> Result<(), String> {
    let layer = open_layer(path, source.id, name.clone(), len);
    let scrubbed = utils::blocking::run(move || layer.scrub()).await;
    scrubbed.map_err(|error| error_chain(&error))
}

fn wrong_length(found: u64, want: u64) -> String {
    format!("has {found} bytes instead of the {want} that the index names")
}

/// Says of each bad copy whether there is a good one, and what is lost if not.
fn judge_layers(
    source: &Source,
    [local, remote]: [&Copies; 2],
    branches: &[(TimelineId, Lsn)],
    report: &mut Report,
) {
    let is_sound = |copies: &Copies, name| matches!(copies.get(name), Some(Ok(())));
    for (here, there, is_local) in [(local, remote, true), (remote, local, false)] {
        for (name, copy) in here {
            let Err(problem) = copy else { continue };
            let what = if is_local {
                format!("file {}", source.dir.join(name.to_string()).display())
            } else {
                format!("object {}", pageserver::remote::paths::layer(source.id, name))
            };
            let (severity, affected) = if is_sound(there, name) {
                let other = if is_local { "object" } else { "file" };
                (
                    Severity::Repairable,
                    format!("nothing while the {other} is there, which is sound"),
                )
            } else {
                (Severity::Damage, affected(name, branches))
            };
            report.findings.push(Finding {
                severity,
                what,
                problem: problem.clone(),
                affected: Some(affected),
            });
        }
    }
}

/// What cannot be read without a layer.
fn affected(name: &LayerFileName, branches: &[(TimelineId, Lsn)]) -> String {
    let (keys, lsns) = (name.key_range(), name.lsn_range());
    let mut text = format!(
        "{} from LSN {} up to the next image",
        describe_keys(keys),
        lsns.start
    );
    let readers: Vec<String> = branches
        .iter()
        .filter(|(_, lsn)| *lsn >= lsns.start)
        .map(|(id, _)| id.to_string())
        .collect();
    if !readers.is_empty() {
        text += &format!(", also on branches {}", readers.join(", "));
    }
    text
}

/// Finds what no layer covers.
fn judge_coverage(
    source: &Source,
    metadata: &TimelineMetadata,
    names: &[&LayerFileName],
    report: &mut Report,
) {
    let what = format!("timeline {}", source.id);
    let start = metadata.latest_gc_cutoff_lsn.max(metadata.initdb_lsn);
    if metadata.ancestor.is_none() {
        for hole in coverage::keys_without_image(names, start) {
            report.findings.push(Finding {
                severity: Severity::Damage,
                what: what.clone(),
                problem: "image layers are missing".to_owned(),
                affected: Some(describe_keys(&hole)),
            });
        }
    }
    let lsns = Lsn(start.0 + 1)..Lsn(metadata.disk_consistent_lsn.0 + 1);
    for hole in coverage::lsns_without_delta(names, lsns) {
        let (from, to) = (hole.start, hole.end);
        let problem =
            format!("no layer has LSNs {from}..{to}: it is lost, or no record there changed a value");
        report.notice(&what, problem);
    }
}

fn describe_keys(keys: &std::ops::Range<Key>) -> String {
    let (start, end) = (keys.start, keys.end);
    format!(
        "keys {start} .. {end} ({} .. {})",
        describe_key(start),
        describe_key(end)
    )
}
