//! The visibility map: two bits for each heap page, behind the header of the map's pages.
//!
//! Setting bits is a WAL record of its own. Clearing them is a side effect of heap records that do not
//! mention the map's page: [`cleared_by`] tells which bits those are, and [`clear`] does it.

use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::rmgr::{
    RM_HEAP_ID, RM_HEAP2_ID, XLOG_HEAP_DELETE, XLOG_HEAP_HOT_UPDATE, XLOG_HEAP_INSERT, XLOG_HEAP_LOCK,
    XLOG_HEAP_OPMASK, XLOG_HEAP_UPDATE, XLOG_HEAP2_LOCK_UPDATED, XLOG_HEAP2_MULTI_INSERT,
};

use crate::change::Effect;
use crate::fault::Fault;
use crate::heap::flag;
use crate::page::{HEADER_LEN, PAGE_SIZE, Page};

/// The heap page's rows are visible to everybody.
pub const ALL_VISIBLE: u8 = 1;
/// They are frozen, too.
pub const ALL_FROZEN: u8 = 2;
/// Both bits.
pub const VALID_BITS: u8 = ALL_VISIBLE | ALL_FROZEN;

const HEAP_PAGES_PER_BYTE: u32 = 4;
/// Number of heap pages that one page of the map covers.
pub const HEAP_PAGES_PER_PAGE: u32 = (PAGE_SIZE - HEADER_LEN) as u32 * HEAP_PAGES_PER_BYTE;
/// Fork number of the visibility map.
pub const FORKNUM: u8 = 2;

/// Page of the map that holds the bits of a heap page.
pub fn map_block(heap_block: u32) -> u32 {
    heap_block / HEAP_PAGES_PER_PAGE
}

/// Place of a heap page's bits: byte of the page and shift within it.
fn place(heap_block: u32) -> (usize, u32) {
    let index = heap_block % HEAP_PAGES_PER_PAGE;
    let byte = HEADER_LEN + (index / HEAP_PAGES_PER_BYTE) as usize;
    (byte, index % HEAP_PAGES_PER_BYTE * 2)
}

/// Sets bits as `visibilitymap_set` does: the LSN moves only if something changed.
pub(crate) fn set(page: &mut Page<'_>, heap_block: u32, map_page: u32, flags: u8) -> Result<Effect, Fault> {
    if map_block(heap_block) != map_page {
        return Err(Fault::Record("bits of another page of the visibility map"));
    }
    let (byte, shift) = place(heap_block);
    let old = page.bytes()[byte];
    if (old >> shift) & VALID_BITS == flags {
        return Ok(Effect::LsnKept);
    }
    page.bytes_mut()[byte] = old | (flags & VALID_BITS) << shift;
    Ok(Effect::Changed)
}

/// Clears bits of a heap page in the map page that covers it. The map page's LSN stays as it is.
pub fn clear(page: &mut Page<'_>, heap_block: u32, flags: u8) {
    let (byte, shift) = place(heap_block);
    page.bytes_mut()[byte] &= !((flags & VALID_BITS) << shift);
}

/// Clears all bits of heap pages from `heap_blocks` on, in the map page that covers that block
/// (`visibilitymap_prepare_truncate`).
pub fn truncate(page: &mut Page<'_>, heap_blocks: u32) {
    let (byte, shift) = place(heap_blocks);
    page.bytes_mut()[byte] &= ((1u16 << shift) - 1) as u8;
    page.bytes_mut()[byte + 1..].fill(0);
}

/// Bits that a heap record clears, all of the relation of its block 0.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Cleared {
    /// Heap page of the new row, or of the only one.
    pub new_heap_block: Option<u32>,
    /// Heap page of the old row of an update, or of a deleted or locked row.
    pub old_heap_block: Option<u32>,
    /// Which bits.
    pub flags: u8,
}

