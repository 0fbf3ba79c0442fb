//! The files of a cluster, one after another in any order, turned into values at one LSN.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use pageserver_api::reltag::{RelTag, SlruKind};
use postgres_ffi::c_struct::CStruct;
use postgres_ffi::v15::BLCKSZ;
use postgres_ffi::v15::control_file::{ControlFile, ControlFileError};
use postgres_ffi::v15::relfile::RELSEG_SIZE;
use postgres_ffi::v15::slru::SLRU_PAGES_PER_SEGMENT;
use postgres_ffi::v15::stream::StreamError;
use postgres_ffi::v15::xact::twophase_contents;
use tokio::io::{AsyncRead, AsyncReadExt};
use utils::lsn::{Lsn, RecordLsn};

use super::path::ClusterFile;
use crate::ingest::{RELMAP_LEN, WriteError, WriteStore};
use crate::pgdatadir::cache::MetadataCache;
use crate::pgdatadir::modification::Modification;
use crate::pgdatadir::{DataError, DbId, GLOBAL_TABLESPACE};
use crate::timeline::store::WriteBatch;

/// Values collected before they are put; a page each for the most part.
const BATCH_VALUES: usize = 512;
/// Longest file that is read whole, in bytes: maps, states of prepared transactions, the control file.
const SMALL_FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why a cluster cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error("{path}: {reason}")]
    BadFile {
        /// The file, relative to the data directory.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no control file: this is no cluster.
    #[error("pg_control file not found")]
    NoControlFile,
    /// The control file is damaged or of another version.
    #[error(transparent)]
    ControlFile(#[from] ControlFileError),
    /// The cluster is running or has crashed.
    #[error("the cluster was not shut down cleanly (pg_control says state {0})")]
    NotShutDown(u32),
    /// The WAL is damaged.
    #[error("the WAL is damaged")]
    Wal(#[from] StreamError),
    /// The WAL does not reach as far as it should.
    #[error("the WAL ends at {end}, before {want}")]
    WalEnds {
        /// Where the last whole record ends.
        end: Lsn,
        /// Where it should end.
        want: Lsn,
    },
    /// A record cannot be ingested.
    #[error(transparent)]
    Ingest(#[from] crate::ingest::IngestError),
    /// The WAL does not continue the timeline.
    #[error("Cannot import WAL from Lsn {start} because timeline does not start from the same lsn: {last}")]
    NotContinuous {
        /// Where the WAL starts.
        start: Lsn,
        /// Where the timeline ends.
        last: Lsn,
    },
    /// The timeline could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The values could not be stored.
    #[error("cannot store the imported values")]
    Write(#[source] WriteError),
    /// `initdb` failed.
    #[error("{0}")]
    Initdb(String),
}

/// An import in progress: made, given every file, finished.
pub struct ClusterImport<W> {
    writer: W,
    cache: MetadataCache,
    batch: WriteBatch,
    lsn: Lsn,
    control: Option<ControlFile>,
    prev_lsn: Lsn,
    unique: bool,
}

impl<W: WriteStore> ClusterImport<W> {
    /// Begins an import into an empty timeline; all values will stand at `lsn`, a record boundary.
    pub fn new(writer: W, lsn: Lsn) -> Self {
        let (mut cache, mut batch) = (MetadataCache::default(), WriteBatch::default());
        let mut m = Modification::new(writer.reader(), &mut cache, &mut batch, lsn);
        m.init_empty();
        m.finish();
        ClusterImport {
            writer,
            cache,
            batch,
            lsn,
            control: None,
            prev_lsn: Lsn::INVALID,
            unique: false,
        }
    }

    /// Gives the cluster a system identifier and an authentication nonce of its own instead of its template's.
    pub fn make_unique(&mut self) {
        self.unique = true;
    }

    fn begin(&mut self) -> Modification<'_, W::Reader> {
        Modification::new(self.writer.reader(), &mut self.cache, &mut self.batch, self.lsn)
    }

    /// Imports the file at `path`, relative to the data directory, of `len` bytes; passes over what is not history.
    pub async fn file(
        &mut self,
        path: &str,
        len: u64,
        contents: &mut (impl AsyncRead + Unpin + Send),
    ) -> Result<(), ImportError> {
        let bad = |reason: String| ImportError::BadFile {
            path: path.to_owned(),
            reason,
        };
        match ClusterFile::of(path) {
            ClusterFile::Relation { rel, segment } => {
                self.relation(path, rel, segment, len, contents).await?
            }
            ClusterFile::Slru(kind, segno) => self.slru(path, kind, segno, len, contents).await?,
            ClusterFile::Tablespace => return Err(bad("tablespaces cannot be imported".to_owned())),
            ClusterFile::Other => {}
            small => {
                if len > SMALL_FILE_BYTES_MAX {
                    return Err(bad(format!("it has {len} bytes")));
                }
                let mut whole = vec![0; len as usize];
                read(path, contents, &mut whole).await?;
                self.small_file(path, small, whole).await?;
            }
        }
        if self.batch.values.len() >= BATCH_VALUES {
            self.put().await?;
        }
        Ok(())
    }

    async fn small_file(&mut self, path: &str, file: ClusterFile, raw: Vec<u8>) -> Result<(), ImportError> {
        let bad = |reason: &str| ImportError::BadFile {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let mut m = Modification::new(self.writer.reader(), &mut self.cache, &mut self.batch, self.lsn);
        match file {
            ClusterFile::ControlFile => self.control = Some(ControlFile::from_file(&raw)?),
            ClusterFile::RelMap(db) if raw.len() == RELMAP_LEN => m.put_relmap(db, raw.into()).await?,
            ClusterFile::RelMap(_) => return Err(bad("a relation map has 512 bytes")),
            ClusterFile::TwoPhase(xid) => {
                let state = twophase_contents(&raw).ok_or_else(|| bad("its checksum is wrong"))?;
                m.put_twophase(xid, Bytes::copy_from_slice(state)).await?;
            }
            ClusterFile::Signal => {
                let text = String::from_utf8_lossy(&raw);
                let lsn = text
                    .strip_prefix("PREV LSN: ")
                    .ok_or_else(|| bad("no 'PREV LSN: '"))?
                    .trim();
                if lsn != "none" && lsn != "invalid" {
                    self.prev_lsn = lsn.parse().map_err(|_| bad("the LSN is malformed"))?;
                }
            }
            _ => unreachable!("files of other kinds are read in pieces, or not at all"),
        }
        m.finish();
        Ok(())
    }

    async fn relation(
        &mut self,
        path: &str,
        rel: RelTag,
        segment: u32,
        len: u64,
        contents: &mut (impl AsyncRead + Unpin + Send),
    ) -> Result<(), ImportError> {
        let blocks = blocks_of(path, len, u64::from(RELSEG_SIZE))?;
        let first = segment * RELSEG_SIZE;
        let mut m = self.begin();
        m.create_database(DbId {
            spcnode: rel.spcnode,
            dbnode: rel.dbnode,
        })
        .await?;
        m.extend_rel(rel, first + blocks, |_| true).await?;
        m.finish();
        for block in first..first + blocks {
            let page = read_page(path, contents).await?;
            let mut m = self.begin();
            m.put_page(rel, block, page);
            m.finish();
            if self.batch.values.len() >= BATCH_VALUES {
                self.put().await?;
            }
        }
        Ok(())
    }

    async fn slru(
        &mut self,
        path: &str,
        kind: SlruKind,
        segno: u32,
        len: u64,
        contents: &mut (impl AsyncRead + Unpin + Send),
    ) -> Result<(), ImportError> {
        let blocks = blocks_of(path, len, u64::from(SLRU_PAGES_PER_SEGMENT))?;
        let mut m = self.begin();
        m.extend_slru(kind, segno, blocks, |_| true).await?;
        for block in 0..blocks {
            let page = read_page(path, contents).await?;
            m.put_slru_page(kind, segno, block, page).await?;
        }
        m.finish();
        Ok(())
    }

    async fn put(&mut self) -> Result<(), ImportError> {
        let batch = std::mem::take(&mut self.batch);
        self.writer.put(batch).await.map_err(ImportError::Write)
    }

    /// Ends the import; the timeline is then at the record that was given, or that the archive tells of.
    pub async fn finish(mut self, prev_lsn: Option<Lsn>) -> Result<RecordLsn, ImportError> {
        let mut control = self.control.take().ok_or(ImportError::NoControlFile)?;
        if self.unique {
            // PostgreSQL's own identifiers begin with the time, so they fit a signed number.
            control.system_identifier = rand::random::<u64>() >> 1;
            control.mock_authentication_nonce = rand::random();
        }
        let mut m = self.begin();
        m.create_database(DbId {
            spcnode: GLOBAL_TABLESPACE,
            dbnode: 0,
        })
        .await?;
        m.put_checkpoint(control.checkpoint.encode().into());
        m.put_control_file(control.to_file().into());
        m.finish();
        self.put().await?;
        let at = RecordLsn {
            last: self.lsn,
            prev: prev_lsn.unwrap_or(self.prev_lsn),
        };
        self.writer.advance(at);
        Ok(at)
    }
}

async fn read(
    path: &str,
    contents: &mut (impl AsyncRead + Unpin),
    out: &mut [u8],
) -> Result<(), ImportError> {
    let done = contents.read_exact(out).await;
    done.map(drop).map_err(|source| ImportError::Read {
        path: path.into(),
        source,
    })
}

async fn read_page(path: &str, contents: &mut (impl AsyncRead + Unpin)) -> Result<Bytes, ImportError> {
    let mut page = vec![0; BLCKSZ];
    read(path, contents, &mut page).await?;
    Ok(page.into())
}

/// Number of pages in a file of `len` bytes.
fn blocks_of(path: &str, len: u64, max: u64) -> Result<u32, ImportError> {
    let blocks = len / BLCKSZ as u64;
    if len.is_multiple_of(BLCKSZ as u64) && blocks <= max {
        return Ok(blocks as u32);
    }
    let reason = format!("{len} bytes are not up to {max} whole pages");
    Err(ImportError::BadFile {
        path: path.to_owned(),
        reason,
    })
}
