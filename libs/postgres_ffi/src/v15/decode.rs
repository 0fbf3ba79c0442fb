//! Taking a WAL record apart (`DecodeXLogRecord`), and its checksum.
//!
//! Layout of a record (`access/xlogrecord.h`): the 24-byte header; block headers in ascending order of
//! their ids, with origin and top-level transaction among them; the header of the main data; then the
//! payload: of each block its image and its data, and last the main data. Nothing is aligned.
//!
//! Every length is checked against the record, so that what is returned lies within it. A record
//! that decodes need not be *sound*: check its CRC where it comes from a disk or a peer.

use bytes::{Buf, Bytes};
use utils::lsn::Lsn;

use super::record::{Block, BlockImage, Blocks, DecodedRecord, RecordHeader};
use super::record_ref::RecordRef;
use crate::crc;
use crate::cursor::Truncated;

/// Highest block reference number (`XLR_MAX_BLOCK_ID`).
pub const XLR_MAX_BLOCK_ID: u8 = 32;
/// Main data with a one-byte length follows.
pub const XLR_BLOCK_ID_DATA_SHORT: u8 = 255;
/// Main data with a four-byte length follows.
pub const XLR_BLOCK_ID_DATA_LONG: u8 = 254;
/// A replication origin number follows.
pub const XLR_BLOCK_ID_ORIGIN: u8 = 253;
/// A top-level transaction id follows.
pub const XLR_BLOCK_ID_TOPLEVEL_XID: u8 = 252;

/// Mask of the fork number in the fork and flags byte of a block header.
pub const BKPBLOCK_FORK_MASK: u8 = 0x0f;
/// The block has a full-page image.
pub const BKPBLOCK_HAS_IMAGE: u8 = 0x10;
/// The block has data.
pub const BKPBLOCK_HAS_DATA: u8 = 0x20;
/// Redo makes the page from nothing.
pub const BKPBLOCK_WILL_INIT: u8 = 0x40;
/// Same relation as the block reference before.
pub const BKPBLOCK_SAME_REL: u8 = 0x80;

/// A hole was left out of the image.
pub const BKPIMAGE_HAS_HOLE: u8 = 0x01;
/// Redo restores the page from the image.
pub const BKPIMAGE_APPLY: u8 = 0x02;
/// The image is compressed with pglz.
pub const BKPIMAGE_COMPRESS_PGLZ: u8 = 0x04;
/// The image is compressed with LZ4.
pub const BKPIMAGE_COMPRESS_LZ4: u8 = 0x08;
/// The image is compressed with Zstandard.
pub const BKPIMAGE_COMPRESS_ZSTD: u8 = 0x10;

pub(super) const BKPIMAGE_COMPRESS_MASK: u8 =
    BKPIMAGE_COMPRESS_PGLZ | BKPIMAGE_COMPRESS_LZ4 | BKPIMAGE_COMPRESS_ZSTD;

/// The bytes are not a WAL record.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// A header runs past the end of the record.
    #[error("WAL record is cut short: {0}")]
    Truncated(#[from] Truncated),
    /// The length in the header is not the length of the record.
    #[error("WAL record of {got} bytes claims a length of {stated}")]
    Length {
        /// Length in the header.
        stated: u32,
        /// Bytes given.
        got: usize,
    },
    /// The lengths in the headers do not add up to the record's length.
    #[error("WAL record has {got} bytes of payload, its headers claim {stated}")]
    Payload {
        /// Sum of the lengths in the headers.
        stated: usize,
        /// Bytes behind the headers.
        got: usize,
    },
    /// No fragment has this number.
    #[error("unknown block number {0} in a WAL record")]
    UnknownBlockId(u8),
    /// Block numbers must ascend.
    #[error("block number {0} is out of order in a WAL record")]
    BlockOrder(u8),
    /// The "has data" flag and the data length disagree.
    #[error("block {id}: data flag and data length {len} disagree")]
    DataFlag {
        /// Number of the block reference.
        id: u8,
        /// Data length in bytes.
        len: u16,
    },
    /// Flags, length and hole of an image disagree.
    #[error(
        "block {id}: image of {len} bytes with hole offset {hole_offset}, length {hole_length} \
         does not agree with its flags {flags:#04x}"
    )]
    Image {
        /// Number of the block reference.
        id: u8,
        /// Stored length in bytes.
        len: u16,
        /// Start of the hole in bytes.
        hole_offset: u16,
        /// Length of the hole in bytes.
        hole_length: u16,
        /// `bimg_info`.
        flags: u8,
    },
    /// The first block reference says "same relation as before".
    #[error("block {0} refers to the relation of the block before it, but there is none")]
    NoRelation(u8),
    /// The checksum is wrong.
    #[error("WAL record has checksum {stated:08X}, its bytes have {computed:08X}")]
    Crc {
        /// Checksum in the header.
        stated: u32,
        /// Checksum of the bytes.
        computed: u32,
    },
}

