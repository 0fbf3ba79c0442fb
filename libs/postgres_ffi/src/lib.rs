//! On-disk and WAL formats of PostgreSQL, one module per major version.
//!
//! Everything here is a pure function of bytes: no files, no sockets. Offsets and constants are
//! checked against the C compiler's view of the installed server headers by a test.

pub mod c_struct;
mod crc;
pub mod cursor;
pub mod pglz;
pub mod v15;
