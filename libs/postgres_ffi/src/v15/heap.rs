//! What heap records do besides changing the pages they refer to: they clear bits of the visibility map, which has
//! no block reference in them.

use super::decode::DecodeError;
use super::record::{Block, DecodedRecord};
use super::rmgr::{
    RM_HEAP_ID, RM_HEAP2_ID, XLOG_HEAP_DELETE, XLOG_HEAP_HOT_UPDATE, XLOG_HEAP_INSERT, XLOG_HEAP_LOCK,
    XLOG_HEAP_OPMASK, XLOG_HEAP_UPDATE, XLOG_HEAP2_LOCK_UPDATED, XLOG_HEAP2_MULTI_INSERT,
};
use super::{BLCKSZ, page};
use crate::c_struct;
use crate::c_struct::CStruct;

/// All tuples on the heap page are visible to everyone.
pub const VISIBILITYMAP_ALL_VISIBLE: u8 = 0x01;
/// All tuples on the heap page are frozen.
pub const VISIBILITYMAP_ALL_FROZEN: u8 = 0x02;
/// Both bits.
pub const VISIBILITYMAP_VALID_BITS: u8 = 0x03;

/// Heap pages described by one page of the visibility map: two bits each, behind the page header.
pub const HEAPBLOCKS_PER_PAGE: u32 = ((BLCKSZ - page::HEADER_LEN) * 4) as u32;

/// Insert, multi-insert, delete: the heap page lost its all-visible flag.
const XLH_ALL_VISIBLE_CLEARED: u8 = 1 << 0;
/// Update: the old tuple's page lost its all-visible flag.
const XLH_UPDATE_OLD_ALL_VISIBLE_CLEARED: u8 = 1 << 0;
/// Update: the new tuple's page lost its all-visible flag.
const XLH_UPDATE_NEW_ALL_VISIBLE_CLEARED: u8 = 1 << 1;
/// Lock: the page is no longer all-frozen.
const XLH_LOCK_ALL_FROZEN_CLEARED: u8 = 1 << 0;

/// Page of the visibility map that describes a heap page.
pub fn visibility_map_page(heap_block: u32) -> u32 {
    heap_block / HEAPBLOCKS_PER_PAGE
}

/// Byte on that page (header included), and shift of the two bits in it.
pub fn visibility_map_position(heap_block: u32) -> (usize, u32) {
    let byte = page::HEADER_LEN + (heap_block % HEAPBLOCKS_PER_PAGE / 4) as usize;
    (byte, heap_block % 4 * 2)
}

c_struct! {
    /// `xl_heap_insert`.
    #[derive(Copy, Eq)]
    pub struct HeapInsert("xl_heap_insert", "SizeOfHeapInsert" = 3) {
        /// Offset number of the tuple.
        offset_number: u16 = 0 "offnum",
        /// `XLH_INSERT_` flags.
        flags: u8 = 2 "flags",
    }
}

c_struct! {
    /// Fixed part of `xl_heap_multi_insert`.
    #[derive(Copy, Eq)]
    pub struct HeapMultiInsert("xl_heap_multi_insert", "SizeOfHeapMultiInsert" = 4) {
        /// `XLH_INSERT_` flags.
        flags: u8 = 0 "flags",
        /// Number of tuples.
        tuples: u16 = 2 "ntuples",
    }
}

c_struct! {
    /// `xl_heap_delete`.
    #[derive(Copy, Eq)]
    pub struct HeapDelete("xl_heap_delete", "SizeOfHeapDelete" = 8) {
        /// Deleting transaction.
        xmax: u32 = 0 "xmax",
        /// Offset number of the tuple.
        offset_number: u16 = 4 "offnum",
        /// Infomask bits, packed.
        infobits_set: u8 = 6 "infobits_set",
        /// `XLH_DELETE_` flags.
        flags: u8 = 7 "flags",
    }
}

