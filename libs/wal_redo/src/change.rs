//! What a handler gets to know: the record, and which of its blocks is wanted.

use postgres_ffi::cursor::Cursor;
use postgres_ffi::v15::record::RecordHeader;
use postgres_ffi::v15::record_ref::{BlockRef, RecordRef};

use postgres_ffi::v15::rmgr::XLR_RMGR_INFO_MASK;

use utils::lsn::Lsn;

use crate::fault::Fault;

/// One record to be applied to one of its blocks.
#[derive(Clone, Copy)]
pub(crate) struct Change<'a> {
    header: &'a RecordHeader,
    main_data: &'a [u8],
    blocks: &'a [BlockRef<'a>],
    /// The block whose page is being changed.
    pub block: &'a BlockRef<'a>,
    /// End of the record.
    pub lsn: Lsn,
}

/// What a handler has done to the page's LSN duty.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Effect {
    /// The page changed: it gets the record's LSN.
    Changed,
    /// PostgreSQL leaves the page's LSN as it is.
    LsnKept,
}

impl<'a> Change<'a> {
    pub fn new(record: &'a RecordRef<'_>, block: &'a BlockRef<'_>, lsn: Lsn) -> Self {
        Change {
            header: &record.header,
            main_data: record.main_data,
            blocks: &record.blocks,
            block,
            lsn,
        }
    }

    /// Another block of the record.
    pub fn other(&self, id: u8) -> Option<&'a BlockRef<'a>> {
        self.blocks.iter().find(|block| block.id == id)
    }

    pub fn main(&self) -> Cursor<'a> {
        Cursor::new(self.main_data)
    }

    /// Data of the wanted block.
    pub fn data(&self) -> Cursor<'a> {
        Cursor::new(self.block.data)
    }

    pub fn info(&self) -> u8 {
        self.header.info & XLR_RMGR_INFO_MASK
    }

    pub fn xid(&self) -> u32 {
        self.header.xid
    }

    /// Block number of another block of the record.
    pub fn blkno_of(&self, id: u8) -> Result<u32, Fault> {
        self.other(id)
            .map(|block| block.blkno)
            .ok_or(Fault::Record("a block reference is missing"))
    }

    /// A record must have nothing behind what its type demands.
    pub fn finish(rest: Cursor<'_>) -> Result<(), Fault> {
        match rest.left() {
            0 => Ok(()),
            _ => Err(Fault::Record("bytes are left over")),
        }
    }

    /// The record has no block with the wanted block's number, as far as its type goes.
    pub fn unexpected_block<T>(&self) -> Result<T, Fault> {
        Err(Fault::Record("a block reference that its type does not have"))
    }
}
