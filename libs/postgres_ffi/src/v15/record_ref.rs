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

impl BlockRef<'_> {
    const EMPTY: Self = BlockRef {
        id: 0,
        spcnode: 0,
        dbnode: 0,
        relnode: 0,
        forknum: 0,
        blkno: 0,
        will_init: false,
        image: None,
        data: &[],
    };
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
    /// A record without anything, for [`Self::read`].
    #[inline]
    pub fn empty() -> Self {
        RecordRef {
            header: RecordHeader::default(),
            blocks: SmallVec::new(),
            main_data: &[],
            origin_id: 0,
            toplevel_xid: None,
        }
    }

    /// Takes a whole record apart (header and data as in the WAL, page headers removed). Does not check
    /// the CRC.
    #[inline]
    pub fn parse(record: &'a [u8]) -> Result<Self, DecodeError> {
        let mut parsed = Self::empty();
        parsed.read(record)?;
        Ok(parsed)
    }

    /// Takes a whole record apart as [`Self::parse`] does, in place: a parsed record is some hundreds of bytes, and
    /// moving them costs a good part of what reading them does. After an error the content is unspecified.
    pub fn read(&mut self, record: &'a [u8]) -> Result<(), DecodeError> {
        match self.read_plain(record) {
            true => Ok(()),
            false => self.read_any(record),
        }
    }

    fn read_any(&mut self, record: &'a [u8]) -> Result<(), DecodeError> {
        let header = RecordHeader::decode(record)?;
        if header.total_len as usize != record.len() {
            return Err(DecodeError::Length {
                stated: header.total_len,
                got: record.len(),
            });
        }
        self.header = header;
        self.blocks.clear();
        (self.main_data, self.origin_id, self.toplevel_xid) = (&[], 0, None);
        let mut input = Cursor::new(&record[RecordHeader::LEN..]);
        let payload_len = self.read_headers(&mut input)?;
        if payload_len != input.left() {
            return Err(DecodeError::Payload {
                stated: payload_len,
                got: input.left(),
            });
        }
        // The byte strings have their lengths already; now they move to their places.
        for block in &mut self.blocks {
            if let Some(image) = &mut block.image {
                image.data = input.bytes(image.data.len())?;
            }
            block.data = input.bytes(block.data.len())?;
        }
        self.main_data = input.bytes(self.main_data.len())?;
        Ok(())
    }

    /// Takes the record apart if it is a plain one, as most are: one block, with its relation and without an image, and up to
    /// 255 bytes of main data. Gives whether it is; what is not plain, or not right, is left to [`Self::read_any`].
    #[inline]
    fn read_plain(&mut self, record: &'a [u8]) -> bool {
        // The record's header, the block's, and that of the main data.
        let Some((headers, payload)) = record.split_first_chunk::<{ RecordHeader::LEN + 20 + 2 }>() else {
            return false;
        };
        let (header, rest) = headers.split_first_chunk().expect("it is the first part");
        let [id, flags, l0, l1, names @ .., main_id, main_len] = rest else {
            return false;
        };
        let data_len = usize::from(u16::from_le_bytes([*l0, *l1]));
        let header = RecordHeader::from_array(header);
        let plain = *id == 0
            && flags & (BKPBLOCK_HAS_IMAGE | BKPBLOCK_SAME_REL) == 0
            && (flags & BKPBLOCK_HAS_DATA != 0) == (data_len != 0)
            && *main_id == XLR_BLOCK_ID_DATA_SHORT
            && payload.len() == data_len + usize::from(*main_len)
            && header.total_len as usize == record.len();
        if !plain {
            return false;
        }
        let [spcnode, dbnode, relnode, blkno] = names.as_chunks().0 else {
            return false;
        };
        let (data, main_data) = payload.split_at(data_len);
        self.header = header;
        self.blocks.clear();
        self.blocks.push(BlockRef::EMPTY);
        // Made in its place: to read what was just written in smaller parts, as moving it would, makes the processor wait.
        let block = &mut self.blocks[0];
        block.spcnode = u32::from_le_bytes(*spcnode);
        block.dbnode = u32::from_le_bytes(*dbnode);
        block.relnode = u32::from_le_bytes(*relnode);
        block.forknum = flags & BKPBLOCK_FORK_MASK;
        block.blkno = u32::from_le_bytes(*blkno);
        block.will_init = flags & BKPBLOCK_WILL_INIT != 0;
        block.data = data;
        (self.main_data, self.origin_id, self.toplevel_xid) = (main_data, 0, None);
        true
    }

    /// The reference with this id.
    pub fn block(&self, id: u8) -> Option<&BlockRef<'a>> {
        self.blocks.iter().find(|block| block.id == id)
    }

    /// The resource manager's own bits of `info` (`XLR_RMGR_INFO_MASK`).
    pub fn rmgr_info(&self) -> u8 {
        self.header.info & XLR_RMGR_INFO_MASK
    }

    /// Reads the headers; gives the length of what follows them. Byte strings get their lengths, but not their places.
    fn read_headers(&mut self, input: &mut Cursor<'a>) -> Result<usize, DecodeError> {
        let mut payload_len = 0;
        // The header of the main data is the last one; a record without main data ends its headers
        // where the rest is as long as the payload announced.
        while input.left() > payload_len {
            let main_len = match input.u8()? {
                XLR_BLOCK_ID_DATA_SHORT => input.u8()?.into(),
                XLR_BLOCK_ID_DATA_LONG => input.u32()? as usize,
                XLR_BLOCK_ID_ORIGIN => {
                    self.origin_id = input.u16()?;
                    continue;
                }
                XLR_BLOCK_ID_TOPLEVEL_XID => {
                    self.toplevel_xid = Some(input.u32()?).filter(|xid| *xid != 0);
                    continue;
                }
                id @ 0..=XLR_MAX_BLOCK_ID => {
                    let block = read_block(id, input, self.blocks.last())?;
                    let image_len = block.image.map_or(0, |image| image.data.len());
                    payload_len += image_len + block.data.len();
                    self.blocks.push(block);
                    continue;
                }
                id => return Err(DecodeError::UnknownBlockId(id)),
            };
            payload_len += main_len;
            self.main_data = some_bytes(input, main_len, payload_len)?;
            break;
        }
        Ok(payload_len)
    }
}

