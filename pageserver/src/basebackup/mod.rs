//! Base backup: the data directory of a stock PostgreSQL server at an LSN, as a tar archive.
//!
//! Two kinds. The one a compute starts from has everything that is not a relation, and the init forks of unlogged
//! relations; its cost depends on neither the size nor the number of relations. A full one has all relations and
//! starts a server that needs no pageserver.
//!
//! The server starts from either without recovery: the control file says "shut down" and points at a shutdown
//! checkpoint record at the very LSN, in a WAL segment that is otherwise empty. That record becomes part of the
//! timeline's WAL, so it carries the true start of the record before it wherever that is known.
//!
//! Invariant: an archive that ends with the end mark is complete. On an error it ends without.

mod skeleton;
mod tar;

use std::collections::HashSet;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use pageserver_api::key;
use pageserver_api::reltag::{Fork, RelTag, SlruKind};
use postgres_ffi::c_struct::CStruct;
use postgres_ffi::v15::checkpoint::CheckPoint;
use postgres_ffi::v15::control_file::{ControlFile, ControlFileError};
use postgres_ffi::v15::encode::{WalIdentity, shutdown_checkpoint};
use postgres_ffi::v15::relfile::{RELSEG_SIZE, TABLESPACE_VERSION_DIRECTORY, database_directory};
use postgres_ffi::v15::slru::segment_name;
use postgres_ffi::v15::xact::{twophase_file, twophase_path};
use postgres_ffi::v15::{BLCKSZ, WAL_SEGMENT_SIZE};
use tokio::io::AsyncWrite;
use utils::lsn::Lsn;

use self::tar::TarWriter;
use crate::import::path::wal_segment_name;
use crate::pgdatadir::repl_origins;
use crate::pgdatadir::{self, DEFAULT_TABLESPACE, DataError, DbId, GLOBAL_TABLESPACE};
use crate::timeline::store::ReadStore;

/// Pages read at a time from a relation.
const PAGES_PER_READ: u32 = 128;
/// Major version, the whole contents of `PG_VERSION`.
const PG_VERSION: &[u8] = b"15";

/// Which relations the archive has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BackupKind {
    /// Init forks only: the relations stay with the pageserver.
    Compute,
    /// All.
    Full,
}

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct BackupSpec {
    /// State of which LSN. A record boundary, already waited for.
    pub lsn: Lsn,
    /// Start of the record that ends at `lsn`, 0 if unknown.
    pub prev_lsn: Lsn,
    /// With relations or without.
    pub kind: BackupKind,
    /// Where the timeline's own WAL begins: older WAL is its ancestor's.
    pub own_wal: Lsn,
}

