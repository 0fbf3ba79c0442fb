//! Taking a WAL record apart (`DecodeXLogRecord`), and its checksum.
//!
//! Layout of a record (`access/xlogrecord.h`): the 24-byte header; block headers in ascending order of
//! their ids, with origin and top-level transaction among them; the header of the main data; then the
//! payload: of each block its image and its data, and last the main data. Nothing is aligned.
//!
//! Every length is checked against the record, so that what is returned lies within it. A record
//! that decodes need not be *sound*: check its CRC where it comes from a disk or a peer.

use bytes::Bytes;
use utils::lsn::Lsn;

use super::BLCKSZ;
use super::record::{Block, BlockImage, Blocks, DecodedRecord, ImageCompression, RecordHeader};
use crate::cursor::{Cursor, Truncated};

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

const BKPIMAGE_COMPRESS_MASK: u8 = BKPIMAGE_COMPRESS_PGLZ | BKPIMAGE_COMPRESS_LZ4 | BKPIMAGE_COMPRESS_ZSTD;

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
    let body = crc32c::crc32c(&record[RecordHeader::LEN..]);
    crc32c::crc32c_append(body, &record[..RecordHeader::CRC_OFFSET])
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
pub fn decode_record(record: Bytes) -> Result<DecodedRecord, DecodeError> {
    let header = RecordHeader::decode(&record)?;
    if header.total_len as usize != record.len() {
        return Err(DecodeError::Length {
            stated: header.total_len,
            got: record.len(),
        });
    }
    let mut headers = Headers::default();
    let mut input = Cursor::new(&record[RecordHeader::LEN..]);
    headers.read(&mut input)?;
    if headers.payload_len != input.left() {
        return Err(DecodeError::Payload {
            stated: headers.payload_len,
            got: input.left(),
        });
    }
    let mut at = record.len() - input.left();
    let mut take = |len: usize| {
        if len == 0 {
            return Bytes::new();
        }
        at += len;
        record.slice(at - len..at)
    };
    for (block, sizes) in headers.blocks.iter_mut().zip(&headers.sizes) {
        if let Some(image) = &mut block.image {
            image.data = take(sizes.image.into());
        }
        block.data = take(sizes.data.into());
    }
    let main_data = take(headers.main_len);
    Ok(DecodedRecord {
        header,
        blocks: headers.blocks,
        main_data,
        origin_id: headers.origin_id,
        toplevel_xid: headers.toplevel_xid,
    })
}

/// Payload of one block in bytes.
#[derive(Clone, Copy, Default)]
struct Sizes {
    image: u16,
    data: u16,
}

/// What the fragment headers say.
#[derive(Default)]
struct Headers {
    /// References with their byte strings still empty.
    blocks: Blocks,
    /// Payload lengths of `blocks`.
    sizes: smallvec::SmallVec<[Sizes; 4]>,
    main_len: usize,
    /// Sum of all payload lengths.
    payload_len: usize,
    origin_id: u16,
    toplevel_xid: Option<u32>,
}

impl Headers {
    fn read(&mut self, input: &mut Cursor<'_>) -> Result<(), DecodeError> {
        // The header of the main data is the last one; a record without main data ends its headers
        // where the rest is as long as the payload announced.
        while input.left() > self.payload_len {
            match input.u8()? {
                XLR_BLOCK_ID_DATA_SHORT => {
                    self.main_len = input.u8()?.into();
                    self.payload_len += self.main_len;
                    break;
                }
                XLR_BLOCK_ID_DATA_LONG => {
                    self.main_len = input.u32()? as usize;
                    self.payload_len += self.main_len;
                    break;
                }
                XLR_BLOCK_ID_ORIGIN => self.origin_id = input.u16()?,
                XLR_BLOCK_ID_TOPLEVEL_XID => {
                    self.toplevel_xid = Some(input.u32()?).filter(|xid| *xid != 0);
                }
                id @ 0..=XLR_MAX_BLOCK_ID => self.read_block(id, input)?,
                id => return Err(DecodeError::UnknownBlockId(id)),
            }
        }
        Ok(())
    }

