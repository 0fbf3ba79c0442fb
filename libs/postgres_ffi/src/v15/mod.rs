//! PostgreSQL 15.

pub mod bodies;
pub mod checkpoint;
pub mod control_file;
pub mod decode;
pub mod encode;
pub mod image;
pub mod page;
pub mod record;
pub mod record_ref;
pub mod relfile;
pub mod relmap;
pub mod rmgr;
pub mod slru;
pub mod stream;
pub mod wal_file;
pub mod wal_page;
pub mod xact;

/// Size of a data page and of a WAL page in bytes.
pub const BLCKSZ: usize = 8192;
/// Default size of a WAL segment in bytes.
pub const WAL_SEGMENT_SIZE: usize = 16 * 1024 * 1024;
