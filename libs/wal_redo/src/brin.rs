//! BRIN indexes: summaries of heap ranges, found through the range map ("revmap").
//!
//! | record | 0 | 1 | 2 |
//! |---|---|---|---|
//! | create | metapage | | |
//! | insert, update | page of the new summary | revmap page | page of the old summary |
//! | update on one page | page | | |
//! | extend revmap | metapage | revmap page, new | |
//! | desummarize | revmap page | page of the summary | |

use postgres_ffi::v15::rmgr::{
    XLOG_BRIN_CREATE_INDEX, XLOG_BRIN_DESUMMARIZE, XLOG_BRIN_INIT_PAGE, XLOG_BRIN_INSERT, XLOG_BRIN_OPMASK,
    XLOG_BRIN_REVMAP_EXTEND, XLOG_BRIN_SAMEPAGE_UPDATE, XLOG_BRIN_UPDATE,
};

use crate::change::{Change, Effect};
use crate::fault::Fault;
use crate::heap::tuple::Tid;
use crate::page::{HEADER_LEN, Page};

const SPECIAL_LEN: usize = 8;
/// Kind of a page, in the last two bytes.
const TYPE_META: u16 = 0xf091;
const TYPE_REVMAP: u16 = 0xf092;
const TYPE_REGULAR: u16 = 0xf093;
const META_MAGIC: u32 = 0xa810_9cfa;
/// `BrinMetaPageData`: magic, version, pages per range, last revmap page.
const META_LEN: usize = 16;
const META_LAST_REVMAP_PAGE: usize = HEADER_LEN + 12;
const TID_LEN: usize = 6;
const TIDS_PER_REVMAP_PAGE: u32 = 1360;
/// No summary.
const INVALID_TID: Tid = Tid([0xff, 0xff, 0xff, 0xff, 0, 0]);

pub(crate) fn redo(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    match (change.info() & XLOG_BRIN_OPMASK, change.block.id) {
        (XLOG_BRIN_CREATE_INDEX, 0) => init_meta(page, main.u32()?, main.u16()?)?,
        (XLOG_BRIN_INSERT, block) => insert(change, page, Insert::read(main)?, block)?,
        (XLOG_BRIN_UPDATE, 2) => page.delete_item_keeping_numbers(main.u16()?)?,
        (XLOG_BRIN_UPDATE, block) => {
            main.skip(4)?; // number of the old summary, padding
            insert(change, page, Insert::read(main)?, block)?;
        }
        (XLOG_BRIN_SAMEPAGE_UPDATE, 0) => page.replace_item(main.u16()?, change.block.data)?,
        (XLOG_BRIN_REVMAP_EXTEND, 0) => {
            page.put_u32(META_LAST_REVMAP_PAGE, main.u32()?)?;
            page.set_lower(HEADER_LEN + META_LEN);
        }
        (XLOG_BRIN_REVMAP_EXTEND, 1) => init(page, TYPE_REVMAP)?,
        (XLOG_BRIN_DESUMMARIZE, block) => {
            let (pages_per_range, heap_block) = (main.u32()?, main.u32()?);
            match block {
                0 => set_revmap(page, pages_per_range, heap_block, INVALID_TID)?,
                1 => page.delete_item_keeping_numbers(main.u16()?)?,
                _ => return change.unexpected_block(),
            }
        }
        _ => return Err(Fault::Unknown),
    }
    Ok(Effect::Changed)
}

fn init(page: &mut Page<'_>, kind: u16) -> Result<(), Fault> {
    page.init(SPECIAL_LEN);
    page.put_u16(crate::page::PAGE_SIZE - 2, kind)
}

fn init_meta(page: &mut Page<'_>, pages_per_range: u32, version: u16) -> Result<(), Fault> {
    init(page, TYPE_META)?;
    page.put_u32(HEADER_LEN, META_MAGIC)?;
    page.put_u32(HEADER_LEN + 4, version.into())?;
    page.put_u32(HEADER_LEN + 8, pages_per_range)?;
    page.set_lower(HEADER_LEN + META_LEN);
    Ok(())
}

/// `xl_brin_insert`.
struct Insert {
    heap_block: u32,
    pages_per_range: u32,
    offset: u16,
}

impl Insert {
    fn read(mut main: postgres_ffi::cursor::Cursor<'_>) -> Result<Self, Fault> {
        Ok(Insert {
            heap_block: main.u32()?,
            pages_per_range: main.u32()?,
            offset: main.u16()?,
        })
    }
}

fn insert(change: &Change<'_>, page: &mut Page<'_>, record: Insert, block: u8) -> Result<(), Fault> {
    match block {
        0 => {
            if change.info() & XLOG_BRIN_INIT_PAGE != 0 {
                init(page, TYPE_REGULAR)?;
            }
            page.overwrite_item(record.offset, change.block.data)
        }
        1 => {
            let tid = Tid::new(change.blkno_of(0)?, record.offset);
            set_revmap(page, record.pages_per_range, record.heap_block, tid)
        }
        _ => change.unexpected_block(),
    }
}

fn set_revmap(page: &mut Page<'_>, pages_per_range: u32, heap_block: u32, tid: Tid) -> Result<(), Fault> {
    let range = heap_block
        .checked_div(pages_per_range)
        .ok_or(Fault::Record("no pages in a range"))?;
    let index = (range % TIDS_PER_REVMAP_PAGE) as usize;
    page.put(HEADER_LEN + index * TID_LEN, &tid.0)
}
