//! neon_local: runs a whole cluster on one machine.
//!
//! Everything it knows stands in the repository directory (`$NEON_REPO_DIR`, default `.neon`): the
//! `config` file, the daemons' data and logs, and the computes' data directories. It is not a daemon:
//! each command reads what is there, talks to the daemons and ends. Computes and daemons outlive it.
//!
//! Not here: anything a daemon must do for itself. A cluster can be run without neon_local.

pub mod account;
pub mod broker;
pub mod cli;
pub mod endpoint;
pub mod env;
pub mod http;
pub mod output;
pub mod pageserver;
pub mod process;
pub mod safekeeper;
pub mod timeline_tree;
