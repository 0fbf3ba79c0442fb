//! Creation and truncation of relation files.

use pageserver_api::reltag::Fork;
use pageserver_api::value::WalRecord;
use postgres_ffi::cursor::{Cursor, Truncated};
use postgres_ffi::v15::rmgr;

use super::visibility::HEAP_BLOCKS_PER_PAGE;
use super::{Context, IngestFault};
use crate::pgdatadir::modification::{Modification, RelNode};
use crate::timeline::store::ReadStore;

/// `SMGR_TRUNCATE_HEAP`: the main fork is cut.
const TRUNCATE_HEAP: u32 = 1;
/// `SMGR_TRUNCATE_VM`.
const TRUNCATE_VM: u32 = 2;
/// `SMGR_TRUNCATE_FSM`.
const TRUNCATE_FSM: u32 = 4;

/// Heap blocks per leaf page of the free space map: a byte for each node of a binary tree, whose inner nodes are
/// one less than `BLCKSZ / 2`, behind the page header and a 4-byte slot number.
const SLOTS_PER_FSM_PAGE: u32 = 8192 - 24 - 4 - (8192 / 2 - 1);

/// A `RelFileNode` as it stands in WAL records.
pub(super) fn read_rel_node(body: &mut Cursor<'_>) -> Result<RelNode, Truncated> {
    Ok(RelNode {
        spcnode: body.u32()?,
        dbnode: body.u32()?,
        relnode: body.u32()?,
    })
}

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let mut body = Cursor::new(&cx.record.main_data);
    match cx.record.rmgr_info() {
        rmgr::XLOG_SMGR_CREATE => {
            let rel = read_rel_node(&mut body).map_err(IngestFault::malformed)?;
            let number = body.u32().map_err(IngestFault::malformed)?;
            let fork = u8::try_from(number).map(Fork::try_from);
            let fork = fork
                .map_err(IngestFault::malformed)?
                .map_err(IngestFault::malformed)?;
            m.create_rel(rel.fork(fork)).await?;
        }
        rmgr::XLOG_SMGR_TRUNCATE => {
            let blocks = body.u32().map_err(IngestFault::malformed)?;
            let rel = read_rel_node(&mut body).map_err(IngestFault::malformed)?;
            let flags = body.u32().map_err(IngestFault::malformed)?;
            truncate(m, cx, rel, blocks, flags).await?;
        }
        _ => {}
    }
    Ok(())
}

async fn truncate<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
    rel: RelNode,
    blocks: u32,
    flags: u32,
) -> Result<(), IngestFault> {
    m.create_rel(rel.fork(Fork::Main)).await?;
    if flags & TRUNCATE_HEAP != 0 {
        m.truncate_rel(rel.fork(Fork::Main), blocks).await?;
    }
    if flags & TRUNCATE_FSM != 0 {
        let (page, slot) = (blocks / SLOTS_PER_FSM_PAGE, blocks % SLOTS_PER_FSM_PAGE);
        truncate_map(
            m,
            cx,
            rel,
            Fork::Fsm,
            Cut {
                page: fsm_physical(page),
                within: slot != 0,
            },
        )
        .await?;
    }
    if flags & TRUNCATE_VM != 0 {
        let (page, rest) = (blocks / HEAP_BLOCKS_PER_PAGE, blocks % HEAP_BLOCKS_PER_PAGE);
        truncate_map(
            m,
            cx,
            rel,
            Fork::Vm,
            Cut {
                page,
                within: rest != 0,
            },
        )
        .await?;
    }
    Ok(())
}

/// Where a map ends after the truncation of its heap.
struct Cut {
    /// First page that holds an entry of a block that is gone.
    page: u32,
    /// Whether that page holds entries of remaining blocks too. Then it stays, and the others are cleared.
    within: bool,
}

async fn truncate_map<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
    rel: RelNode,
    fork: Fork,
    cut: Cut,
) -> Result<(), IngestFault> {
    let map = rel.fork(fork);
    let Some(size) = m.rel_size(map).await? else {
        return Ok(());
    };
    if cut.within && cut.page < size {
        // The record says which entries go; redo of the page works that out again.
        m.put_record(
            map,
            cut.page,
            WalRecord::Postgres {
                will_init: false,
                record: cx.raw.clone(),
            },
        );
    }
    m.truncate_rel(map, cut.page + u32::from(cut.within)).await?;
    Ok(())
}

/// Physical number of the free space map's leaf page `leaf`. The pages of its three levels stand in depth-first
/// order, each inner page before its up to [`SLOTS_PER_FSM_PAGE`] children.
fn fsm_physical(leaf: u32) -> u32 {
    let level1 = leaf / SLOTS_PER_FSM_PAGE + 1;
    let level2 = leaf / SLOTS_PER_FSM_PAGE / SLOTS_PER_FSM_PAGE + 1;
    leaf + level1 + level2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_map_pages_stand_in_depth_first_order() {
        assert_eq!(SLOTS_PER_FSM_PAGE, 4069);
        // Root 0, first inner page 1, its leaves 2..; the next inner page follows the last of them.
        for (leaf, physical) in [(0, 2), (1, 3), (4068, 4070), (4069, 4072)] {
            assert_eq!(fsm_physical(leaf), physical);
        }
        assert_eq!(fsm_physical(4069 * 4069 - 1) + 3, fsm_physical(4069 * 4069));
    }
}
