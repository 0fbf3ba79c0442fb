//! The remote half of tenants and timelines: what is in object storage, and how it gets there and back.
//!
//! Object storage holds the truth; the local disk is a cache of it, plus what is not uploaded yet, which
//! safekeepers still have as WAL.

pub mod client;
pub mod download;
pub mod index;
pub mod paths;
pub mod queue;
pub mod retry;

pub use self::client::{TimelineClient, WaitUploadedError};
pub use self::download::DownloadError;
