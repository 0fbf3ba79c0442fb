//! A WAL record taken apart: header, block references, main data.

use bytes::Bytes;
use smallvec::SmallVec;
use utils::lsn::Lsn;

/// `XLogRecord` (`access/xlogrecord.h`), 24 bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RecordHeader {
    /// Length of the whole record, header included, in bytes (`xl_tot_len`).
    pub total_len: u32,
    /// Transaction that wrote the record, 0 if none.
    pub xid: u32,
    /// Start of the previous record.
    pub prev: Lsn,
    /// Flag bits: the high 4 bits belong to the resource manager, the low 4 to the WAL machinery.
    pub info: u8,
    /// Resource manager number.
    pub rmid: u8,
    /// CRC32C of data, then of the header without this field.
    pub crc: u32,
}

/// How the page image in a block reference is stored (`BKPIMAGE_COMPRESS_*`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ImageCompression {
    /// As it is, without the hole.
    None,
    /// PostgreSQL's own LZ.
    Pglz,
    /// LZ4 block.
    Lz4,
    /// Zstandard frame.
    Zstd,
}

/// A full-page image in a block reference.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BlockImage {
    /// Stored bytes, still compressed.
    pub data: Bytes,
    /// Compression of `data`.
    pub compression: ImageCompression,
    /// Start of the run of zeros left out of the page, in bytes.
    pub hole_offset: u16,
    /// Length of that run in bytes, 0 if there is none.
    pub hole_length: u16,
    /// Whether redo restores the page from the image (`BKPIMAGE_APPLY`). If not, the image is there
    /// for `wal_consistency_checking` only.
    pub apply: bool,
}

/// One block reference of a record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Block {
    /// Number of the reference in the record (0..=32); numbers may be skipped.
    pub id: u8,
    /// Tablespace OID.
    pub spcnode: u32,
    /// Database OID.
    pub dbnode: u32,
    /// Relation number.
    pub relnode: u32,
    /// Fork number as it stands in the record.
    pub forknum: u8,
    /// Block number in the fork.
    pub blkno: u32,
    /// Whether redo makes the page from nothing (`BKPBLOCK_WILL_INIT`).
    pub will_init: bool,
    /// Full-page image, if there is one.
    pub image: Option<BlockImage>,
    /// Data registered with the block (`XLogRecGetBlockData`); empty if there is none.
    pub data: Bytes,
}

/// Block references of a record. Most records have one or two, which need no allocation.
pub type Blocks = SmallVec<[Block; 2]>;

/// A decoded record. Byte strings share memory with the record they came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DecodedRecord {
    /// Header.
    pub header: RecordHeader,
    /// Block references in the order of their ids.
    pub blocks: Blocks,
    /// Main data (`XLogRecGetData`).
    pub main_data: Bytes,
    /// Replication origin, 0 if none.
    pub origin_id: u16,
    /// Top-level transaction when the record belongs to a subtransaction that carries it.
    pub toplevel_xid: Option<u32>,
}

impl DecodedRecord {
    /// The reference with this id.
    pub fn block(&self, id: u8) -> Option<&Block> {
        self.blocks.iter().find(|block| block.id == id)
    }

    /// The resource manager's own bits of `info` (`XLR_RMGR_INFO_MASK`).
    pub fn rmgr_info(&self) -> u8 {
        self.header.info & 0xf0
    }
}
