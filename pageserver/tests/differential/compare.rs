//! Compares a timeline with the files of the server whose WAL it ingested, after that has shut down.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pageserver::import::path::ClusterFile;
use pageserver::pgdatadir::{self, DbId};
use pageserver::timeline::memory_store::MemoryStore;
use pageserver_api::reltag::{Fork, RelTag, SlruKind};
use postgres_ffi::v15::relfile::RELSEG_SIZE;
use postgres_ffi::v15::{BLCKSZ, page};
use utils::lsn::Lsn;

use crate::mask::mask;

/// What the server's catalogs tell.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Access method of a relation by the path of its first file.
    pub methods: BTreeMap<String, String>,
    /// Databases made with strategy wal_log. Their visibility maps were logged as pages with a hole where the bits are, so
    /// redo, PostgreSQL's own as well, has none of those bits.
    pub copied_by_log: BTreeSet<u32>,
}

/// Counts what was compared, so that a test that compares nothing is noticed, and collects differences.
#[derive(Debug, Default)]
pub struct Report {
    pub pages: usize,
    pub relations: usize,
    pub slru_pages: usize,
    pub prepared: usize,
    pub relmaps: usize,
    pub differences: Vec<String>,
}

pub async fn compare(pgdata: &Path, store: &MemoryStore, lsn: Lsn, catalog: &Catalog) -> Report {
    let mut report = Report::default();
    let mut relations: BTreeMap<RelTag, Vec<(u32, Vec<u8>)>> = BTreeMap::new();
    let mut prepared = BTreeSet::new();
    let mut slru_segments = BTreeSet::new();
    for (path, contents) in files(pgdata, pgdata) {
        match ClusterFile::of(&path) {
            ClusterFile::Relation { rel, segment } => {
                relations.entry(rel).or_default().push((segment, contents))
            }
            ClusterFile::Slru(kind, segno) => {
                slru_segments.insert((kind, segno));
                slru(&mut report, store, lsn, kind, segno, &contents).await;
            }
            ClusterFile::RelMap(db) => relmap(&mut report, store, lsn, db, &contents).await,
            ClusterFile::TwoPhase(xid) => {
                prepared.insert(xid);
                let ours = pgdatadir::twophase_file(store, xid, lsn).await.unwrap();
                report.prepared += 1;
                report.check(ours[..] == contents[..contents.len() - 4], || {
                    format!("{path} differs")
                });
            }
            _ => {}
        }
    }
    let ours = pgdatadir::twophase_xids(store, lsn).await.unwrap().numbers;
    report.check(ours == prepared, || {
        format!("prepared {ours:?}, server has {prepared:?}")
    });
    for kind in SlruKind::ALL {
        let ours = pgdatadir::slru_segments(store, kind, lsn).await.unwrap().numbers;
        let server = slru_segments
            .iter()
            .filter(|(k, _)| *k == kind)
            .map(|(_, segno)| *segno)
            .collect();
        report.check(ours == server, || {
            format!("{kind:?} has segments {ours:?}, server has {server:?}")
        });
    }
    compare_relations(&mut report, store, lsn, relations, catalog).await;
    report
}

impl Report {
    fn check(&mut self, agrees: bool, difference: impl FnOnce() -> String) {
        if !agrees {
            self.differences.push(difference());
        }
    }
}

fn files(root: &Path, directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(root, &path));
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if ClusterFile::of(&name) != ClusterFile::Other {
                found.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    found
}

async fn relmap(report: &mut Report, store: &MemoryStore, lsn: Lsn, db: DbId, contents: &[u8]) {
    let ours = pgdatadir::relmap(store, db, lsn).await.unwrap();
    report.relmaps += 1;
    report.check(ours.as_deref() == Some(contents), || {
        format!("relation map of {db:?} differs")
    });
    let directory = pgdatadir::databases(store, lsn).await.unwrap();
    report.check(directory.dbs.get(&db) == Some(&true), || {
        format!("{db:?} is not in the directory")
    });
}

async fn slru(
    report: &mut Report,
    store: &MemoryStore,
    lsn: Lsn,
    kind: SlruKind,
    segno: u32,
    contents: &[u8],
) {
    let size = pgdatadir::slru_segment_size(store, kind, segno, lsn)
        .await
        .unwrap();
    let blocks = contents.len() / BLCKSZ;
    report.check(size as usize == blocks, || {
        format!("{kind:?} {segno:04X} has {size} pages, server {blocks}")
    });
    for (block, server) in contents.chunks(BLCKSZ).enumerate().take(size as usize) {
        let ours = pgdatadir::slru_page(store, kind, segno, block as u32, lsn)
            .await
            .unwrap()
            .unwrap();
        report.slru_pages += 1;
        let at = ours.iter().zip(server).position(|(a, b)| a != b);
        report.check(at.is_none(), || {
            format!("{kind:?} {segno:04X} page {block} differs at {at:?}")
        });
    }
}

