//! A timeline: one branch of one cluster's history, readable at every retained LSN.

pub mod memory_store;
mod reconstruct;
pub mod store;

pub use reconstruct::reconstruct;
pub use store::{ReadError, ReadStore, WriteBatch};

/// Why records do not make a page.
pub type RedoError = Box<dyn std::error::Error + Send + Sync>;
