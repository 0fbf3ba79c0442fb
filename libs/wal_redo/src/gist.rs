//! GiST indexes.
//!
//! Up to 15.18 a page flag told that tuples were deleted from it (`F_TUPLES_DELETED`). Nobody reads it, and later
//! servers neither set nor replay it; nor do we.
//!
//! | record | 0 | 1 | 2.. |
//! |---|---|---|---|
//! | update | page | left child whose split it completes | |
//! | delete | page | | |
//! | split | left child whose split it completes | first page, new | further pages, new |
//! | page delete | leaf | parent | |

use postgres_ffi::cursor::Cursor;
use postgres_ffi::v15::rmgr::{
    XLOG_GIST_DELETE, XLOG_GIST_PAGE_DELETE, XLOG_GIST_PAGE_SPLIT, XLOG_GIST_PAGE_UPDATE,
};
use utils::lsn::Lsn;

use crate::change::{Change, Effect};
use crate::fault::Fault;
use crate::index_tuple;
use crate::offsets::Offsets;
use crate::page::{HEADER_LEN, Page};

/// Flags of a page (`F_*`).
mod flag {
    pub const LEAF: u16 = 1 << 0;
    pub const DELETED: u16 = 1 << 1;
    pub const FOLLOW_RIGHT: u16 = 1 << 3;
    pub const HAS_GARBAGE: u16 = 1 << 4;
}

/// Offsets of the special space's fields in bytes (`GISTPageOpaqueData`).
mod at {
    pub const NSN: usize = 0;
    pub const RIGHT_LINK: usize = 8;
    pub const FLAGS: usize = 12;
    pub const PAGE_ID: usize = 14;
}

const OPAQUE_LEN: usize = 16;
const PAGE_ID: u16 = 0xff81;
const ROOT_BLOCK: u32 = 0;
const INVALID_BLOCK: u32 = u32::MAX;

/// Whether a block of this record changes even when its image was restored: the completion of a split is
/// not in the image.
pub(crate) fn changes_restored_page(change: &Change<'_>) -> bool {
    matches!(
        (change.info(), change.block.id),
        (XLOG_GIST_PAGE_UPDATE, 1) | (XLOG_GIST_PAGE_SPLIT, 0)
    )
}

pub(crate) fn redo(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    match (change.info(), change.block.id) {
        (XLOG_GIST_PAGE_UPDATE, 0) => update(change, page)?,
        (XLOG_GIST_PAGE_UPDATE, 1) | (XLOG_GIST_PAGE_SPLIT, 0) => {
            set_nsn(page, change.lsn)?;
            change_flags(page, flag::FOLLOW_RIGHT, 0)?;
        }
        (XLOG_GIST_PAGE_SPLIT, _) => split(change, page)?,
        (XLOG_GIST_DELETE, 0) => {
            let mut main = change.main();
            main.skip(4)?; // latestRemovedXid: for conflicts with standby queries
            let count = usize::from(main.u16()?);
            page.delete_items(Offsets::read(&mut main, count)?.iter())?;
            change_flags(page, flag::HAS_GARBAGE, 0)?;
        }
        (XLOG_GIST_PAGE_DELETE, 0) => set_deleted(page, change.main().u64()?)?,
        (XLOG_GIST_PAGE_DELETE, 1) => {
            let mut main = change.main();
            main.skip(8)?; // transaction that deletes the leaf
            page.delete_item(main.u16()?)?;
        }
        _ => return Err(Fault::Unknown),
    }
    Ok(Effect::Changed)
}

/// The node sequence number: a page position of the past, kept as two halves like `pd_lsn`.
fn set_nsn(page: &mut Page<'_>, nsn: Lsn) -> Result<(), Fault> {
    let at = page.special() + at::NSN;
    page.put_u32(at, (nsn.0 >> 32) as u32)?;
    page.put_u32(at + 4, nsn.0 as u32)
}

fn flags(page: &Page<'_>) -> Result<u16, Fault> {
    page.get_u16(page.special() + at::FLAGS)
}

fn change_flags(page: &mut Page<'_>, clear: u16, set: u16) -> Result<(), Fault> {
    let flags = flags(page)? & !clear | set;
    page.put_u16(page.special() + at::FLAGS, flags)
}

fn update(change: &Change<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let mut main = change.main();
    let (deleted, inserted) = (main.u16()?, main.u16()?);
    let mut data = change.data();
    // One for one keeps its place.
    if (deleted, inserted) == (1, 1) {
        let number = data.u16()?;
        let len = index_tuple::trimmed(data.rest())?.len();
        page.replace_item(number, data.bytes(len)?)?;
        return Change::finish(data);
    }
    if deleted > 0 {
        page.delete_items(Offsets::read(&mut data, usize::from(deleted))?.iter())?;
    }
    append_tuples(page, inserted.into(), data)
}

/// Adds tuples behind the last item; they make up the rest of the data.
fn append_tuples(page: &mut Page<'_>, count: u32, mut data: Cursor<'_>) -> Result<(), Fault> {
    for _ in 0..count {
        let len = index_tuple::trimmed(data.rest())?.len();
        page.insert_item(page.max_offset() + 1, data.bytes(len)?)?;
    }
    Change::finish(data)
}

/// Makes one of the pages of a split; they are linked in the order of their block references.
fn split(change: &Change<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let mut main = change.main();
    let old_right_link = main.u32()?;
    main.skip(4)?; // padding
    let old_nsn = Lsn(main.u64()?);
    let was_leaf = main.u8()? != 0;
    main.skip(1)?; // padding
    let pages = main.u16()?;
    let mark_follow_right = main.u8()? != 0;

    let id = change.block.id;
    let is_root = change.block.blkno == ROOT_BLOCK;
    let is_last = u16::from(id) >= pages;
    let root_was_split = change.blkno_of(1)? == ROOT_BLOCK;
    page.init(OPAQUE_LEN);
    page.put_u16(page.special() + at::PAGE_ID, PAGE_ID)?;
    if was_leaf && !is_root {
        change_flags(page, 0, flag::LEAF)?;
    }
    if !is_root && !is_last && !root_was_split && mark_follow_right {
        change_flags(page, 0, flag::FOLLOW_RIGHT)?;
    }
    let right_link = match (is_root, is_last) {
        (true, _) => INVALID_BLOCK,
        (false, true) => old_right_link,
        (false, false) => change.blkno_of(id + 1)?,
    };
    page.put_u32(page.special() + at::RIGHT_LINK, right_link)?;
    set_nsn(page, old_nsn)?;
    let mut data = change.data();
    let count = data.u32()?;
    append_tuples(page, count, data)
}

fn set_deleted(page: &mut Page<'_>, xid: u64) -> Result<(), Fault> {
    change_flags(page, 0, flag::DELETED)?;
    page.put(HEADER_LEN, &xid.to_le_bytes())?;
    page.set_lower(HEADER_LEN + 8);
    Ok(())
}
