//! The pageserver: turns WAL into layer files and answers reads of any page at any retained LSN.

pub mod ingest;
pub mod layers;
pub mod pgdatadir;
pub mod timeline;
