//! The safekeeper: makes the WAL of computes durable on a quorum, and serves it to pageservers.
//!
//! From the inside out: [`acceptor`] decides (no IO), [`wal_storage`] and [`control_file`] keep,
//! [`timeline`] joins the two, [`timeline_map`] has all of them, and the servers for proposers and
//! readers ([`server`]) and for operators ([`http`]) stand around it.

pub mod acceptor;
pub mod background;
pub mod config;
pub mod control_file;
pub mod dump;
pub mod http;
pub mod metrics;
pub mod offload;
pub mod pull_timeline;
pub mod server;
pub mod short_wait;
pub mod timeline;
pub mod timeline_map;
pub mod wal_storage;

#[cfg(test)]
mod test_wal;

/// Whether what is written is forced to disk. `No` is for tests only: a crash of the machine may lose
/// acknowledged WAL.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sync {
    /// fsync before anything depends on what was written.
    Yes,
    /// Never fsync.
    No,
}