/// Stands for a byte string of `len` bytes whose place is not known yet. `payload_len` is what has been announced so
/// far.
#[inline]
fn some_bytes<'a>(input: &Cursor<'a>, len: usize, payload_len: usize) -> Result<&'a [u8], DecodeError> {
    input.rest().get(..len).ok_or(DecodeError::Payload {
        stated: payload_len,
        got: input.left(),
    })
}

/// Reads the header of a block reference; its byte strings have their lengths, but not their places.
#[inline]
fn read_block<'a>(
    id: u8,
    input: &mut Cursor<'a>,
    previous: Option<&BlockRef<'a>>,
) -> Result<BlockRef<'a>, DecodeError> {
    if previous.is_some_and(|previous| previous.id >= id) {
        return Err(DecodeError::BlockOrder(id));
    }
    let [flags, data_len @ ..] = input.array::<3>()?;
    let data_len = u16::from_le_bytes(data_len);
    if (flags & BKPBLOCK_HAS_DATA != 0) != (data_len != 0) {
        return Err(DecodeError::DataFlag { id, len: data_len });
    }
    let image = if flags & BKPBLOCK_HAS_IMAGE != 0 {
        Some(read_image(id, input)?)
    } else {
        None
    };
    let (spcnode, dbnode, relnode) = if flags & BKPBLOCK_SAME_REL != 0 {
        let previous = previous.ok_or(DecodeError::NoRelation(id))?;
        (previous.spcnode, previous.dbnode, previous.relnode)
    } else {
        (input.u32()?, input.u32()?, input.u32()?)
    };
    let blkno = input.u32()?;
    Ok(BlockRef {
        id,
        spcnode,
        dbnode,
        relnode,
        forknum: flags & BKPBLOCK_FORK_MASK,
        blkno,
        will_init: flags & BKPBLOCK_WILL_INIT != 0,
        image,
        data: some_bytes(input, data_len.into(), data_len.into())?,
    })
}

/// Reads the header of an image, whose bytes have their length, but not their place.
fn read_image<'a>(id: u8, input: &mut Cursor<'a>) -> Result<ImageRef<'a>, DecodeError> {
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
        Some(compression) if hole_agrees && in_page && len_agrees => Ok(ImageRef {
            data: some_bytes(input, len.into(), len.into())?,
            compression,
            hole_offset,
            hole_length,
            apply: flags & BKPIMAGE_APPLY != 0,
        }),
        _ => Err(DecodeError::Image {
            id,
            len,
            hole_offset,
            hole_length,
            flags,
        }),
    }
}

#[cfg(test)]
mod tests;
