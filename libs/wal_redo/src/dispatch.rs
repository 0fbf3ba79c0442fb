//! From a record and a page to the resource manager's handler.

use postgres_ffi::v15::image;
use postgres_ffi::v15::record_ref::{BlockRef, RecordRef};
use postgres_ffi::v15::rmgr::{
    RM_BRIN_ID, RM_BTREE_ID, RM_GENERIC_ID, RM_GIN_ID, RM_GIST_ID, RM_HASH_ID, RM_HEAP_ID, RM_HEAP2_ID,
    RM_SEQ_ID, RM_SPGIST_ID, RM_XLOG_ID, XLOG_FPI, XLOG_FPI_FOR_HINT,
};
use utils::lsn::Lsn;

use crate::change::{Change, Effect};
use crate::fault::{Fault, PageName, RedoError, RmgrName};
use crate::page::{Page, PageBuf};
use crate::{brin, btree, generic, gin, gist, hash, heap, heap2, sequence, spgist, truncate};

/// Which block of which relation fork a page is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct PageTag {
    /// Tablespace OID.
    pub spcnode: u32,
    /// Database OID, 0 for shared relations.
    pub dbnode: u32,
    /// Relation number.
    pub relnode: u32,
    /// Fork number.
    pub forknum: u8,
    /// Block number.
    pub blkno: u32,
}

impl From<&BlockRef<'_>> for PageTag {
    fn from(block: &BlockRef<'_>) -> Self {
        PageTag {
            spcnode: block.spcnode,
            dbnode: block.dbnode,
            relnode: block.relnode,
            forknum: block.forknum,
            blkno: block.blkno,
        }
    }
}

/// Applies a record to the page `tag`, in place. `lsn` is the end of the record, `raw` the record as in the
/// WAL without page headers.
pub fn apply(page: &mut PageBuf, tag: &PageTag, lsn: Lsn, raw: &[u8]) -> Result<(), RedoError> {
    let mut record = RecordRef::empty();
    record.read(raw).map_err(|error| RedoError {
        lsn,
        rmgr: RmgrName::Unreadable,
        info: 0,
        page: PageName::Block(*tag),
        fault: error.into(),
    })?;
    if truncate::concerns(&record, tag) {
        return truncate::redo(page, &record, tag).map_err(|fault| error(&record, *tag, lsn, fault));
    }
    let block = record
        .blocks
        .iter()
        .find(|block| PageTag::from(*block) == *tag)
        .ok_or_else(|| error(&record, *tag, lsn, Fault::NotReferenced))?;
    apply_to_block(page, &record, block, lsn)
}

/// Applies a record to several of its blocks, in place: each page comes with the number of its block
/// reference. `lsn` is the end of the record.
pub fn apply_to_blocks<'p>(
    record: &RecordRef<'_>,
    lsn: Lsn,
    pages: impl IntoIterator<Item = (u8, &'p mut PageBuf)>,
) -> Result<(), RedoError> {
    for (id, page) in pages {
        let block = record.block(id).ok_or(RedoError {
            lsn,
            rmgr: RmgrName::Id(record.header.rmid),
            info: record.header.info,
            page: PageName::Reference(id),
            fault: Fault::NotReferenced,
        })?;
        apply_to_block(page, record, block, lsn)?;
    }
    Ok(())
}

/// Applies a record to the page of one of its blocks, in place. `lsn` is the end of the record.
#[inline]
pub fn apply_to_block(
    page: &mut PageBuf,
    record: &RecordRef<'_>,
    block: &BlockRef<'_>,
    lsn: Lsn,
) -> Result<(), RedoError> {
    redo(page, record, block, lsn).map_err(|fault| error(record, block.into(), lsn, fault))
}

fn error(record: &RecordRef<'_>, tag: PageTag, lsn: Lsn, fault: Fault) -> RedoError {
    RedoError {
        lsn,
        rmgr: RmgrName::Id(record.header.rmid),
        info: record.header.info,
        page: PageName::Block(tag),
        fault,
    }
}

fn redo(raw: &mut PageBuf, record: &RecordRef<'_>, block: &BlockRef<'_>, lsn: Lsn) -> Result<(), Fault> {
    let change = Change::new(record, block, lsn);
    let image = block.image.filter(|image| image.apply);
    if let Some(image) = &image {
        image::restore_ref(image, raw)?;
    }
    let mut page = Page::new(raw);
    if image.is_some() {
        // An image of a page that was never initialised must stay all zeros.
        if !page.is_new() {
            page.set_lsn(lsn);
        }
        match record.header.rmid {
            RM_HASH_ID if hash::changes_restored_page(&change) => {}
            RM_GIST_ID if gist::changes_restored_page(&change) => {}
            _ => return Ok(()),
        }
    } else if !block.will_init && page.lsn() >= lsn {
        return Ok(());
    }
    let page = &mut page;
    let effect = match record.header.rmid {
        RM_XLOG_ID => xlog(&change),
        RM_HEAP2_ID => heap2::redo(&change, page),
        RM_HEAP_ID => heap::redo(&change, page),
        RM_BTREE_ID => btree::redo(&change, page),
        RM_BRIN_ID => brin::redo(&change, page),
        RM_HASH_ID => hash::redo(&change, page),
        RM_GIN_ID => gin::redo(&change, page),
        RM_GIST_ID => gist::redo(&change, page),
        RM_SEQ_ID => sequence::redo(&change, page),
        RM_SPGIST_ID => spgist::redo(&change, page),
        RM_GENERIC_ID => generic::redo(&change, page),
        _ => Err(Fault::Unknown),
    }?;
    if effect == Effect::Changed {
        page.set_lsn(lsn);
    }
    Ok(())
}

/// Full-page images are restored above; one for a hint bit has no image if the server saw no need for it.
fn xlog(change: &Change<'_>) -> Result<Effect, Fault> {
    match change.info() {
        XLOG_FPI_FOR_HINT => Ok(Effect::LsnKept),
        XLOG_FPI => Err(Fault::Record("a full-page image is missing")),
        _ => Err(Fault::Unknown),
    }
}