c_struct! {
    /// `xl_heap_update`.
    #[derive(Copy, Eq)]
    pub struct HeapUpdate("xl_heap_update", "SizeOfHeapUpdate" = 14) {
        /// Transaction that ended the old tuple.
        old_xmax: u32 = 0 "old_xmax",
        /// Offset number of the old tuple.
        old_offset_number: u16 = 4 "old_offnum",
        /// Infomask bits of the old tuple, packed.
        old_infobits_set: u8 = 6 "old_infobits_set",
        /// `XLH_UPDATE_` flags.
        flags: u8 = 7 "flags",
        /// `xmax` of the new tuple.
        new_xmax: u32 = 8 "new_xmax",
        /// Offset number of the new tuple.
        new_offset_number: u16 = 12 "new_offnum",
    }
}

c_struct! {
    /// `xl_heap_lock`; `xl_heap_lock_updated` looks the same.
    #[derive(Copy, Eq)]
    pub struct HeapLock("xl_heap_lock", "SizeOfHeapLock" = 8) {
        /// Transaction or multixact that locks.
        xmax: u32 = 0 "locking_xid",
        /// Offset number of the tuple.
        offset_number: u16 = 4 "offnum",
        /// Infomask bits, packed.
        infobits_set: u8 = 6 "infobits_set",
        /// `XLH_LOCK_` flags.
        flags: u8 = 7 "flags",
    }
}

/// Bits of the visibility map that a record clears.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VisibilityMapClear<'a> {
    /// Block reference that names the relation.
    pub relation: &'a Block,
    /// Heap page the new tuple went to, if its bits are cleared.
    pub new_heap_block: Option<u32>,
    /// Heap page the old tuple was on, if its bits are cleared.
    pub old_heap_block: Option<u32>,
    /// Which bits.
    pub flags: u8,
}

/// The record refers to no heap page, or ends too early.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
pub enum HeapRecordError {
    /// The main data is too short.
    #[error(transparent)]
    Record(#[from] DecodeError),
    /// Block reference 0 is missing.
    #[error("heap record without a block reference")]
    NoBlock,
}

/// Which bits of the visibility map redo of this record clears; `None` for records of other resource managers too.
pub fn visibility_map_clear(
    record: &DecodedRecord,
) -> Result<Option<VisibilityMapClear<'_>>, HeapRecordError> {
    let clear = match (record.header.rmid, record.header.info & XLOG_HEAP_OPMASK) {
        (RM_HEAP_ID, XLOG_HEAP_INSERT) => clear_of_new(body::<HeapInsert>(record)?.flags),
        (RM_HEAP2_ID, XLOG_HEAP2_MULTI_INSERT) => clear_of_new(body::<HeapMultiInsert>(record)?.flags),
        (RM_HEAP_ID, XLOG_HEAP_DELETE) => Clear {
            old: body::<HeapDelete>(record)?.flags & XLH_ALL_VISIBLE_CLEARED != 0,
            ..Clear::NOTHING
        },
        (RM_HEAP_ID, XLOG_HEAP_UPDATE | XLOG_HEAP_HOT_UPDATE) => {
            let flags = body::<HeapUpdate>(record)?.flags;
            Clear {
                new: flags & XLH_UPDATE_NEW_ALL_VISIBLE_CLEARED != 0,
                old: flags & XLH_UPDATE_OLD_ALL_VISIBLE_CLEARED != 0,
                ..Clear::NOTHING
            }
        }
        (RM_HEAP_ID, XLOG_HEAP_LOCK) | (RM_HEAP2_ID, XLOG_HEAP2_LOCK_UPDATED) => Clear {
            old: body::<HeapLock>(record)?.flags & XLH_LOCK_ALL_FROZEN_CLEARED != 0,
            flags: VISIBILITYMAP_ALL_FROZEN,
            ..Clear::NOTHING
        },
        _ => return Ok(None),
    };
    if !clear.new && !clear.old {
        return Ok(None);
    }
    let relation = record.block(0).ok_or(HeapRecordError::NoBlock)?;
    // An update within one page has one reference only.
    let old_block = record.block(1).unwrap_or(relation).blkno;
    Ok(Some(VisibilityMapClear {
        relation,
        new_heap_block: clear.new.then_some(relation.blkno),
        old_heap_block: clear.old.then_some(old_block),
        flags: clear.flags,
    }))
}

