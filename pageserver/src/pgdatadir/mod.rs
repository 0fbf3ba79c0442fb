//! The mapping between PostgreSQL's objects (relations, databases, SLRUs, prepared transactions) and
//! the keys of a timeline.
//!
//! Invariants
//! * The size key of a relation fork or SLRU segment governs: a block at or beyond the size does not
//!   exist, whatever older versions its key has. A dropped fork has size 0 and directory entry 0.
//! * A block that comes to lie below the size gets a value at that very LSN, unless its key never had
//!   one. So a relation made anew under an old number never shows blocks of its predecessor.
//! * A relation is in its database's directory as one key per fork; creating one costs the same
//!   whether the database has ten relations or a million.
//! * One record writes at most one version of a key.
//!
//! Reading ([`read`]) is generic over [`ReadStore`](crate::timeline::store::ReadStore) and keeps
//! nothing between calls. Writing ([`modification`]) turns the changes of one record into values; what it
//! must know of earlier records stands in the [`cache`].

pub mod aux_files;
pub mod cache;
pub mod directory;
pub mod modification;
pub mod read;
pub mod repl_origins;
#[cfg(test)]
mod tests;

use pageserver_api::key::Key;
use pageserver_api::reltag::RelTag;
use utils::lsn::Lsn;

pub use directory::{DbDirectory, DbId, NumberSet};
pub use read::*;

use crate::timeline::store::ReadError;

/// Why an object of a timeline could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The store failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The value under a key is not what that key holds: the timeline is damaged.
    #[error("the value of key {key} at LSN {lsn} is damaged: {reason}")]
    Damaged {
        /// The key.
        key: Key,
        /// LSN of the read.
        lsn: Lsn,
        /// What is wrong with it.
        reason: String,
    },
    /// A value that every timeline has is not there.
    #[error("timeline has no {what} at LSN {lsn}")]
    Missing {
        /// What was looked for.
        what: String,
        /// LSN of the read.
        lsn: Lsn,
    },
    /// The relation fork is not there; the client may have asked for one that was dropped.
    #[error("relation {rel} does not exist at LSN {lsn}")]
    NoSuchRelation {
        /// The fork.
        rel: RelTag,
        /// LSN of the read.
        lsn: Lsn,
    },
}
