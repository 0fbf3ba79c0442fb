//! WAL redo: a page and the records that change it give the page after the changes.
//!
//! [`reconstruct`] is what reading a page needs: a base image, or none, and an ordered run of changes, all
//! applied in one buffer. [`apply`] and [`apply_to_blocks`] apply one record in place.
//!
//! Contract
//! * The result is what PostgreSQL's own redo leaves, byte by byte, hint bits and the unused space between
//!   `pd_lower` and `pd_upper` excepted. The page's LSN becomes the end of the record, where PostgreSQL
//!   sets it; the checksum field is left alone.
//! * One block at a time: the change of a block never depends on another page.
//! * As in PostgreSQL, a record is passed over if the page's LSN says that it has the change already,
//!   unless the record makes the page anew.
//! * Records and pages come from outside. What does not fit is an error that names LSN, resource manager,
//!   info and block; never a panic, an endless loop or a write outside the page. After an error the buffer
//!   is unspecified: throw it away.
//!
//! One module per resource manager; each knows its record bodies. Not here: locating records, WAL page
//! headers, CRC, hint-bit masking (the check tool's), conflicts with standby queries, free space found in replay.

mod brin;
mod btree;
mod change;
mod dispatch;
mod fault;
mod generic;
mod gin;
mod gist;
mod hash;
mod heap;
mod heap2;
mod index_tuple;
mod offsets;
pub mod page;
mod reconstruct;
mod sequence;
mod slru;
mod spgist;
pub mod truncate;
pub mod visibility;

pub use dispatch::{PageTag, apply, apply_to_block, apply_to_blocks};
pub use fault::{Fault, PageName, RedoError, RmgrName};
pub use page::{PAGE_SIZE, PageBuf};
pub use reconstruct::{reconstruct, reconstruct_borrowed};
pub use slru::multixact_after;