/// CRC32C of a record as PostgreSQL computes it: everything behind the header first, then the header
/// up to the checksum. `record` must hold at least the 24-byte header.
pub fn record_crc(record: &[u8]) -> u32 {
    let body = crc::append(0, &record[RecordHeader::LEN..]);
    crc::append(body, &record[..RecordHeader::CRC_OFFSET])
}

/// Checks the checksum of a whole record.
pub fn check_crc(record: &[u8]) -> Result<(), DecodeError> {
    let header = RecordHeader::decode(record)?;
    let computed = record_crc(record);
    if header.crc != computed {
        return Err(DecodeError::Crc {
            stated: header.crc,
            computed,
        });
    }
    Ok(())
}

/// Takes a whole record apart (header and data as in the WAL, page headers removed). Does not check the CRC.
///
/// The byte strings of the result share memory with `record`.
pub fn decode_record(mut record: Bytes) -> Result<DecodedRecord, DecodeError> {
    let parsed = RecordRef::parse(&record)?;
    let mut blocks = Blocks::new();
    for block in &parsed.blocks {
        let image = block.image.map(|image| BlockImage {
            data: record.slice_ref(image.data),
            compression: image.compression,
            hole_offset: image.hole_offset,
            hole_length: image.hole_length,
            apply: image.apply,
        });
        blocks.push(Block {
            id: block.id,
            spcnode: block.spcnode,
            dbnode: block.dbnode,
            relnode: block.relnode,
            forknum: block.forknum,
            blkno: block.blkno,
            will_init: block.will_init,
            image,
            data: record.slice_ref(block.data),
        });
    }
    let (header, origin_id, toplevel_xid) = (parsed.header, parsed.origin_id, parsed.toplevel_xid);
    let main_start = record.len() - parsed.main_data.len();
    drop(parsed);
    // The main data is the end of the record, which is not needed any more: one reference fewer to count.
    record.advance(main_start);
    Ok(DecodedRecord {
        header,
        blocks,
        main_data: record,
        origin_id,
        toplevel_xid,
    })
}

impl RecordHeader {
    /// Length in the WAL in bytes (`SizeOfXLogRecord`).
    pub const LEN: usize = 24;
    /// Offset of the checksum, the last field.
    pub const CRC_OFFSET: usize = 20;

    /// Reads the header at the start of `raw`.
    #[inline]
    pub fn decode(raw: &[u8]) -> Result<Self, Truncated> {
        let header = raw.first_chunk().ok_or(Truncated {
            want: Self::LEN,
            left: raw.len(),
        })?;
        Ok(Self::from_array(header))
    }

    /// Reads the header's bytes.
    #[inline]
    pub fn from_array(raw: &[u8; Self::LEN]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        Self {
            total_len: u32_at(0),
            xid: u32_at(4),
            prev: Lsn(u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32),
            info: raw[16],
            rmid: raw[17],
            crc: u32_at(Self::CRC_OFFSET),
        }
    }

    /// The form in the WAL.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut raw = [0; Self::LEN];
        let Lsn(prev) = self.prev;
        raw[0..4].copy_from_slice(&self.total_len.to_le_bytes());
        raw[4..8].copy_from_slice(&self.xid.to_le_bytes());
        raw[8..16].copy_from_slice(&prev.to_le_bytes());
        raw[16] = self.info;
        raw[17] = self.rmid;
        raw[20..24].copy_from_slice(&self.crc.to_le_bytes());
        raw
    }
}

#[cfg(test)]
mod tests;
