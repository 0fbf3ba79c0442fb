//! What every crate of the workspace shares and nothing else provides: identifiers, LSNs,
//! crash-safe files, authentication, logging and the common side of the HTTP servers.
//!
//! This crate is at the bottom of the dependency graph. It knows nothing of PostgreSQL's formats
//! (`postgres_ffi`) or of any wire protocol (`pq_proto`).

pub mod auth;
pub mod blocking;
pub mod crashsafe;
pub mod failpoints;
pub mod http;
pub mod id;
pub mod logging;
pub mod lsn;
pub mod metrics;
pub mod pid_file;
pub mod seqwait;
pub mod shutdown;

/// Version of this build as all binaries print it: `git:<hash>` or `git-env:<GIT_VERSION>`.
pub const VERSION: &str = env!("BUILD_VERSION");