    fn read_block(&mut self, id: u8, input: &mut Cursor<'_>) -> Result<(), DecodeError> {
        let previous = self.blocks.last();
        if previous.is_some_and(|previous| previous.id >= id) {
            return Err(DecodeError::BlockOrder(id));
        }
        let flags = input.u8()?;
        let data_len = input.u16()?;
        if (flags & BKPBLOCK_HAS_DATA != 0) != (data_len != 0) {
            return Err(DecodeError::DataFlag { id, len: data_len });
        }
        let (image, image_len) = if flags & BKPBLOCK_HAS_IMAGE != 0 {
            let (image, len) = read_image(id, input)?;
            (Some(image), len)
        } else {
            (None, 0)
        };
        let (spcnode, dbnode, relnode) = if flags & BKPBLOCK_SAME_REL != 0 {
            let previous = previous.ok_or(DecodeError::NoRelation(id))?;
            (previous.spcnode, previous.dbnode, previous.relnode)
        } else {
            (input.u32()?, input.u32()?, input.u32()?)
        };
        let block = Block {
            id,
            spcnode,
            dbnode,
            relnode,
            forknum: flags & BKPBLOCK_FORK_MASK,
            blkno: input.u32()?,
            will_init: flags & BKPBLOCK_WILL_INIT != 0,
            image,
            data: Bytes::new(),
        };
        self.blocks.push(block);
        self.sizes.push(Sizes {
            image: image_len,
            data: data_len,
        });
        self.payload_len += usize::from(image_len) + usize::from(data_len);
        Ok(())
    }
}

/// Reads the header of an image; gives the image without its bytes, and their number.
fn read_image(id: u8, input: &mut Cursor<'_>) -> Result<(BlockImage, u16), DecodeError> {
    const PAGE_LEN: u16 = BLCKSZ as u16;
    let len = input.u16()?;
    let hole_offset = input.u16()?;
    let flags = input.u8()?;
    let has_hole = flags & BKPIMAGE_HAS_HOLE != 0;
    let compression = match flags & BKPIMAGE_COMPRESS_MASK {
        0 => Some(ImageCompression::None),
        BKPIMAGE_COMPRESS_PGLZ => Some(ImageCompression::Pglz),
        BKPIMAGE_COMPRESS_LZ4 => Some(ImageCompression::Lz4),
        BKPIMAGE_COMPRESS_ZSTD => Some(ImageCompression::Zstd),
        _ => None,
    };
    let compressed = compression != Some(ImageCompression::None);
    let hole_length = match (compressed, has_hole) {
        (true, true) => input.u16()?,
        (true, false) => 0,
        (false, _) => PAGE_LEN.saturating_sub(len),
    };
    let hole_agrees = if has_hole {
        hole_offset != 0 && hole_length != 0
    } else {
        hole_offset == 0 && hole_length == 0
    };
    let in_page = u32::from(hole_offset) + u32::from(hole_length) <= u32::from(PAGE_LEN);
    // Compression that gains nothing is not used; an image without a hole and compression is a page.
    let len_agrees = len < PAGE_LEN || (len == PAGE_LEN && !compressed && !has_hole);
    match compression {
        Some(compression) if hole_agrees && in_page && len_agrees => {
            let image = BlockImage {
                data: Bytes::new(),
                compression,
                hole_offset,
                hole_length,
                apply: flags & BKPIMAGE_APPLY != 0,
            };
            Ok((image, len))
        }
        _ => Err(DecodeError::Image {
            id,
            len,
            hole_offset,
            hole_length,
            flags,
        }),
    }
}

impl RecordHeader {
    /// Length in the WAL in bytes (`SizeOfXLogRecord`).
    pub const LEN: usize = 24;
    /// Offset of the checksum, the last field.
    pub const CRC_OFFSET: usize = 20;

    /// Reads the header at the start of `raw`.
    pub fn decode(raw: &[u8]) -> Result<Self, Truncated> {
        let mut input = Cursor::new(raw.get(..Self::LEN).ok_or(Truncated {
            want: Self::LEN,
            left: raw.len(),
        })?);
        Ok(Self {
            total_len: input.u32()?,
            xid: input.u32()?,
            prev: input.lsn()?,
            info: input.u8()?,
            rmid: input.u8()?,
            crc: {
                input.skip(2)?;
                input.u32()?
            },
        })
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
