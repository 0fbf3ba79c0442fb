//! A timeline's objects.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use futures::StreamExt;
use pageserver::disk_space::DiskSpace;
use pageserver::remote::index::{FILE_NAME, IndexPart};
use pageserver::remote::{download, paths, retry};
use pageserver_api::layer_name::LayerFileName;
use remote_storage::GenericRemoteStorage;
use tokio_util::sync::CancellationToken;

use super::{Copies, Report, Severity, read_layer, wrong_length};
use crate::source::Source;

/// Layers that are downloaded at the same time.
const DOWNLOADS_MAX: usize = 8;

/// What is in object storage.
#[derive(Default)]
pub struct Remote {
    /// The index, if it is usable.
    pub index: Option<IndexPart>,
    /// All layers that the index names; all layer objects if there is no usable one.
    pub layers: Copies,
}

/// Reads all objects of the timeline; reports all that is wrong but for layers.
pub async fn check(source: &Source, report: &mut Report) -> Result<Remote> {
    let Some(storage) = &source.remote else {
        return Ok(Remote::default());
    };
    let listing = storage.list(Some(&paths::timeline(source.id))).await;
    let mut objects: BTreeMap<String, u64> = listing
        .with_context(|| format!("cannot list the objects of {}", source.id))?
        .objects
        .into_iter()
        .map(|(path, len)| (path.object_name().to_owned(), len))
        .collect();
    objects.remove(FILE_NAME);
    let index = check_index(source, report).await?;
    let mut wanted: Vec<(LayerFileName, u64)> = Vec::new();
    let mut layers = Copies::new();
    for (name, len) in index.iter().flat_map(|index| &index.layers) {
        match (objects.remove(&name.to_string()), len) {
            (None, _) => drop(layers.insert(name.clone(), Err("there is no such object".to_owned()))),
            (Some(found), Some(len)) if found != *len => {
                layers.insert(name.clone(), Err(wrong_length(found, *len)));
            }
            (Some(found), _) => wanted.push((name.clone(), found)),
        }
    }
    for (text, len) in objects {
        match text.parse() {
            Ok(name) if index.is_none() => wanted.push((name, len)),
            Ok(name) => report.notice(
                format!("object {}", paths::layer(source.id, &name)),
                "orphan: no index names it; an upload or a deletion is under way, or was interrupted",
            ),
            Err(_) => report.notice(
                format!("object {}/{text}", paths::timeline(source.id)),
                "unrecognized name",
            ),
        }
    }
    let checked = check_layers(source, storage, wanted).await?;
    report.sound_objects += checked.values().filter(|copy| copy.is_ok()).count();
    layers.extend(checked);
    Ok(Remote { index, layers })
}

async fn check_index(source: &Source, report: &mut Report) -> Result<Option<IndexPart>> {
    let what = format!("object {}", paths::index(source.id));
    let Some(raw) = source.read_index().await? else {
        report.notice(what, "there is none: the timeline is not in object storage");
        return Ok(None);
    };
    match IndexPart::decode(&raw) {
        // A field whose name is damaged is none that is known: it does not count, and is not missed either.
        Ok(index) if index.encode() != raw => {
            report.add(
                Severity::Damage,
                what,
                "not as any server writes it, though readable",
            );
            Ok(Some(index))
        }
        Ok(index) => {
            report.sound_objects += 1;
            if let Some(at) = &index.deleted_at {
                report.notice(what, format!("the timeline's deletion was begun at {at}"));
            }
            Ok(Some(index))
        }
        Err(error) => {
            report.add(Severity::Damage, what, retry::error_chain(&error));
            Ok(None)
        }
    }
}

/// Downloads layers, one after the other into a directory of their own, and reads them.
async fn check_layers(
    source: &Source,
    storage: &GenericRemoteStorage,
    wanted: Vec<(LayerFileName, u64)>,
) -> Result<Copies> {
    let dir = tempfile::tempdir().context("cannot make a directory to download layers to")?;
    let (dir, cancel) = (dir.path(), CancellationToken::new());
    let cancel = &cancel;
    let checks = futures::stream::iter(wanted).map(|(name, len)| async move {
        let target = dir.join(name.to_string());
        let named = (&name, len);
        let downloaded = download::download_layer(
            (storage, cancel),
            source.id,
            named,
            (&target, &DiskSpace::default()),
        )
        .await;
        if let Err(error) = downloaded {
            return (name, Err(retry::error_chain(&error)));
        }
        let checked = read_layer(source, &target, &name, len).await;
        // The rest goes with the directory.
        drop(tokio::fs::remove_file(&target).await);
        (name, checked)
    });
    Ok(checks.buffer_unordered(DOWNLOADS_MAX).collect().await)
}
