//! Creation and truncation of relation files.

use pageserver_api::reltag::Fork;
use pageserver_api::value::WalRecord;
use postgres_ffi::c_struct::CStruct;
use postgres_ffi::v15::bodies::{
    SMGR_TRUNCATE_FSM, SMGR_TRUNCATE_HEAP, SMGR_TRUNCATE_VM, SmgrCreate, SmgrTruncate,
};
use postgres_ffi::v15::relfile::RelFileNode;
use postgres_ffi::v15::rmgr;
use wal_redo::truncate::{SLOTS_PER_FSM_PAGE, fsm_block};
use wal_redo::visibility::{HEAP_PAGES_PER_PAGE, map_block};

use super::{Context, IngestFault};
use crate::pgdatadir::modification::{Modification, RelNode};
use crate::timeline::store::ReadStore;

/// A relation as WAL names it.
pub(super) fn rel_node(rel: RelFileNode) -> RelNode {
    RelNode {
        spcnode: rel.spcnode,
        dbnode: rel.dbnode,
        relnode: rel.relnode,
    }
}

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    match cx.record.rmgr_info() {
        rmgr::XLOG_SMGR_CREATE => {
            let created = SmgrCreate::decode(cx.record.main_data)?;
            let fork = u8::try_from(created.forknum).map_err(IngestFault::malformed)?;
            let fork = Fork::try_from(fork).map_err(IngestFault::malformed)?;
            m.create_rel(rel_node(created.relation).fork(fork)).await?;
        }
        rmgr::XLOG_SMGR_TRUNCATE => truncate(m, cx, SmgrTruncate::decode(cx.record.main_data)?).await?,
        _ => {}
    }
    Ok(())
}

async fn truncate<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
    cut: SmgrTruncate,
) -> Result<(), IngestFault> {
    let (rel, blocks) = (rel_node(cut.relation), cut.blocks);
    m.create_rel(rel.fork(Fork::Main)).await?;
    if cut.flags & SMGR_TRUNCATE_HEAP != 0 {
        m.truncate_rel(rel.fork(Fork::Main), blocks).await?;
    }
    if cut.flags & SMGR_TRUNCATE_FSM != 0 {
        let end = MapEnd {
            page: fsm_block(blocks),
            within: !blocks.is_multiple_of(SLOTS_PER_FSM_PAGE),
        };
        truncate_map(m, cx, rel, Fork::Fsm, end).await?;
    }
    if cut.flags & SMGR_TRUNCATE_VM != 0 {
        let end = MapEnd {
            page: map_block(blocks),
            within: !blocks.is_multiple_of(HEAP_PAGES_PER_PAGE),
        };
        truncate_map(m, cx, rel, Fork::Vm, end).await?;
    }
    Ok(())
}

/// Where a map ends after the truncation of its heap.
struct MapEnd {
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
    end: MapEnd,
) -> Result<(), IngestFault> {
    let map = rel.fork(fork);
    let Some(size) = m.rel_size(map).await? else {
        return Ok(());
    };
    if end.within && end.page < size {
        // The record says which entries go; redo of the page works that out again.
        m.put_record(
            map,
            end.page,
            WalRecord::Postgres {
                will_init: false,
                record: cx.raw.clone(),
            },
        );
    }
    Ok(m.truncate_rel(map, end.page + u32::from(end.within)).await?)
}
