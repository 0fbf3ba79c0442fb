//! The pageserver: turns WAL into layer files and answers reads of any page at any retained LSN.

pub mod basebackup;
pub mod config;
pub mod context;
pub mod disk_space;
pub mod http;
pub mod import;
pub mod ingest;
pub mod layers;
pub mod metrics;
pub mod page_service;
pub mod pgdatadir;
pub mod remote;
pub mod server;
pub mod task_kind;
pub mod tenant;
pub mod timeline;
pub mod timestamp_search;
pub mod walreceiver;
