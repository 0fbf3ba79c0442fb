//! The header of a heap tuple (`access/htup_details.h`) on a page.

use std::ops::Range;

use crate::fault::Fault;
use crate::page::{Appender, ItemId, ItemState, Page};

/// Length of the fixed header in bytes (`SizeofHeapTupleHeader`); the null bitmap follows.
pub(crate) const HEADER_LEN: usize = 23;
/// Longest tuple there can be (`MaxHeapTupleSize`).
pub(crate) const LEN_MAX: usize = 8160;

/// Offsets of the header's fields in bytes.
mod at {
    pub const XMIN: usize = 0;
    pub const XMAX: usize = 4;
    /// Command id; of an old-style VACUUM FULL its transaction.
    pub const CID: usize = 8;
    pub const CTID: usize = 12;
    pub const INFOMASK2: usize = 18;
    pub const INFOMASK: usize = 20;
    pub const HOFF: usize = 22;
}

const XMAX_KEYSHR_LOCK: u16 = 0x0010;
const COMBOCID: u16 = 0x0020;
const XMAX_EXCL_LOCK: u16 = 0x0040;
const XMAX_LOCK_ONLY: u16 = 0x0080;
const XMAX_COMMITTED: u16 = 0x0400;
const XMAX_INVALID: u16 = 0x0800;
const XMAX_IS_MULTI: u16 = 0x1000;
const MOVED: u16 = 0xc000;
const LOCK_MASK: u16 = XMAX_KEYSHR_LOCK | XMAX_EXCL_LOCK;
const XMAX_BITS: u16 = XMAX_COMMITTED | XMAX_INVALID | XMAX_IS_MULTI | LOCK_MASK | XMAX_LOCK_ONLY;
/// Bits of the second mask.
const KEYS_UPDATED: u16 = 0x2000;
const HOT_UPDATED: u16 = 0x4000;

/// Bits of a record that stand for bits of the two masks (`XLHL_*`).
mod infobit {
    pub const XMAX_IS_MULTI: u8 = 0x01;
    pub const XMAX_LOCK_ONLY: u8 = 0x02;
    pub const XMAX_EXCL_LOCK: u8 = 0x04;
    pub const XMAX_KEYSHR_LOCK: u8 = 0x08;
    pub const KEYS_UPDATED: u8 = 0x10;
}

/// Place of a tuple (`ItemPointerData`), as its six bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Tid(pub [u8; 6]);

impl Tid {
    /// The row went to another partition.
    pub const MOVED_PARTITIONS: Tid = Tid([0xff, 0xff, 0xff, 0xff, 0xfd, 0xff]);

    /// The block number is stored as two halves, the high one first.
    pub fn new(block: u32, offset: u16) -> Self {
        let [b0, b1, b2, b3] = block.to_le_bytes();
        let [o0, o1] = offset.to_le_bytes();
        Tid([b2, b3, b0, b1, o0, o1])
    }
}

/// A tuple on a page.
pub(crate) struct HeapTuple<'a> {
    header: &'a mut [u8; HEADER_LEN],
    /// Null bitmap, padding, and column values.
    rest: &'a mut [u8],
}

impl<'a> HeapTuple<'a> {
    /// The tuple under a line pointer in normal use.
    pub fn of(page: &'a mut Page<'_>, offset: u16) -> Result<Self, Fault> {
        let id = page.item_id(offset)?;
        if id.state != ItemState::Normal {
            return Err(Fault::Item {
                offset,
                state: "is not in normal use",
            });
        }
        Self::under(page, offset, id)
    }

    /// The tuple under any line pointer that has one.
    pub fn with_storage(page: &'a mut Page<'_>, offset: u16) -> Result<Self, Fault> {
        let id = page.item_id(offset)?;
        Self::under(page, offset, id)
    }

