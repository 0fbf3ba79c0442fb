//! PostgreSQL 15.

pub mod checkpoint;
pub mod control_file;
pub mod decode;
pub mod encode;
pub mod image;
pub mod page;
pub mod record;
pub mod record_ref;
pub mod rmgr;
pub mod stream;
pub mod wal_page;

/// Size of a data page and of a WAL page in bytes.
pub const BLCKSZ: usize = 8192;
/// Default size of a WAL segment in bytes.
pub const WAL_SEGMENT_SIZE: usize = 16 * 1024 * 1024;