/// Why an archive could not be written to its end.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The timeline could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The receiver is gone or failed.
    #[error("cannot write the base backup")]
    Write(#[from] io::Error),
    /// The stored control file is damaged.
    #[error("the timeline's control file is damaged")]
    ControlFile(#[from] ControlFileError),
    /// The stored checkpoint is damaged.
    #[error("the timeline's checkpoint is damaged")]
    CheckPoint(#[from] postgres_ffi::cursor::Truncated),
}

/// Writes the archive. Waits whenever `out` does not take more; of the timeline it holds some 100 pages at a time.
pub async fn write<S, W>(store: &S, spec: BackupSpec, out: &mut W) -> Result<(), BackupError>
where
    S: ReadStore,
    W: AsyncWrite + Unpin + Send,
{
    let mut backup = Backup {
        store,
        spec,
        tar: TarWriter::new(out),
    };
    backup.skeleton().await?;
    for kind in SlruKind::ALL {
        backup.slru(kind).await?;
    }
    let databases = pgdatadir::databases(store, spec.lsn).await?.dbs;
    for (db, has_relmap) in databases {
        backup.database(db, has_relmap).await?;
    }
    backup.prepared_transactions().await?;
    backup.aux_files().await?;
    backup.repl_origins().await?;
    backup.signal().await?;
    backup.control_file_and_wal().await?;
    Ok(backup.tar.finish().await?)
}

/// Whether relations are where their database is.
#[derive(Clone, Copy)]
enum Tablespace {
    /// In the default tablespace of the database, where its directory has files of its own.
    Default,
    /// In another one, where nothing but relations tells of the database.
    Other,
}

struct Backup<'a, S, W> {
    store: &'a S,
    spec: BackupSpec,
    tar: TarWriter<'a, W>,
}

impl<S: ReadStore, W: AsyncWrite + Unpin + Send> Backup<'_, S, W> {
    async fn skeleton(&mut self) -> Result<(), BackupError> {
        for directory in skeleton::DIRECTORIES {
            self.tar.directory(directory).await?;
        }
        for (path, contents) in skeleton::FILES {
            self.tar.file(path, contents.as_bytes()).await?;
        }
        Ok(())
    }

    async fn slru(&mut self, kind: SlruKind) -> Result<(), BackupError> {
        let lsn = self.spec.lsn;
        for segno in pgdatadir::slru_segments(self.store, kind, lsn).await?.numbers {
            let blocks = pgdatadir::slru_segment_size(self.store, kind, segno, lsn).await?;
            let path = format!("{}/{}", kind.directory(), segment_name(segno));
            self.tar
                .begin_file(&path, u64::from(blocks) * BLCKSZ as u64)
                .await?;
            let keys: Vec<_> = (0..blocks)
                .map(|block| key::slru_block_key(kind, segno, block))
                .collect();
            let pages = self.store.get_many(&keys, lsn).await.map_err(DataError::from)?;
            for (key, page) in keys.iter().zip(pages) {
                // A clog page may have the time of its latest commit behind it.
                let page = page.as_ref().and_then(|page| page.get(..BLCKSZ));
                let lost = || DataError::Damaged {
                    key: *key,
                    lsn,
                    reason: "not a page".to_owned(),
                };
                self.tar.append(page.ok_or_else(lost)?).await?;
            }
            if blocks == 0 {
                self.tar.append_zeros().await?;
            }
        }
        Ok(())
    }

    async fn database(&mut self, db: DbId, has_relmap: bool) -> Result<(), BackupError> {
        let directory = database_directory(db.spcnode, db.dbnode);
        if db.spcnode == GLOBAL_TABLESPACE {
            self.tar.file("PG_VERSION", PG_VERSION).await?;
        } else {
            if db.spcnode != DEFAULT_TABLESPACE {
                // A directory where a server elsewhere has a link, as `allow_in_place_tablespaces` makes it.
                self.tar.directory(&format!("pg_tblspc/{}", db.spcnode)).await?;
                self.tar.directory(&tablespace_directory(db.spcnode)).await?;
                if db.dbnode == 0 {
                    return Ok(());
                }
            }
            self.tar.directory(&directory).await?;
            if has_relmap {
                self.tar
                    .file(&format!("{directory}/PG_VERSION"), PG_VERSION)
                    .await?;
            }
        }
        if has_relmap {
            let lost = || DataError::Missing {
                what: format!("relation map of {directory}"),
                lsn: self.spec.lsn,
            };
            let relmap = pgdatadir::relmap(self.store, db, self.spec.lsn)
                .await?
                .ok_or_else(lost)?;
            self.tar
                .file(&format!("{directory}/pg_filenode.map"), &relmap)
                .await?;
        }
        let place = match has_relmap {
            true => Tablespace::Default,
            false => Tablespace::Other,
        };
        self.relations(db, &directory, place).await
    }

    async fn relations(&mut self, db: DbId, directory: &str, place: Tablespace) -> Result<(), BackupError> {
        let lsn = self.spec.lsn;
        let init_forks = pgdatadir::list_rels_of_fork(self.store, db, Fork::Init, lsn).await?;
        let sizes = pgdatadir::rel_sizes(self.store, &init_forks, lsn).await?;
        for (&rel, size) in init_forks.iter().zip(sizes) {
            self.relation(rel, size, &format!("{directory}/{}_init", rel.relnode))
                .await?;
            self.relation(rel, size, &format!("{directory}/{}", rel.relnode))
                .await?;
        }
        if self.spec.kind == BackupKind::Compute {
            let has_file = init_forks.iter().map(|rel| rel.relnode).collect();
            return match place {
                Tablespace::Default => Ok(()),
                Tablespace::Other => self.places(db, directory, &has_file).await,
            };
        }
        let mut rels = pgdatadir::list_rels(self.store, db, lsn).await?;
        let has_init: HashSet<u32> = rels
            .iter()
            .filter(|rel| rel.fork == Fork::Init)
            .map(|rel| rel.relnode)
            .collect();
        // The main fork of an unlogged relation was written above.
        rels.retain(|rel| {
            rel.fork != Fork::Init && !(rel.fork == Fork::Main && has_init.contains(&rel.relnode))
        });
        let sizes = pgdatadir::rel_sizes(self.store, &rels, lsn).await?;
        for (rel, size) in rels.into_iter().zip(sizes) {
            self.relation(
                rel,
                size,
                &format!("{directory}/{}{}", rel.relnode, rel.fork.file_suffix()),
            )
            .await?;
        }
        Ok(())
    }

    /// An empty file for each relation that has none yet: the server tells by files whether a
    /// tablespace may be dropped, and in which tablespaces a database has relations.
    async fn places(
        &mut self,
        db: DbId,
        directory: &str,
        has_file: &HashSet<u32>,
    ) -> Result<(), BackupError> {
        for rel in pgdatadir::list_rels_of_fork(self.store, db, Fork::Main, self.spec.lsn).await? {
            if !has_file.contains(&rel.relnode) {
                self.tar
                    .file(&format!("{directory}/{}", rel.relnode), b"")
                    .await?;
            }
        }
        Ok(())
    }

    /// One relation fork, in as many files as PostgreSQL would have.
    async fn relation(&mut self, rel: RelTag, size: u32, path: &str) -> Result<(), BackupError> {
        if size == 0 {
            return Ok(self.tar.file(path, b"").await?);
        }
        for (segment, start) in (0..size).step_by(RELSEG_SIZE as usize).enumerate() {
            let end = size.min(start.saturating_add(RELSEG_SIZE));
            let path = if segment == 0 {
                path.to_owned()
            } else {
                format!("{path}.{segment}")
            };
            self.tar
                .begin_file(&path, u64::from(end - start) * BLCKSZ as u64)
                .await?;
            for from in (start..end).step_by(PAGES_PER_READ as usize) {
                let blocks = from..end.min(from.saturating_add(PAGES_PER_READ));
                for page in pgdatadir::rel_pages(self.store, rel, blocks, self.spec.lsn).await? {
                    self.tar.append(&page).await?;
                }
            }
        }
        Ok(())
    }

    async fn prepared_transactions(&mut self) -> Result<(), BackupError> {
        let lsn = self.spec.lsn;
        for xid in pgdatadir::twophase_xids(self.store, lsn).await?.numbers {
            let state = pgdatadir::twophase_file(self.store, xid, lsn).await?;
            self.tar.file(&twophase_path(xid), &twophase_file(&state)).await?;
        }
        Ok(())
    }

    /// Statistics and logical replication slots. A full backup has no slots, as PostgreSQL's own has none. Nor has the
    /// beginning of a branch: whoever reads from them is connected to the ancestor, which has their WAL.
    async fn aux_files(&mut self) -> Result<(), BackupError> {
        let slots = self.spec.kind == BackupKind::Compute;
        let mut written = HashSet::new();
        let groups = pgdatadir::aux_file_groups(self.store, self.spec.lsn).await?;
        for group in groups.into_iter().filter(|group| slots || !group.is_slot()) {
            if group.restart_lsn().is_some_and(|lsn| lsn < self.spec.own_wal) {
                continue;
            }
            for file in group.files {
                // Two slots may need the same snapshot.
                if !written.insert(file.path.clone()) {
                    continue;
                }
                if let Some((directory, _)) = file.path.rsplit_once('/')
                    && !skeleton::DIRECTORIES.contains(&directory)
                {
                    self.tar.directory(directory).await?;
                }
                self.tar.file(&file.path, &file.contents).await?;
            }
        }
        Ok(())
    }

    async fn repl_origins(&mut self) -> Result<(), BackupError> {
        let origins = pgdatadir::repl_origins(self.store, self.spec.lsn).await?;
        if !origins.is_empty() {
            let raw = repl_origins::encode_checkpoint(&origins);
            self.tar.file(repl_origins::CHECKPOINT_PATH, &raw).await?;
        }
        Ok(())
    }

    /// For people and for importing the archive: nothing that starts a server depends on it.
    async fn signal(&mut self) -> Result<(), BackupError> {
        let prev_lsn = self.spec.prev_lsn;
        let text = if prev_lsn.is_valid() {
            format!("PREV LSN: {prev_lsn}")
        } else {
            "PREV LSN: invalid".to_owned()
        };
        Ok(self.tar.file("neon.signal", text.as_bytes()).await?)
    }

    async fn control_file_and_wal(&mut self) -> Result<(), BackupError> {
        let BackupSpec { lsn, prev_lsn, .. } = self.spec;
        let mut control = ControlFile::from_file(&pgdatadir::control_file(self.store, lsn).await?)?;
        let mut checkpoint = CheckPoint::decode(&pgdatadir::checkpoint(self.store, lsn).await?)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        checkpoint.time = now.as_secs() as i64;
        let identity = WalIdentity {
            system_id: control.system_identifier,
            segment_size: WAL_SEGMENT_SIZE,
        };
        let shutdown = shutdown_checkpoint(identity, lsn.align_up(), prev_lsn, &checkpoint);
        control.set_shut_down(shutdown.place.start, shutdown.checkpoint);
        self.tar.file("global/pg_control", &control.to_file()).await?;
        for (number, wal) in shutdown.segments {
            self.tar
                .file(&format!("pg_wal/{}", wal_segment_name(number)), &wal)
                .await?;
        }
        Ok(())
    }
}

fn tablespace_directory(spcnode: u32) -> String {
    format!("pg_tblspc/{spcnode}/{TABLESPACE_VERSION_DIRECTORY}")
}
