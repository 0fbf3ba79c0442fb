//! Heap records that clear bits of the visibility map. The map's page is not a block reference of theirs.

use pageserver_api::reltag::{Fork, RelTag};
use pageserver_api::value::WalRecord;
use postgres_ffi::v15::rmgr;

use super::blocks::block_rel;
use super::{Context, IngestFault};
use crate::pgdatadir::modification::Modification;
use crate::timeline::store::ReadStore;

/// Both bits of a heap block (`VISIBILITYMAP_VALID_BITS`).
const VISIBLE_AND_FROZEN: u8 = 0x03;
/// `VISIBILITYMAP_ALL_FROZEN`.
const FROZEN: u8 = 0x02;
/// Heap blocks per page of the map: two bits each, behind the page header.
pub(super) const HEAP_BLOCKS_PER_PAGE: u32 = (8192 - 24) * 4;

/// Which block references lose bits.
struct Cleared {
    /// Block 0, where a new tuple goes or the only tuple is.
    new: bool,
    /// The block of the old tuple: reference 1 if there is one, else 0.
    old: bool,
    flags: u8,
}

/// Flags byte in the main data of each record kind that has one, and what its bits mean.
fn cleared(rmid: u8, op: u8, main_data: &[u8]) -> Result<Option<Cleared>, IngestFault> {
    let flags_at = |at: usize| {
        main_data
            .get(at)
            .copied()
            .ok_or_else(|| IngestFault::malformed("main data ends before its flags"))
    };
    // Bit 0 of the flags is "all-visible cleared" (of the old page for an update) or "all-frozen cleared".
    let new_page = |flags: u8| Cleared {
        new: flags & 1 != 0,
        old: false,
        flags: VISIBLE_AND_FROZEN,
    };
    let locked = |flags: u8| Cleared {
        flags: FROZEN,
        ..new_page(flags)
    };
    Ok(Some(match (rmid, op) {
        (rmgr::RM_HEAP_ID, rmgr::XLOG_HEAP_INSERT) => new_page(flags_at(2)?),
        (rmgr::RM_HEAP_ID, rmgr::XLOG_HEAP_DELETE) => new_page(flags_at(7)?),
        (rmgr::RM_HEAP_ID, rmgr::XLOG_HEAP_UPDATE | rmgr::XLOG_HEAP_HOT_UPDATE) => {
            let flags = flags_at(7)?;
            Cleared {
                new: flags & 2 != 0,
                old: flags & 1 != 0,
                flags: VISIBLE_AND_FROZEN,
            }
        }
        (rmgr::RM_HEAP_ID, rmgr::XLOG_HEAP_LOCK) => locked(flags_at(7)?),
        (rmgr::RM_HEAP2_ID, rmgr::XLOG_HEAP2_MULTI_INSERT) => new_page(flags_at(0)?),
        (rmgr::RM_HEAP2_ID, rmgr::XLOG_HEAP2_LOCK_UPDATED) => locked(flags_at(7)?),
        _ => return Ok(None),
    }))
}

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let record = cx.record;
    let op = record.rmgr_info() & rmgr::XLOG_HEAP_OPMASK;
    let Some(cleared) = cleared(record.header.rmid, op, &record.main_data)? else {
        return Ok(());
    };
    if !cleared.new && !cleared.old {
        return Ok(());
    }
    let new = record
        .block(0)
        .ok_or_else(|| IngestFault::malformed("heap record without block 0"))?;
    let old = record.block(1).unwrap_or(new);
    let map = RelTag {
        fork: Fork::Vm,
        ..block_rel(new)?
    };
    let new_heap_block = cleared.new.then_some(new.blkno);
    let old_heap_block = cleared.old.then_some(old.blkno);
    let page_of = |heap_block: u32| heap_block / HEAP_BLOCKS_PER_PAGE;
    match (new_heap_block, old_heap_block) {
        (Some(new), Some(old)) if page_of(new) != page_of(old) => {
            clear(m, map, page_of(new), Some(new), None, cleared.flags).await?;
            clear(m, map, page_of(old), None, Some(old), cleared.flags).await
        }
        (new, old) => {
            let either = new.or(old).expect("one of the two is cleared");
            clear(m, map, page_of(either), new, old, cleared.flags).await
        }
    }
}

/// Clears the bits, unless the map has no such page and so no bits.
async fn clear<S: ReadStore>(
    m: &mut Modification<'_, S>,
    map: RelTag,
    page: u32,
    new_heap_block: Option<u32>,
    old_heap_block: Option<u32>,
    flags: u8,
) -> Result<(), IngestFault> {
    if m.rel_size(map).await?.is_some_and(|size| page < size) {
        m.put_record(
            map,
            page,
            WalRecord::ClearVisibilityMapFlags {
                new_heap_block,
                old_heap_block,
                flags,
            },
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_each_record_kind() {
        let check = |rmid, op, at: usize, flags: u8| {
            let mut main_data = vec![0; at + 1];
            main_data[at] = flags;
            let short = cleared(rmid, op, &main_data[..at]);
            assert!(matches!(short, Err(IngestFault::Malformed(_))));
            let cleared = cleared(rmid, op, &main_data).unwrap().unwrap();
            (cleared.new, cleared.old, cleared.flags)
        };
        let (heap, heap2) = (rmgr::RM_HEAP_ID, rmgr::RM_HEAP2_ID);
        assert_eq!(check(heap, rmgr::XLOG_HEAP_INSERT, 2, 1), (true, false, 3));
        assert_eq!(check(heap, rmgr::XLOG_HEAP_INSERT, 2, 0xfe), (false, false, 3));
        assert_eq!(check(heap, rmgr::XLOG_HEAP_DELETE, 7, 1), (true, false, 3));
        assert_eq!(check(heap, rmgr::XLOG_HEAP_UPDATE, 7, 1), (false, true, 3));
        assert_eq!(check(heap, rmgr::XLOG_HEAP_HOT_UPDATE, 7, 3), (true, true, 3));
        assert_eq!(check(heap, rmgr::XLOG_HEAP_LOCK, 7, 1), (true, false, 2));
        assert_eq!(
            check(heap2, rmgr::XLOG_HEAP2_MULTI_INSERT, 0, 1),
            (true, false, 3)
        );
        assert_eq!(
            check(heap2, rmgr::XLOG_HEAP2_LOCK_UPDATED, 7, 1),
            (true, false, 2)
        );
        assert!(cleared(heap, rmgr::XLOG_HEAP_INPLACE, &[]).unwrap().is_none());
    }
}
