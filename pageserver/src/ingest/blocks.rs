//! Block references of any record: the pages it changes, and the relation sizes that follow.

use bytes::Bytes;
use pageserver_api::reltag::{Fork, RelTag};
use pageserver_api::value::WalRecord;
use postgres_ffi::v15::BLCKSZ;
use postgres_ffi::v15::record_ref::BlockRef;
use tracing::debug;
use wal_redo::PageTag;

use super::{Context, IngestFault};
use crate::pgdatadir::modification::Modification;
use crate::timeline::store::ReadStore;

/// A record up to this length is stored as it is even if it holds a page image: restoring that on each read costs
/// less than a page more in every layer. In bytes.
const RECORD_WITH_IMAGE_BYTES_MAX: usize = 2048;

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    for block in &cx.record.blocks {
        let rel = block_rel(block)?;
        let image = block.image.as_ref().filter(|image| image.apply);
        if image.is_some() || block.will_init {
            let others = &cx.record.blocks;
            m.extend_rel(rel, end_of(block.blkno)?, |added| is_made(others, block, added))
                .await?;
        }
        match image {
            Some(_) if cx.raw.len() > RECORD_WITH_IMAGE_BYTES_MAX => {
                m.put_page(rel, block.blkno, restore(m, cx, block)?);
            }
            Some(_) => put_record(m, cx, rel, block.blkno, true),
            None if block.will_init => put_record(m, cx, rel, block.blkno, true),
            None => change(m, cx, rel, block.blkno).await?,
        }
    }
    Ok(())
}

/// The relation fork a block reference names.
pub(super) fn block_rel(block: &BlockRef<'_>) -> Result<RelTag, IngestFault> {
    Ok(RelTag {
        spcnode: block.spcnode,
        dbnode: block.dbnode,
        relnode: block.relnode,
        fork: Fork::try_from(block.forknum).map_err(IngestFault::malformed)?,
    })
}

/// Size of a relation whose last block is `block`.
fn end_of(block: u32) -> Result<u32, IngestFault> {
    // PostgreSQL's InvalidBlockNumber is no block, and our size key has its place.
    block
        .checked_add(1)
        .ok_or_else(|| IngestFault::malformed("block number 4294967295"))
}

/// Whether the record makes block `number` of the relation that `like` is in.
fn is_made(blocks: &[BlockRef<'_>], like: &BlockRef<'_>, number: u32) -> bool {
    let same_rel = |b: &BlockRef<'_>| {
        (b.spcnode, b.dbnode, b.relnode, b.forknum) == (like.spcnode, like.dbnode, like.relnode, like.forknum)
    };
    let made = |b: &BlockRef<'_>| b.will_init || b.image.as_ref().is_some_and(|image| image.apply);
    number == like.blkno || blocks.iter().any(|b| b.blkno == number && same_rel(b) && made(b))
}

/// A change to a page that is there before the record.
async fn change<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
    rel: RelTag,
    block: u32,
) -> Result<(), IngestFault> {
    let exists = m.rel_size(rel).await?.is_some_and(|size| block < size);
    if exists {
        put_record(m, cx, rel, block, false);
    } else if matches!(rel.fork, Fork::Vm | Fork::Fsm) {
        // The maps grow without a record; redo takes a page that is not there for zeros.
        m.extend_rel(rel, end_of(block)?, |added| added == block).await?;
        put_record(m, cx, rel, block, true);
    } else {
        // Redo passes over it as well: the relation is truncated or dropped further on in the WAL.
        debug!(%rel, block, lsn = %m.lsn(), "record changes a block that does not exist");
    }
    Ok(())
}

fn put_record<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
    rel: RelTag,
    block: u32,
    will_init: bool,
) {
    m.put_record(
        rel,
        block,
        WalRecord::Postgres {
            will_init,
            record: cx.raw.clone(),
        },
    );
}

/// The page after the record, which has a full-page image of it. Records of a few kinds change the image, too.
fn restore<S: ReadStore>(
    m: &Modification<'_, S>,
    cx: &Context<'_>,
    block: &BlockRef<'_>,
) -> Result<Bytes, IngestFault> {
    let mut page = Box::new([0; BLCKSZ]);
    wal_redo::apply(&mut page, &PageTag::from(block), m.lsn(), cx.raw).map_err(IngestFault::malformed)?;
    Ok(Bytes::from_owner(page as Box<[u8]>))
}
