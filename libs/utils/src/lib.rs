//! What every crate of the workspace shares and nothing else provides: identifiers, LSNs,
//! crash-safe files, authentication, logging and the common side of the HTTP servers.
//!
//! This crate is at the bottom of the dependency graph. It knows nothing of PostgreSQL's formats
//! (`postgres_ffi`) or of any wire protocol (`pq_proto`).

pub mod id;
pub mod lsn;