/// What to clear, before it is known where.
struct Clear {
    new: bool,
    old: bool,
    flags: u8,
}

impl Clear {
    const NOTHING: Self = Self {
        new: false,
        old: false,
        flags: VISIBILITYMAP_VALID_BITS,
    };
}

fn clear_of_new(flags: u8) -> Clear {
    Clear {
        new: flags & XLH_ALL_VISIBLE_CLEARED != 0,
        ..Clear::NOTHING
    }
}

fn body<T: CStruct>(record: &DecodedRecord) -> Result<T, DecodeError> {
    Ok(T::decode(&record.main_data)?)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::v15::record::RecordHeader;

    fn record(rmid: u8, info: u8, main_data: &[u8], blocks: &[u32]) -> DecodedRecord {
        let block = |(id, blkno): (usize, &u32)| Block {
            id: id as u8,
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
            forknum: 0,
            blkno: *blkno,
            will_init: false,
            image: None,
            data: Bytes::new(),
        };
        DecodedRecord {
            header: RecordHeader {
                rmid,
                info,
                ..RecordHeader::default()
            },
            blocks: blocks.iter().enumerate().map(block).collect(),
            main_data: Bytes::copy_from_slice(main_data),
            origin_id: 0,
            toplevel_xid: None,
        }
    }

    #[test]
    fn who_clears_what() {
        let check = |record: DecodedRecord, want: Option<(Option<u32>, Option<u32>, u8)>| {
            let clear = visibility_map_clear(&record).unwrap();
            assert_eq!(
                clear.map(|clear| (clear.new_heap_block, clear.old_heap_block, clear.flags)),
                want
            );
        };
        let update = |flags| [0, 0, 0, 0, 1, 0, 0, flags, 0, 0, 0, 0, 2, 0];
        check(record(10, 0x80, &[1, 0, 1], &[7]), Some((Some(7), None, 3)));
        check(record(10, 0x00, &[1, 0, 8], &[7]), None);
        check(record(9, 0x50, &[1, 0, 1, 0], &[7]), Some((Some(7), None, 3)));
        check(
            record(10, 0x10, &[0, 0, 0, 0, 1, 0, 0, 1], &[7]),
            Some((None, Some(7), 3)),
        );
        check(record(10, 0x20, &update(3), &[8, 7]), Some((Some(8), Some(7), 3)));
        check(record(10, 0x20, &update(1), &[8, 7]), Some((None, Some(7), 3)));
        check(record(10, 0x40, &update(1), &[8]), Some((None, Some(8), 3)));
        check(
            record(10, 0x60, &[0, 0, 0, 0, 1, 0, 0, 1], &[7]),
            Some((None, Some(7), 2)),
        );
        check(
            record(9, 0x60, &[0, 0, 0, 0, 1, 0, 0, 1], &[7]),
            Some((None, Some(7), 2)),
        );
        check(record(9, 0x10, &[1; 8], &[7]), None);
        check(record(11, 0, &[1; 8], &[7]), None);
        assert!(visibility_map_clear(&record(10, 0, &[1, 0], &[7])).is_err());
        assert_eq!(
            visibility_map_clear(&record(10, 0, &[1, 0, 1], &[])),
            Err(HeapRecordError::NoBlock)
        );
    }

    #[test]
    fn map_positions() {
        assert_eq!(HEAPBLOCKS_PER_PAGE, 32672);
        assert_eq!(
            (visibility_map_page(32671), visibility_map_position(32671)),
            (0, (8191, 6))
        );
        assert_eq!(
            (visibility_map_page(32672), visibility_map_position(32673)),
            (1, (24, 2))
        );
    }
}
