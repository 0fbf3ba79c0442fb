//! WAL ingest: decoded records in, values under keys out.
//!
//! One [`WalIngest`] per timeline, fed in WAL order. What it writes for a record is what PostgreSQL's redo of that
//! record would leave on disk: relation blocks as records or images, and everything that is not a page change by
//! itself (sizes, directories, transaction status, multixacts, counters) as values of its own.
//!
//! Invariants
//! * All values of a record carry its end LSN, which is also the `pd_lsn` redo leaves on a page.
//! * A record whose effect is not known is an error naming it and its LSN; nothing is guessed or skipped.
//! * The `CheckPoint` under its key is exact at every record: a server started there neither reuses nor loses a
//!   transaction id, multixact or OID that any record before has used.
//! * After an error the `WalIngest` is spent: make a new one, which starts again after the last advanced record.
//!   Values that were put but not advanced past are then put again, the same.
//!
//! Not here: waiting for WAL, feedback to safekeepers (the WAL receiver's), page contents (`wal_redo`'s).

mod blocks;
mod clog;
mod counters;
mod dbase;
mod logical;
mod multixact;
mod smgr;
#[cfg(test)]
mod tests;
mod visibility;
mod xact;
mod xlog;

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use postgres_ffi::cursor::Truncated;
use postgres_ffi::v15::decode::DecodeError;
use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::rmgr;
use utils::lsn::{Lsn, RecordLsn};

use self::counters::Counters;
pub(crate) use self::dbase::RELMAP_LEN;
use crate::pgdatadir::cache::MetadataCache;
use crate::pgdatadir::modification::Modification;
use crate::pgdatadir::{self, DataError};
use crate::timeline::memory_store::MemoryStore;
use crate::timeline::store::{ReadStore, WriteBatch};
use crate::timeline::{Timeline, TimelineWriter};

/// WAL after which the values collected go to the store, in bytes.
const BATCH_WAL_BYTES_MAX: usize = 1024 * 1024;
/// Number of values after which they go to the store.
const BATCH_VALUES_MAX: usize = 16 * 1024;

/// Why values could not be stored.
pub type WriteError = Box<dyn std::error::Error + Send + Sync>;

/// The one writer of a timeline.
pub trait WriteStore: Send {
    /// What sees everything that was put.
    type Reader: ReadStore;

    /// Where to read.
    fn reader(&self) -> &Self::Reader;

    /// Stores the values. They need not be seen by other readers before [`WriteStore::advance`].
    fn put(&mut self, batch: WriteBatch) -> impl Future<Output = Result<(), WriteError>> + Send;

    /// Everything up to the end of this record has been put: readers may see it.
    fn advance(&mut self, record: RecordLsn);
}

impl WriteStore for Arc<MemoryStore> {
    type Reader = MemoryStore;

    fn reader(&self) -> &MemoryStore {
        self
    }

    async fn put(&mut self, batch: WriteBatch) -> Result<(), WriteError> {
        MemoryStore::put(self, batch);
        Ok(())
    }

    fn advance(&mut self, _record: RecordLsn) {}
}

impl WriteStore for TimelineWriter {
    type Reader = Timeline;

    fn reader(&self) -> &Timeline {
        self.timeline()
    }

    async fn put(&mut self, batch: WriteBatch) -> Result<(), WriteError> {
        Ok(TimelineWriter::put(self, batch).await?)
    }

    fn advance(&mut self, record: RecordLsn) {
        TimelineWriter::advance(self, record);
    }
}

/// Why a record could not be ingested.
#[derive(Debug, thiserror::Error)]
#[error("cannot ingest the WAL record {name} that ends at {lsn}")]
pub struct IngestError {
    /// Resource manager and kind as `pg_waldump` prints them.
    pub name: String,
    /// End of the record.
    pub lsn: Lsn,
    /// What is wrong.
    #[source]
    pub cause: IngestFault,
}

/// What is wrong with a record, or with ingesting it.
#[derive(Debug, thiserror::Error)]
pub enum IngestFault {
    /// The bytes are not a record.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Nobody knows what this record does: an extension's resource manager, or another version's record.
    #[error("resource manager {rmid} has no known record kind with info {info:#04x}")]
    Unknown {
        /// Resource manager number.
        rmid: u8,
        /// `xl_info`.
        info: u8,
    },
    /// The record's own part is malformed.
    #[error("malformed record: {0}")]
    Malformed(String),
    /// The timeline could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The values could not be stored.
    #[error("cannot store the values of the record")]
    Write(#[source] WriteError),
}

impl From<Truncated> for IngestFault {
    fn from(truncated: Truncated) -> Self {
        IngestFault::malformed(truncated)
    }
}

impl IngestFault {
    fn malformed(reason: impl ToString) -> Self {
        IngestFault::Malformed(reason.to_string())
    }
}

/// What a handler needs to know of the record at hand.
struct Context<'r> {
    record: RecordRef<'r>,
    /// The record as it stands in the WAL.
    raw: &'r Bytes,
}

/// See the module head.
pub struct WalIngest<W> {
    writer: W,
    cache: MetadataCache,
    batch: WriteBatch,
    batch_wal_bytes: usize,
    counters: Counters,
    /// The last record whose values are in `batch` or in the store.
    at: RecordLsn,
    /// How far readers may see.
    advanced: Lsn,
}

