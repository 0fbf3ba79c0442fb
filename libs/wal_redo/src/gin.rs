//! GIN indexes.
//!
//! | record | 0 | 1 | 2 | 3 |
//! |---|---|---|---|---|
//! | create posting tree | root, new | | | |
//! | insert | page | child whose split it completes | | |
//! | split | left page, image | right page, image | root, image | child whose split it completes |
//! | vacuum page | page, image | | | |
//! | vacuum leaf of a posting tree | page | | | |
//! | delete page | page | parent | left sibling | |
//! | update metapage | metapage, made anew | tail of the pending list | | |
//! | insert list page | page, new | | | |
//! | delete list pages | metapage, made anew | page, made anew | page, made anew | … |

mod data_page;
mod posting;

use postgres_ffi::cursor::Cursor;
use postgres_ffi::v15::rmgr::{
    XLOG_GIN_CREATE_PTREE, XLOG_GIN_DELETE_LISTPAGE, XLOG_GIN_DELETE_PAGE, XLOG_GIN_INSERT,
    XLOG_GIN_INSERT_LISTPAGE, XLOG_GIN_SPLIT, XLOG_GIN_UPDATE_META_PAGE, XLOG_GIN_VACUUM_DATA_LEAF_PAGE,
    XLOG_GIN_VACUUM_PAGE,
};

use crate::change::{Change, Effect};
use crate::fault::Fault;
use crate::heap::tuple::Tid;
use crate::index_tuple;
use crate::page::{HEADER_LEN, Page};

/// Flags of a page (`GIN_*`).
mod flag {
    pub const DATA: u16 = 1 << 0;
    pub const LEAF: u16 = 1 << 1;
    pub const DELETED: u16 = 1 << 2;
    pub const META: u16 = 1 << 3;
    pub const LIST: u16 = 1 << 4;
    pub const LIST_FULLROW: u16 = 1 << 5;
    pub const INCOMPLETE_SPLIT: u16 = 1 << 6;
    pub const COMPRESSED: u16 = 1 << 7;
}

const OPAQUE_LEN: usize = 8;
const INVALID_BLOCK: u32 = u32::MAX;
/// `GinMetaPageData`, behind the header of the metapage.
const META_LEN: usize = 56;

/// The special space (`GinPageOpaqueData`).
#[derive(Clone, Copy, Debug)]
struct Opaque {
    right_link: u32,
    /// Number of posting items of an inner page of a posting tree; of a list page, of heap rows.
    max_offset: u16,
    flags: u16,
}

impl Opaque {
    fn with_flags(flags: u16) -> Self {
        Opaque {
            right_link: INVALID_BLOCK,
            max_offset: 0,
            flags,
        }
    }

    fn read(page: &Page<'_>) -> Result<Self, Fault> {
        let at = page.special();
        Ok(Opaque {
            right_link: page.get_u32(at)?,
            max_offset: page.get_u16(at + 4)?,
            flags: page.get_u16(at + 6)?,
        })
    }

    fn write(self, page: &mut Page<'_>) -> Result<(), Fault> {
        let at = page.special();
        page.put_u32(at, self.right_link)?;
        page.put_u16(at + 4, self.max_offset)?;
        page.put_u16(at + 6, self.flags)
    }

    /// An empty page with this special space.
    fn init(self, page: &mut Page<'_>) -> Result<(), Fault> {
        page.init(OPAQUE_LEN);
        self.write(page)
    }
}

pub(crate) fn redo(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    match (change.info(), change.block.id) {
        (XLOG_GIN_CREATE_PTREE, 0) => {
            let len = main.u32()?;
            data_page::init_leaf(page, main.bytes(len as usize)?)?;
        }
        (XLOG_GIN_INSERT, 0) => insert(change, page)?,
        (XLOG_GIN_INSERT, 1) | (XLOG_GIN_SPLIT, 3) => {
            let mut opaque = Opaque::read(page)?;
            opaque.flags &= !flag::INCOMPLETE_SPLIT;
            opaque.write(page)?;
        }
        (XLOG_GIN_SPLIT, _) | (XLOG_GIN_VACUUM_PAGE, _) => {
            return Err(Fault::Record("a full-page image is missing"));
        }
        (XLOG_GIN_VACUUM_DATA_LEAF_PAGE, 0) => data_page::recompress(page, change.data())?,
        (XLOG_GIN_DELETE_PAGE, _) => delete_page(change, page)?,
        (XLOG_GIN_UPDATE_META_PAGE, 0) => {
            main.skip(16)?; // name of the relation, padding
            init_meta(page, main)?;
        }
        (XLOG_GIN_UPDATE_META_PAGE, 1) => update_tail(change, page)?,
        (XLOG_GIN_INSERT_LISTPAGE, 0) => insert_list_page(change, page)?,
        (XLOG_GIN_DELETE_LISTPAGE, 0) => init_meta(page, main)?,
        (XLOG_GIN_DELETE_LISTPAGE, _) => Opaque::with_flags(flag::DELETED).init(page)?,
        _ => return Err(Fault::Unknown),
    }
    Ok(Effect::Changed)
}

