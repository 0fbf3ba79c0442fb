//! A WAL record taken apart where it lies: nothing is copied or counted, and a record of up to two
//! blocks needs no memory of its own. Redo decodes hundreds of records for one page and wants it cheap.

use smallvec::SmallVec;

use super::BLCKSZ;
use super::decode::{
    BKPBLOCK_FORK_MASK, BKPBLOCK_HAS_DATA, BKPBLOCK_HAS_IMAGE, BKPBLOCK_SAME_REL, BKPBLOCK_WILL_INIT,
    BKPIMAGE_APPLY, BKPIMAGE_COMPRESS_LZ4, BKPIMAGE_COMPRESS_MASK, BKPIMAGE_COMPRESS_PGLZ,
    BKPIMAGE_COMPRESS_ZSTD, BKPIMAGE_HAS_HOLE, DecodeError, XLR_BLOCK_ID_DATA_LONG, XLR_BLOCK_ID_DATA_SHORT,
    XLR_BLOCK_ID_ORIGIN, XLR_BLOCK_ID_TOPLEVEL_XID, XLR_MAX_BLOCK_ID,
};
use super::record::{ImageCompression, RecordHeader};
use super::rmgr::XLR_RMGR_INFO_MASK;
use crate::cursor::Cursor;

/// A full-page image in a block reference; the fields are those of [`super::record::BlockImage`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ImageRef<'a> {
    /// Stored bytes, still compressed.
    pub data: &'a [u8],
    /// Compression of `data`.
    pub compression: ImageCompression,
    /// Start of the run of zeros left out of the page, in bytes.
    pub hole_offset: u16,
    /// Length of that run in bytes, 0 if there is none.
    pub hole_length: u16,
    /// Whether redo restores the page from the image; if not, it is there for checking only.
    pub apply: bool,
}

/// One block reference of a record; the fields are those of [`super::record::Block`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlockRef<'a> {
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
    /// Whether redo makes the page from nothing.
    pub will_init: bool,
    /// Full-page image, if there is one.
    pub image: Option<ImageRef<'a>>,
    /// Data registered with the block; empty if there is none.
    pub data: &'a [u8],
}

/// A record that borrows from the bytes it was read from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecordRef<'a> {
    /// Header.
    pub header: RecordHeader,
    /// Block references in ascending order of their ids.
    pub blocks: SmallVec<[BlockRef<'a>; 2]>,
    /// Main data.
    pub main_data: &'a [u8],
    /// Replication origin, 0 if none.
    pub origin_id: u16,
    /// Top-level transaction when the record belongs to a subtransaction that carries it.
    pub toplevel_xid: Option<u32>,
}

impl<'a> RecordRef<'a> {
    /// Takes a whole record apart (header and data as in the WAL, page headers removed). Does not check
    /// the CRC.
    #[inline]
    pub fn parse(record: &'a [u8]) -> Result<Self, DecodeError> {
        let header = RecordHeader::decode(record)?;
        if header.total_len as usize != record.len() {
            return Err(DecodeError::Length {
                stated: header.total_len,
                got: record.len(),
            });
        }
        let mut parsed = RecordRef {
            header,
            blocks: SmallVec::new(),
            main_data: &[],
            origin_id: 0,
            toplevel_xid: None,
        };
        let mut input = Cursor::new(&record[RecordHeader::LEN..]);
        let payload = parsed.read_headers(&mut input)?;
        if payload.len != input.left() {
            return Err(DecodeError::Payload {
                stated: payload.len,
                got: input.left(),
            });
        }
        for (block, sizes) in parsed.blocks.iter_mut().zip(&payload.blocks) {
            if let Some(image) = &mut block.image {
                image.data = input.bytes(sizes.image.into())?;
            }
            block.data = input.bytes(sizes.data.into())?;
        }
        parsed.main_data = input.bytes(payload.main_len)?;
        Ok(parsed)
    }

    /// The reference with this id.
    pub fn block(&self, id: u8) -> Option<&BlockRef<'a>> {
        self.blocks.iter().find(|block| block.id == id)
    }

    /// The resource manager's own bits of `info` (`XLR_RMGR_INFO_MASK`).
    pub fn rmgr_info(&self) -> u8 {
        self.header.info & XLR_RMGR_INFO_MASK
    }

    /// Reads the headers; gives the lengths of the byte strings that follow them.
    fn read_headers(&mut self, input: &mut Cursor<'a>) -> Result<Payload, DecodeError> {
        let mut payload = Payload::default();
        // The header of the main data is the last one; a record without main data ends its headers
        // where the rest is as long as the payload announced.
        while input.left() > payload.len {
            match input.u8()? {
                XLR_BLOCK_ID_DATA_SHORT => {
                    payload.main_len = input.u8()?.into();
                    payload.len += payload.main_len;
                    break;
                }
                XLR_BLOCK_ID_DATA_LONG => {
                    payload.main_len = input.u32()? as usize;
                    payload.len += payload.main_len;
                    break;
                }
                XLR_BLOCK_ID_ORIGIN => self.origin_id = input.u16()?,
                XLR_BLOCK_ID_TOPLEVEL_XID => {
                    self.toplevel_xid = Some(input.u32()?).filter(|xid| *xid != 0);
                }
                id @ 0..=XLR_MAX_BLOCK_ID => {
                    let (block, sizes) = read_block(id, input, self.blocks.last())?;
                    self.blocks.push(block);
                    payload.len += usize::from(sizes.image) + usize::from(sizes.data);
                    payload.blocks.push(sizes);
                }
                id => return Err(DecodeError::UnknownBlockId(id)),
            }
        }
        Ok(payload)
    }
}

/// Payload of one block in bytes.
#[derive(Clone, Copy, Default)]
struct Sizes {
    image: u16,
    data: u16,
}

/// Lengths in bytes of what follows the headers.
#[derive(Default)]
struct Payload {
    blocks: SmallVec<[Sizes; 4]>,
    main_len: usize,
    /// All of it.
    len: usize,
}

/// Reads the header of a block reference; its byte strings are still empty.
fn read_block<'a>(
    id: u8,
    input: &mut Cursor<'a>,
    previous: Option<&BlockRef<'a>>,
) -> Result<(BlockRef<'a>, Sizes), DecodeError> {
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
    let block = BlockRef {
        id,
        spcnode,
        dbnode,
        relnode,
        forknum: flags & BKPBLOCK_FORK_MASK,
        blkno: input.u32()?,
        will_init: flags & BKPBLOCK_WILL_INIT != 0,
        image,
        data: &[],
    };
    let sizes = Sizes {
        image: image_len,
        data: data_len,
    };
    Ok((block, sizes))
}

/// Reads the header of an image; gives the image without its bytes, and their number.
fn read_image<'a>(id: u8, input: &mut Cursor<'a>) -> Result<(ImageRef<'a>, u16), DecodeError> {
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
            let image = ImageRef {
                data: &[],
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