/// The bits that this record clears; `None` if it clears none. A record whose main data is too short
/// clears none either: redo will complain about it.
#[inline]
pub fn cleared_by(record: &RecordRef<'_>) -> Option<Cleared> {
    let info = record.rmgr_info() & XLOG_HEAP_OPMASK;
    let block = |id| record.block(id).map(|block| block.blkno);
    let flags_at = |at: usize| record.main_data.get(at).copied().unwrap_or(0);
    let (new, old, flags) = match (record.header.rmid, info) {
        (RM_HEAP_ID, XLOG_HEAP_INSERT) => {
            let is = flags_at(2) & flag::INSERT_ALL_VISIBLE_CLEARED != 0;
            (block(0).filter(|_| is), None, VALID_BITS)
        }
        (RM_HEAP2_ID, XLOG_HEAP2_MULTI_INSERT) => {
            let is = flags_at(0) & flag::INSERT_ALL_VISIBLE_CLEARED != 0;
            (block(0).filter(|_| is), None, VALID_BITS)
        }
        (RM_HEAP_ID, XLOG_HEAP_DELETE) => {
            let is = flags_at(7) & flag::DELETE_ALL_VISIBLE_CLEARED != 0;
            (None, block(0).filter(|_| is), VALID_BITS)
        }
        (RM_HEAP_ID, XLOG_HEAP_UPDATE | XLOG_HEAP_HOT_UPDATE) => {
            let flags = flags_at(7);
            let new = flags & flag::UPDATE_NEW_ALL_VISIBLE_CLEARED != 0;
            let old = flags & flag::UPDATE_OLD_ALL_VISIBLE_CLEARED != 0;
            let old_block = block(1).or(block(0));
            (block(0).filter(|_| new), old_block.filter(|_| old), VALID_BITS)
        }
        (RM_HEAP_ID, XLOG_HEAP_LOCK) | (RM_HEAP2_ID, XLOG_HEAP2_LOCK_UPDATED) => {
            let is = flags_at(7) & flag::LOCK_ALL_FROZEN_CLEARED != 0;
            (None, block(0).filter(|_| is), ALL_FROZEN)
        }
        _ => (None, None, 0),
    };
    (new.is_some() || old.is_some()).then_some(Cleared {
        new_heap_block: new,
        old_heap_block: old,
        flags,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconstruct::tests::REL;

    /// A record with these block references and no data.
    fn record(rmid: u8, info: u8, main: &[u8], blocks: &[u32]) -> Vec<u8> {
        let mut raw = vec![0; 24];
        for (id, blkno) in blocks.iter().enumerate() {
            raw.extend_from_slice(&[id as u8, 0, 0, 0]);
            for word in [REL.spcnode, REL.dbnode, REL.relnode, *blkno] {
                raw.extend_from_slice(&word.to_le_bytes());
            }
        }
        raw.extend_from_slice(&[255, main.len() as u8]);
        raw.extend_from_slice(main);
        let len = raw.len() as u32;
        raw[..4].copy_from_slice(&len.to_le_bytes());
        (raw[16], raw[17]) = (info, rmid);
        raw
    }

    #[test]
    fn who_clears_what() {
        let check = |raw: Vec<u8>, want: Option<(Option<u32>, Option<u32>, u8)>| {
            let cleared = cleared_by(&RecordRef::parse(&raw).unwrap());
            assert_eq!(
                cleared.map(|cleared| (cleared.new_heap_block, cleared.old_heap_block, cleared.flags)),
                want
            );
        };
        let update = |flags| [0, 0, 0, 0, 1, 0, 0, flags, 0, 0, 0, 0, 2, 0];
        let last_of_eight = [0, 0, 0, 0, 1, 0, 0, 1];
        check(record(10, 0x80, &[1, 0, 1], &[7]), Some((Some(7), None, 3)));
        check(record(10, 0x00, &[1, 0, 8], &[7]), None);
        check(record(9, 0x50, &[1, 0, 1, 0], &[7]), Some((Some(7), None, 3)));
        check(record(10, 0x10, &last_of_eight, &[7]), Some((None, Some(7), 3)));
        check(record(10, 0x20, &update(3), &[8, 7]), Some((Some(8), Some(7), 3)));
        check(record(10, 0x20, &update(1), &[8, 7]), Some((None, Some(7), 3)));
        check(record(10, 0x40, &update(1), &[8]), Some((None, Some(8), 3)));
        check(record(10, 0x60, &last_of_eight, &[7]), Some((None, Some(7), 2)));
        check(record(9, 0x60, &last_of_eight, &[7]), Some((None, Some(7), 2)));
        check(record(9, 0x10, &[1; 8], &[7]), None);
        check(record(11, 0, &[1; 8], &[7]), None);
        // Redo is to complain about these.
        check(record(10, 0, &[1, 0], &[7]), None);
        check(record(10, 0, &[1, 0, 1], &[]), None);
    }

    #[test]
    fn places() {
        assert_eq!((map_block(32671), place(32671)), (0, (8191, 6)));
        assert_eq!((map_block(32672), place(32673)), (1, (24, 2)));
    }
}