impl<W: WriteStore> WalIngest<W> {
    /// Prepares to ingest what follows `at`, the timeline's last record.
    pub async fn new(writer: W, at: RecordLsn) -> Result<Self, DataError> {
        let raw = pgdatadir::checkpoint(writer.reader(), at.last).await?;
        let counters = Counters::decode(&raw, at.last)?;
        Ok(WalIngest {
            writer,
            cache: MetadataCache::default(),
            batch: WriteBatch::default(),
            batch_wal_bytes: 0,
            counters,
            at,
            advanced: at.last,
        })
    }

    /// The last record ingested. It is in the store for all to see after [`WalIngest::commit`].
    pub fn at(&self) -> RecordLsn {
        self.at
    }

    /// Change of the cluster's logical size by the records ingested since the last call, in blocks.
    pub fn take_grown_blocks(&mut self) -> i64 {
        self.cache.take_grown_blocks()
    }

    /// Ingests one record: `lsn.last` is where it ends, `lsn.prev` where it starts; `raw` is the record without
    /// page headers. Its values are collected, and put in the store now and then: see [`WalIngest::commit`].
    pub async fn ingest_record(&mut self, lsn: RecordLsn, raw: Bytes) -> Result<(), IngestError> {
        assert!(
            lsn.last > self.at.last,
            "record ending at {} after one ending at {}",
            lsn.last,
            self.at.last
        );
        let fault = |name: String| {
            move |cause| IngestError {
                name,
                lsn: lsn.last,
                cause,
            }
        };
        let record = RecordRef::parse(&raw).map_err(|e| fault("?".to_owned())(e.into()))?;
        let cx = Context { record, raw: &raw };
        let done = self.ingest_decoded(lsn, &cx).await;
        done.map_err(|cause| fault(record_name(&cx.record))(cause))
    }

    async fn ingest_decoded(&mut self, lsn: RecordLsn, cx: &Context<'_>) -> Result<(), IngestFault> {
        let record = &cx.record;
        let rmid = record.header.rmid;
        if rmid == rmgr::RM_DBASE_ID && record.rmgr_info() == rmgr::XLOG_DBASE_CREATE_FILE_COPY {
            // The copy is read from the store, which must have all of it.
            self.commit().await.map_err(IngestFault::Write)?;
            self.copy_database(lsn.last, record).await?;
        }
        let store = self.writer.reader();
        let mut m = Modification::new(store, &mut self.cache, &mut self.batch, lsn.last);
        self.counters.advance_past_xid(record.header.xid);
        match rmid {
            rmgr::RM_XLOG_ID => xlog::ingest(&mut m, &mut self.counters, cx).await?,
            rmgr::RM_XACT_ID => xact::ingest(&mut m, &mut self.counters, cx).await?,
            rmgr::RM_SMGR_ID => smgr::ingest(&mut m, cx).await?,
            rmgr::RM_CLOG_ID => clog::ingest(&mut m, &mut self.counters, cx).await?,
            rmgr::RM_DBASE_ID => dbase::ingest(&mut m, cx).await?,
            rmgr::RM_TBLSPC_ID => dbase::ingest_tablespace(&mut m, cx).await?,
            rmgr::RM_MULTIXACT_ID => multixact::ingest(&mut m, &mut self.counters, cx).await?,
            rmgr::RM_RELMAP_ID => dbase::ingest_relmap(&mut m, cx).await?,
            rmgr::RM_STANDBY_ID => xlog::ingest_standby(&mut self.counters, cx)?,
            rmgr::RM_LOGICALMSG_ID => logical::ingest_message(&mut m, cx)?,
            rmgr::RM_REPLORIGIN_ID => logical::ingest_origin(&mut m, cx).await?,
            rmgr::RM_HEAP_ID | rmgr::RM_HEAP2_ID => visibility::ingest(&mut m, cx).await?,
            _ => {}
        }
        check_known(record)?;
        blocks::ingest(&mut m, cx).await?;
        if let Some(checkpoint) = self.counters.take_changed() {
            m.put_checkpoint(checkpoint);
        }
        m.finish();
        self.at = lsn;
        self.batch_wal_bytes += cx.raw.len();
        if self.batch_wal_bytes >= BATCH_WAL_BYTES_MAX || self.batch.values.len() >= BATCH_VALUES_MAX {
            self.commit().await.map_err(IngestFault::Write)?;
        }
        Ok(())
    }

    /// Puts what was collected into the store and lets readers see it.
    pub async fn commit(&mut self) -> Result<(), WriteError> {
        self.put().await?;
        if self.at.last > self.advanced {
            self.writer.advance(self.at);
            self.advanced = self.at.last;
        }
        Ok(())
    }

    async fn put(&mut self) -> Result<(), WriteError> {
        if !self.batch.values.is_empty() {
            self.writer.put(std::mem::take(&mut self.batch)).await?;
        }
        self.batch_wal_bytes = 0;
        self.cache.forget_old();
        Ok(())
    }
}

/// `Heap/INSERT+INIT`, or numbers where there is no name.
fn record_name(record: &RecordRef<'_>) -> String {
    let rmid = record.header.rmid;
    let manager = rmgr::rmgr_name(rmid).map_or_else(|| format!("rmgr {rmid}"), str::to_owned);
    match rmgr::record_name(rmid, record.header.info) {
        "UNKNOWN" => format!("{manager}/{:#04x}", record.header.info),
        name => format!("{manager}/{name}"),
    }
}

/// Refuses a record that no resource manager of this version writes.
fn check_known(record: &RecordRef<'_>) -> Result<(), IngestFault> {
    let (rmid, info) = (record.header.rmid, record.header.info);
    if rmgr::record_name(rmid, info) == "UNKNOWN" {
        return Err(IngestFault::Unknown { rmid, info });
    }
    Ok(())
}
