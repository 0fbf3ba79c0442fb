//! What the code above the layers (relation directory, ingest, base backup, page service) needs of a
//! timeline: versioned values under keys.
//!
//! Invariants
//! * A value stored at LSN `l` is visible to reads at every LSN from `l` on, until the key's next version.
//! * A read sees this timeline's own versions and, below its branch point, those of its ancestors.
//! * What a key never had a version of at or below the LSN is `None`, not an error.
//! * Keys are never removed: a dropped object is recorded in its directory entry, not by a missing key.

use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use pageserver_api::key::Key;
use pageserver_api::value::Value;
use utils::id::TimelineId;
use utils::lsn::Lsn;

use crate::layers::LayerError;

/// Reading versions of keys. [`super::Timeline`] implements it; tests use [`super::memory_store::MemoryStore`].
pub trait ReadStore: Sync {
    /// Latest version at or below `lsn`, in this timeline or its ancestors; `None` if there is none.
    fn get(&self, key: Key, lsn: Lsn) -> impl Future<Output = Result<Option<Bytes>, ReadError>> + Send;

    /// Same for many keys in one traversal of the layers; results in the order of `keys`.
    fn get_many(
        &self,
        keys: &[Key],
        lsn: Lsn,
    ) -> impl Future<Output = Result<Vec<Option<Bytes>>, ReadError>> + Send;

    /// All keys of `range` that have a version at or below `lsn` with that version, ascending.
    ///
    /// The result is held in memory: callers bound their range.
    fn scan(
        &self,
        range: Range<Key>,
        lsn: Lsn,
    ) -> impl Future<Output = Result<Vec<(Key, Bytes)>, ReadError>> + Send;
}

/// New versions, to be stored together.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    /// Ascending by LSN. Of two values with the same key and LSN the later one counts.
    pub values: Vec<(Key, Lsn, Value)>,
}

impl WriteBatch {
    /// Adds a version. `lsn` is not below that of the version added before.
    pub fn put(&mut self, key: Key, lsn: Lsn, value: Value) {
        self.values.push((key, lsn, value));
    }
}

/// Why a value could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The caller asks for history that is gone; only a higher LSN can help.
    #[error("LSN {lsn} is below the retained horizon {cutoff} of timeline {timeline_id}")]
    Collected {
        /// The LSN asked for.
        lsn: Lsn,
        /// The lowest LSN that can still be read.
        cutoff: Lsn,
        /// The timeline whose history ends there: the one asked, or an ancestor.
        timeline_id: TimelineId,
    },
    /// WAL up to the LSN has not arrived in time; the caller may try again.
    #[error("timed out after {waited:?} waiting for LSN {lsn} of timeline {timeline_id}, which is at {last}")]
    WaitLsn {
        /// The LSN waited for.
        lsn: Lsn,
        /// End of the last record that has arrived.
        last: Lsn,
        /// How long the caller waited.
        waited: Duration,
        /// The timeline that lags: the one asked, or an ancestor whose WAL is still being fetched.
        timeline_id: TimelineId,
    },
    /// A layer file is damaged or unreadable.
    #[error("cannot read key {key} at LSN {lsn}")]
    Layer {
        /// The key asked for.
        key: Key,
        /// The LSN asked for.
        lsn: Lsn,
        /// What is wrong with which file.
        source: LayerError,
    },
    /// The records found do not make a page.
    #[error("cannot reconstruct key {key} at LSN {lsn}")]
    Redo {
        /// The key asked for.
        key: Key,
        /// The LSN asked for.
        lsn: Lsn,
        /// Which record cannot be applied, and why.
        source: Box<wal_redo::RedoError>,
    },
    /// The timeline is being stopped.
    #[error("timeline {0} is shutting down")]
    Stopping(TimelineId),
}
