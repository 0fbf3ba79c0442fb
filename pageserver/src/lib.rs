//! The pageserver: turns WAL into layer files and answers reads of any page at any retained LSN.

pub mod basebackup;
pub mod context;
pub mod import;
pub mod ingest;
pub mod layers;
pub mod pgdatadir;
pub mod tenant;
pub mod timeline;