    #[inline]
    fn under(page: &'a mut Page<'_>, offset: u16, id: ItemId) -> Result<Self, Fault> {
        let range = page.range_under(offset, id)?;
        let (header, rest) = page.bytes_mut()[range]
            .split_first_chunk_mut()
            .ok_or(Fault::Item {
                offset,
                state: "is too short for a tuple",
            })?;
        Ok(HeapTuple { header, rest })
    }

    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.header[at..at + N].copy_from_slice(&bytes);
    }

    fn mask(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.header[at], self.header[at + 1]])
    }

    fn change_mask(&mut self, at: usize, clear: u16, set: u16) {
        let mask = self.mask(at) & !clear | set;
        self.put(at, mask.to_le_bytes());
    }

    /// Replaces both masks.
    pub fn set_masks(&mut self, infomask: u16, infomask2: u16) {
        self.put(at::INFOMASK, infomask.to_le_bytes());
        self.put(at::INFOMASK2, infomask2.to_le_bytes());
    }

    /// Forgets what the masks say about the deleter or locker.
    pub fn clear_xmax_bits(&mut self) {
        self.change_mask(at::INFOMASK, XMAX_BITS | MOVED, 0);
        self.change_mask(at::INFOMASK2, KEYS_UPDATED, 0);
    }

    /// Sets what the record says about the deleter or locker.
    pub fn set_xmax_bits(&mut self, infobits: u8) {
        let bit = |of: u8, is: u16| if infobits & of != 0 { is } else { 0 };
        let set = bit(infobit::XMAX_IS_MULTI, XMAX_IS_MULTI)
            | bit(infobit::XMAX_LOCK_ONLY, XMAX_LOCK_ONLY)
            | bit(infobit::XMAX_EXCL_LOCK, XMAX_EXCL_LOCK)
            | bit(infobit::XMAX_KEYSHR_LOCK, XMAX_KEYSHR_LOCK);
        let clear = XMAX_IS_MULTI | XMAX_LOCK_ONLY | XMAX_EXCL_LOCK | XMAX_KEYSHR_LOCK;
        self.change_mask(at::INFOMASK, clear, set);
        self.change_mask(
            at::INFOMASK2,
            KEYS_UPDATED,
            bit(infobit::KEYS_UPDATED, KEYS_UPDATED),
        );
    }

    /// The xmax only locks; it neither deleted nor updated the row.
    pub fn xmax_is_locked_only(&self) -> bool {
        let infomask = self.mask(at::INFOMASK);
        infomask & XMAX_LOCK_ONLY != 0 || infomask & (XMAX_IS_MULTI | LOCK_MASK) == XMAX_EXCL_LOCK
    }

    pub fn set_hot_updated(&mut self) {
        self.change_mask(at::INFOMASK2, 0, HOT_UPDATED);
    }

    pub fn clear_hot_updated(&mut self) {
        self.change_mask(at::INFOMASK2, HOT_UPDATED, 0);
    }

    pub fn set_xmin(&mut self, xid: u32) {
        self.put(at::XMIN, xid.to_le_bytes());
    }

    pub fn set_xmax(&mut self, xid: u32) {
        self.put(at::XMAX, xid.to_le_bytes());
    }

    /// Transaction of an old-style VACUUM FULL that moved the row.
    pub fn set_xvac(&mut self, xid: u32) {
        self.put(at::CID, xid.to_le_bytes());
    }

    /// Replay does not know command ids: the first one it is.
    pub fn set_first_cmax(&mut self) {
        self.put(at::CID, [0; 4]);
        self.change_mask(at::INFOMASK, COMBOCID, 0);
    }

    pub fn set_ctid(&mut self, tid: Tid) {
        self.put(at::CTID, tid.0);
    }

    /// Where the column values start, from the tuple's start.
    pub fn hoff(&self) -> usize {
        usize::from(self.header[at::HOFF])
    }

    /// The column values.
    pub fn into_body(self) -> Result<&'a mut [u8], Fault> {
        let start = self.hoff().checked_sub(HEADER_LEN);
        start
            .and_then(|start| self.rest.get_mut(start..))
            .ok_or(Fault::Page("a tuple's header has an impossible length"))
    }
}

/// Header fields of a tuple to be added; the command id is always the first one.
#[derive(Clone, Copy)]
pub(crate) struct NewTuple {
    pub infomask2: u16,
    pub infomask: u16,
    pub hoff: u8,
    pub xmin: u32,
    pub xmax: u32,
    pub ctid: Tid,
}

/// There is at least a byte behind the fixed header.
fn check_len(rest_len: usize) -> Result<(), Fault> {
    if rest_len == 0 || HEADER_LEN + rest_len > LEN_MAX {
        return Err(Fault::Record("impossible length of a tuple"));
    }
    Ok(())
}

impl NewTuple {
    /// Adds the tuple under a free line pointer; `rest` is what follows the fixed header.
    pub fn add(&self, page: &mut Page<'_>, offset: u16, rest: &[u8]) -> Result<(), Fault> {
        let range = self.reserve(page, offset, rest.len())?;
        page.bytes_mut()[range].copy_from_slice(rest);
        Ok(())
    }

    /// Adds the tuple behind all others; `rest` is what follows the fixed header.
    #[inline]
    pub fn append(&self, items: &mut Appender<'_>, rest: &[u8]) -> Result<(), Fault> {
        check_len(rest.len())?;
        let raw = items.append(HEADER_LEN + rest.len())?;
        let header = self.header();
        raw[..header.len()].copy_from_slice(&header);
        raw[HEADER_LEN..].copy_from_slice(rest);
        Ok(())
    }

    /// Adds the fixed header and room for `rest_len` bytes behind it, whose place is returned.
    pub fn reserve(&self, page: &mut Page<'_>, offset: u16, rest_len: usize) -> Result<Range<usize>, Fault> {
        check_len(rest_len)?;
        let range = page.place_heap_item(offset, HEADER_LEN + rest_len)?;
        let header = self.header();
        page.bytes_mut()[range.start..range.start + header.len()].copy_from_slice(&header);
        Ok(range.start + HEADER_LEN..range.end)
    }

    /// The fixed header, and a byte of zeros: three words are quicker to make and to write than 23 bytes.
    fn header(&self) -> [u8; HEADER_LEN + 1] {
        let half = |bytes: [u8; 2]| u64::from(u16::from_le_bytes(bytes));
        let [b2, b3, b0, b1, o0, o1] = self.ctid.0;
        // The setter of the command id clears the combination bit.
        let infomask = u64::from(self.infomask & !COMBOCID);
        let words = [
            u64::from(self.xmin) | u64::from(self.xmax) << 32,
            half([b2, b3]) << 32 | half([b0, b1]) << 48,
            half([o0, o1]) | u64::from(self.infomask2) << 16 | infomask << 32 | u64::from(self.hoff) << 48,
        ];
        let mut raw = [0; HEADER_LEN + 1];
        for (bytes, word) in raw.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        raw
    }
}
