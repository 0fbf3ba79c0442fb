//! The safekeeper: makes the WAL of computes durable on a quorum, and serves it to pageservers.
//!
//! From the inside out: [`acceptor`] decides (no IO), [`wal_storage`] and [`control_file`] keep,
//! and the servers for proposers, pageservers and operators stand around them.

pub mod acceptor;
pub mod control_file;
#[cfg(test)]
mod test_wal;
pub mod wal_storage;

/// Whether what is written is forced to disk. `No` is for tests only: a crash of the machine may lose
/// acknowledged WAL.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sync {
    /// fsync before anything depends on what was written.
    Yes,
    /// Never fsync.
    No,
}
