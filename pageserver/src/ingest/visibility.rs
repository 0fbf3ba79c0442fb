//! Heap records that clear bits of the visibility map. The map's page is not a block reference of theirs.

use pageserver_api::reltag::{Fork, RelTag};
use pageserver_api::value::WalRecord;
use wal_redo::visibility::{Cleared, cleared_by, map_block};

use super::blocks::block_rel;
use super::{Context, IngestFault};
use crate::pgdatadir::modification::Modification;
use crate::timeline::store::ReadStore;

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let (Some(cleared), Some(block)) = (cleared_by(&cx.record), cx.record.block(0)) else {
        return Ok(());
    };
    let map = RelTag {
        fork: Fork::Vm,
        ..block_rel(block)?
    };
    let new_page = cleared.new_heap_block.map(map_block);
    let old_page = cleared.old_heap_block.map(map_block);
    match (new_page, old_page) {
        (Some(new_page), Some(old_page)) if new_page != old_page => {
            clear(
                m,
                map,
                new_page,
                Cleared {
                    old_heap_block: None,
                    ..cleared
                },
            )
            .await?;
            clear(
                m,
                map,
                old_page,
                Cleared {
                    new_heap_block: None,
                    ..cleared
                },
            )
            .await
        }
        (Some(page), _) | (None, Some(page)) => clear(m, map, page, cleared).await,
        (None, None) => Ok(()),
    }
}

/// Clears the bits, unless the map has no such page and so no bits.
async fn clear<S: ReadStore>(
    m: &mut Modification<'_, S>,
    map: RelTag,
    page: u32,
    cleared: Cleared,
) -> Result<(), IngestFault> {
    if m.rel_size(map).await?.is_some_and(|size| page < size) {
        let Cleared {
            new_heap_block,
            old_heap_block,
            flags,
        } = cleared;
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
