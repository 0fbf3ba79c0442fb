//! Truncation of a relation, in the last page that remains of its visibility map or free space map: entries of the
//! blocks that are gone are cleared. The record names no block of the maps; which page it is follows from the relation's
//! new size. As in PostgreSQL, the page's LSN stays as it is.

use postgres_ffi::c_struct::CStruct;
use postgres_ffi::v15::bodies::SmgrTruncate;
use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::relfile::{FSM_FORKNUM, VISIBILITYMAP_FORKNUM};
use postgres_ffi::v15::rmgr::{RM_SMGR_ID, XLOG_SMGR_TRUNCATE};

use crate::PageTag;
use crate::fault::Fault;
use crate::page::{HEADER_LEN, PAGE_SIZE, Page, PageBuf};
use crate::visibility;

/// Start of the tree of a free space map page: behind the page header and the slot to search next.
const NODES: usize = HEADER_LEN + 4;
/// Inner nodes of that tree (`NonLeafNodesPerPage`).
const INNER_NODES: usize = PAGE_SIZE / 2 - 1;
/// All nodes (`NodesPerPage`).
const ALL_NODES: usize = PAGE_SIZE - NODES;
/// Blocks that one leaf page of the free space map covers (`SlotsPerFSMPage`).
pub const SLOTS_PER_FSM_PAGE: u32 = (ALL_NODES - INNER_NODES) as u32;

/// Page of the free space map that holds the entry of a heap block (`fsm_logical_to_physical`). Pages of its three
/// levels stand in depth-first order, each inner page before its children.
pub fn fsm_block(heap_block: u32) -> u32 {
    let leaf = heap_block / SLOTS_PER_FSM_PAGE;
    leaf + leaf / SLOTS_PER_FSM_PAGE + leaf / SLOTS_PER_FSM_PAGE / SLOTS_PER_FSM_PAGE + 2
}

/// Whether the record is one that [`redo`] applies to this page.
pub(crate) fn concerns(record: &RecordRef<'_>, tag: &PageTag) -> bool {
    (record.header.rmid, record.rmgr_info()) == (RM_SMGR_ID, XLOG_SMGR_TRUNCATE)
        && matches!(tag.forknum, FSM_FORKNUM | VISIBILITYMAP_FORKNUM)
}

pub(crate) fn redo(raw: &mut PageBuf, record: &RecordRef<'_>, tag: &PageTag) -> Result<(), Fault> {
    let cut = SmgrTruncate::decode(record.main_data)?;
    let is_vm = tag.forknum == VISIBILITYMAP_FORKNUM;
    let page = if is_vm {
        visibility::map_block(cut.blocks)
    } else {
        fsm_block(cut.blocks)
    };
    let relation = (cut.relation.spcnode, cut.relation.dbnode, cut.relation.relnode);
    if relation != (tag.spcnode, tag.dbnode, tag.relnode) || page != tag.blkno {
        return Err(Fault::NotReferenced);
    }
    if is_vm {
        visibility::truncate(&mut Page::new(raw), cut.blocks);
    } else {
        truncate_fsm(raw, (cut.blocks % SLOTS_PER_FSM_PAGE) as usize);
    }
    Ok(())
}

/// Clears the leaves from `slot` on (`fsm_truncate_avail`): every inner node is the greater of its children.
fn truncate_fsm(raw: &mut PageBuf, slot: usize) {
    let nodes = &mut raw[NODES..];
    nodes[INNER_NODES + slot..].fill(0);
    for node in (0..INNER_NODES).rev() {
        let child = |index: usize| nodes.get(index).copied().unwrap_or(0);
        nodes[node] = child(2 * node + 1).max(child(2 * node + 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_map_pages_stand_in_depth_first_order() {
        assert_eq!(SLOTS_PER_FSM_PAGE, 4069);
        // Root 0, first inner page 1, its leaves 2…; the next inner page follows the last of them.
        for (leaf, block) in [(0, 2), (1, 3), (4068, 4070), (4069, 4072)] {
            assert_eq!(fsm_block(leaf * SLOTS_PER_FSM_PAGE), block);
        }
    }

    #[test]
    fn the_root_is_the_greatest_remaining_leaf() {
        let mut page = [0; PAGE_SIZE];
        page[NODES + INNER_NODES + 3] = 5;
        page[NODES + INNER_NODES + 100] = 9;
        page[NODES] = 9;
        truncate_fsm(&mut page, 100);
        assert_eq!(
            (
                page[NODES],
                page[NODES + INNER_NODES + 3],
                page[NODES + INNER_NODES + 100]
            ),
            (5, 5, 0)
        );
        truncate_fsm(&mut page, 3);
        assert_eq!(page, [0; PAGE_SIZE]);
    }
}