async fn compare_relations(
    report: &mut Report,
    store: &MemoryStore,
    lsn: Lsn,
    server: BTreeMap<RelTag, Vec<(u32, Vec<u8>)>>,
    catalog: &Catalog,
) {
    let unlogged: BTreeSet<u32> = server
        .keys()
        .filter(|rel| rel.fork == Fork::Init)
        .map(|rel| rel.relnode)
        .collect();
    // The free space map is not in the WAL of a stock server; the main fork of an unlogged relation neither.
    let in_wal = |rel: &RelTag| match rel.fork {
        Fork::Fsm => false,
        Fork::Init => true,
        Fork::Main | Fork::Vm => !unlogged.contains(&rel.relnode),
    };
    let mut ours = BTreeSet::new();
    for db in pgdatadir::databases(store, lsn).await.unwrap().dbs.into_keys() {
        ours.extend(pgdatadir::list_rels(store, db, lsn).await.unwrap());
    }
    for rel in ours.iter().filter(|rel| in_wal(rel)) {
        report.check(server.contains_key(rel), || format!("{rel} is not on the server"));
    }
    for (rel, mut segments) in server {
        if in_wal(&rel) {
            // The server makes an empty visibility map without a record when it first looks for it.
            let empty = rel.fork == Fork::Vm
                && segments
                    .iter()
                    .all(|(_, raw)| raw[24..].iter().all(|byte| *byte == 0));
            report.check(ours.contains(&rel) || empty, || {
                format!("{rel} is only on the server")
            });
            segments.sort();
            relation(report, store, lsn, rel, &segments, catalog).await;
        }
    }
}

/// Path of the relation's main fork, as `pg_relation_filepath` gives it.
fn path_of(rel: RelTag) -> String {
    match rel.dbnode {
        0 => format!("global/{}", rel.relnode),
        db => format!("base/{db}/{}", rel.relnode),
    }
}

async fn relation(
    report: &mut Report,
    store: &MemoryStore,
    lsn: Lsn,
    rel: RelTag,
    segments: &[(u32, Vec<u8>)],
    catalog: &Catalog,
) {
    let size = pgdatadir::rel_size(store, rel, lsn).await.unwrap().unwrap_or(0);
    let method = match rel.fork {
        Fork::Vm => "vm",
        _ => catalog.methods.get(&path_of(rel)).map_or("?", String::as_str),
    };
    report.relations += 1;
    for (segment, contents) in segments {
        for (index, server) in contents.chunks(BLCKSZ).enumerate() {
            let block = segment * RELSEG_SIZE + index as u32;
            let mut server: [u8; BLCKSZ] = server.try_into().unwrap();
            if block >= size {
                // The server adds pages in advance, without a record.
                report.check(is_unwritten(&server), || {
                    format!("{rel} ({method}) ends before page {block}")
                });
                continue;
            }
            let ours = pgdatadir::rel_page(store, rel, block, lsn).await;
            let Ok(ours) = ours.map_err(|e| {
                report
                    .differences
                    .push(format!("{rel} ({method}) {block}: {e:?}"))
            }) else {
                continue;
            };
            let mut ours: [u8; BLCKSZ] = ours[..].try_into().unwrap();
            report.pages += 1;
            if page::is_new(&ours) && is_unwritten(&server) {
                continue;
            }
            if page::lsn(&server) <= Lsn(1) {
                // The init fork of an index and a GiST index built by sorting are written before they are logged.
                page::set_lsn(&mut ours, page::lsn(&server));
            }
            if rel.fork == Fork::Vm && catalog.copied_by_log.contains(&rel.dbnode) {
                let extra = (24..BLCKSZ).any(|at| ours[at] & !server[at] != 0);
                report.check(!extra, || {
                    format!("{rel} page {block} says visible where the server does not")
                });
                continue;
            }
            mask(&mut ours, method, block);
            mask(&mut server, method, block);
            let at: Vec<usize> = (0..BLCKSZ).filter(|at| ours[*at] != server[*at]).collect();
            report.check(at.is_empty(), || {
                format!(
                    "{rel} ({method}) page {block} differs at {} places, {:?}…",
                    at.len(),
                    &at[..at.len().min(6)]
                )
            });
        }
    }
    let last = segments
        .iter()
        .map(|(segment, raw)| segment * RELSEG_SIZE + (raw.len() / BLCKSZ) as u32)
        .max();
    report.check(Some(size) <= last, || {
        format!("{rel} has {size} pages, on the server {last:?}")
    });
}

/// A page that no record has touched: zeros, or initialised in advance.
fn is_unwritten(raw: &[u8; BLCKSZ]) -> bool {
    page::is_new(raw) || page::lsn(raw) == Lsn(0) && page::max_offset_number(raw) == 0
}