/// A block number stored as two halves, the high one first (`BlockIdData`).
fn block_id(input: &mut Cursor<'_>) -> Result<u32, Fault> {
    index_tuple::block(input.bytes(4)?)
}

fn insert(change: &Change<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    const IS_DATA: u16 = 0x01;
    const IS_LEAF: u16 = 0x02;
    let mut main = change.main();
    let flags = main.u16()?;
    let right_child = if flags & IS_LEAF == 0 {
        block_id(&mut main)?; // left child
        Some(block_id(&mut main)?)
    } else {
        None
    };
    match (flags & IS_DATA != 0, right_child) {
        (false, _) => insert_entry(page, right_child, change.data()),
        (true, None) => data_page::recompress(page, change.data()),
        (true, Some(right_child)) => data_page::insert_downlink(page, right_child, change.data()),
    }
}

/// `ginxlogInsertEntry`: a tuple of the entry tree.
fn insert_entry(page: &mut Page<'_>, right_child: Option<u32>, mut data: Cursor<'_>) -> Result<(), Fault> {
    let (number, replaces) = (data.u16()?, data.u8()? != 0);
    data.skip(1)?; // padding
    if let Some(right_child) = right_child {
        let downlink = page
            .item_mut(number)?
            .first_chunk_mut::<6>()
            .ok_or(Fault::Page("an index tuple is too short"))?;
        *downlink = Tid::new(right_child, 0).0;
    }
    if replaces {
        page.delete_item(number)?;
    }
    page.insert_item(number, index_tuple::trimmed(data.rest())?)
}

fn delete_page(change: &Change<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let mut main = change.main();
    let parent_item = main.u16()?;
    main.skip(2)?; // padding
    let (right_link, delete_xid) = (main.u32()?, main.u32()?);
    match change.block.id {
        0 => {
            let mut opaque = Opaque::read(page)?;
            opaque.flags |= flag::DELETED;
            opaque.write(page)?;
            page.set_prune_xid(delete_xid);
            Ok(())
        }
        1 => data_page::delete_downlink(page, parent_item),
        2 => Opaque {
            right_link,
            ..Opaque::read(page)?
        }
        .write(page),
        _ => change.unexpected_block(),
    }
}

fn init_meta(page: &mut Page<'_>, mut data: Cursor<'_>) -> Result<(), Fault> {
    Opaque::with_flags(flag::META).init(page)?;
    page.put(HEADER_LEN, data.bytes(META_LEN)?)?;
    page.set_lower(HEADER_LEN + META_LEN);
    Ok(())
}

/// Adds tuples behind the last item; they make up the rest of the data.
fn append_tuples(page: &mut Page<'_>, count: u32, mut data: Cursor<'_>) -> Result<(), Fault> {
    for _ in 0..count {
        let len = index_tuple::trimmed(data.rest())?.len();
        page.insert_item(page.max_offset() + 1, data.bytes(len)?)?;
    }
    Change::finish(data)
}

/// The last page of the pending list gets tuples, or a successor.
fn update_tail(change: &Change<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let mut main = change.main();
    main.skip(16 + META_LEN)?; // name of the relation, padding, metadata
    main.skip(4)?; // old tail
    let right_link = main.u32()?;
    let tuples = main.i32()?;
    if let Ok(tuples @ 1..) = u32::try_from(tuples) {
        append_tuples(page, tuples, change.data())?;
        let mut opaque = Opaque::read(page)?;
        opaque.max_offset = opaque.max_offset.wrapping_add(1);
        opaque.write(page)
    } else {
        Opaque {
            right_link,
            ..Opaque::read(page)?
        }
        .write(page)
    }
}

fn insert_list_page(change: &Change<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let mut main = change.main();
    let (right_link, tuples) = (main.u32()?, main.u32()?);
    // The last page of a sublist ends with a whole row.
    let is_tail = right_link == INVALID_BLOCK;
    Opaque {
        right_link,
        max_offset: is_tail.into(),
        flags: flag::LIST | if is_tail { flag::LIST_FULLROW } else { 0 },
    }
    .init(page)?;
    append_tuples(page, tuples, change.data())
}
