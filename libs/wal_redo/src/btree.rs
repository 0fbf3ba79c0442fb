//! B-tree indexes.
//!
//! | record | 0 | 1 | 2 | 3 | 4 |
//! |---|---|---|---|---|---|
//! | insert | page | child whose split it completes | metapage | | |
//! | split | left (the old page) | right, new | the right one's right sibling | child whose split it completes | |
//! | half-dead | leaf, made anew | parent | | | |
//! | unlink | page, made anew | left sibling | right sibling | leaf of the subtree, made anew | metapage |
//! | new root | root, new | left child | metapage | | |
//! | others | page | | | | |

mod page;
mod posting;
mod split;

use postgres_ffi::cursor::Cursor;
use postgres_ffi::v15::rmgr::{
    XLOG_BTREE_DEDUP, XLOG_BTREE_DELETE, XLOG_BTREE_INSERT_LEAF, XLOG_BTREE_INSERT_META,
    XLOG_BTREE_INSERT_POST, XLOG_BTREE_INSERT_UPPER, XLOG_BTREE_MARK_PAGE_HALFDEAD, XLOG_BTREE_META_CLEANUP,
    XLOG_BTREE_NEWROOT, XLOG_BTREE_SPLIT_L, XLOG_BTREE_SPLIT_R, XLOG_BTREE_UNLINK_PAGE,
    XLOG_BTREE_UNLINK_PAGE_META, XLOG_BTREE_VACUUM,
};

use self::page::{BtreePage, Opaque, flag};
use crate::change::{Change, Effect};
use crate::fault::Fault;
use crate::index_tuple;
use crate::offsets::Offsets;
use crate::page::Page;

pub(crate) fn redo(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let block = change.block.id;
    match (change.info(), block) {
        (XLOG_BTREE_INSERT_LEAF | XLOG_BTREE_INSERT_UPPER | XLOG_BTREE_INSERT_META, 0) => {
            insert(change, page)
        }
        (XLOG_BTREE_INSERT_POST, 0) => insert_splitting_posting(change, page),
        (XLOG_BTREE_INSERT_UPPER | XLOG_BTREE_INSERT_META, 1) => clear_incomplete_split(page),
        (XLOG_BTREE_INSERT_META, 2) => restore_meta(change, page),
        (XLOG_BTREE_SPLIT_L, _) => split::redo(change, page, split::NewItem::Left),
        (XLOG_BTREE_SPLIT_R, _) => split::redo(change, page, split::NewItem::Right),
        (XLOG_BTREE_DEDUP, 0) => posting::dedup(change, page),
        (XLOG_BTREE_VACUUM, 0) => delete(change.main(), change, page),
        (XLOG_BTREE_DELETE, 0) => {
            let mut main = change.main();
            main.skip(4)?; // latestRemovedXid: for conflicts with standby queries
            delete(main, change, page)
        }
        (XLOG_BTREE_MARK_PAGE_HALFDEAD, _) => mark_half_dead(change, page),
        (XLOG_BTREE_UNLINK_PAGE_META, 4) => restore_meta(change, page),
        (XLOG_BTREE_UNLINK_PAGE | XLOG_BTREE_UNLINK_PAGE_META, _) => unlink(change, page),
        (XLOG_BTREE_NEWROOT, 0) => new_root(change, page),
        (XLOG_BTREE_NEWROOT, 1) => clear_incomplete_split(page),
        (XLOG_BTREE_NEWROOT, 2) => restore_meta(change, page),
        (XLOG_BTREE_META_CLEANUP, 0) => restore_meta(change, page),
        _ => Err(Fault::Unknown),
    }
}

fn insert(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let offset = change.main().u16()?;
    page.insert_item(offset, change.data().rest())?;
    Ok(Effect::Changed)
}

/// The new tuple's place is within the posting list before it: the list takes it in and gives up its
/// last entry, which becomes the new tuple's.
fn insert_splitting_posting(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let offset = change.main().u16()?;
    let mut data = change.data();
    let posting_offset = data.u16()?;
    let mut tuple = posting::NewTuple::copy(data.rest())?;
    posting::swap(page, offset.wrapping_sub(1), posting_offset, &mut tuple)?;
    page.insert_item(offset, tuple.bytes())?;
    Ok(Effect::Changed)
}

fn clear_incomplete_split(page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut opaque = Opaque::read(page)?;
    opaque.flags &= !flag::INCOMPLETE_SPLIT;
    opaque.write(page)?;
    Ok(Effect::Changed)
}

/// The metapage is made anew from `xl_btree_metadata`.
fn restore_meta(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    /// `BTMetaPageData`, which follows the page header.
    const META_LEN: usize = 48;
    const BTREE_MAGIC: u32 = 0x05_3162;
    let mut data = change.data();
    let fields = data.bytes(24)?; // version, root, level, fast root, fast level, deleted pages
    let all_equal_image = data.u8()?;
    let mut meta = [0; META_LEN];
    meta[..4].copy_from_slice(&BTREE_MAGIC.to_le_bytes());
    meta[4..28].copy_from_slice(fields);
    meta[32..40].copy_from_slice(&(-1.0f64).to_le_bytes()); // number of heap tuples, no longer used
    meta[40] = all_equal_image;
    page.init_btree(Opaque {
        flags: flag::META,
        ..Opaque::default()
    })?;
    page.put(crate::page::HEADER_LEN, &meta)?;
    page.set_lower(crate::page::HEADER_LEN + META_LEN);
    Ok(Effect::Changed)
}

/// Tuples removed, and posting lists shortened, by vacuum or for want of space.
fn delete(mut main: Cursor<'_>, change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let (deleted, updated) = (usize::from(main.u16()?), usize::from(main.u16()?));
    let mut data = change.data();
    let deleted = Offsets::read(&mut data, deleted)?;
    let updated = Offsets::read(&mut data, updated)?;
    for offset in updated.iter() {
        let count = usize::from(data.u16()?);
        posting::remove_entries(page, offset, Offsets::read(&mut data, count)?)?;
    }
    if deleted.len() > 0 {
        page.delete_items(deleted.iter())?;
    }
    let mut opaque = Opaque::read(page)?;
    opaque.flags &= !flag::HAS_GARBAGE;
    opaque.write(page)?;
    Ok(Effect::Changed)
}

fn mark_half_dead(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    let parent_offset = main.u16()?;
    main.skip(2 + 4)?; // padding, number of the leaf
    let (left, right, top_parent) = (main.u32()?, main.u32()?, main.u32()?);
    match change.block.id {
        0 => page.init_half_dead(left, right, top_parent)?,
        1 => {
            // The downlink to the dead page takes over the next one's target, and that one goes.
            let next = parent_offset
                .checked_add(1)
                .ok_or(Fault::Record("impossible item number"))?;
            let target = index_tuple::block(page.item(next)?)?;
            index_tuple::set_block(page.item_mut(parent_offset)?, target)?;
            page.delete_item(next)?;
        }
        _ => return change.unexpected_block(),
    }
    Ok(Effect::Changed)
}

fn unlink(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    let (left, right, level) = (main.u32()?, main.u32()?, main.u32()?);
    main.skip(4)?; // padding
    let safe_xid = main.u64()?;
    let (leaf_left, leaf_right, leaf_top_parent) = (main.u32()?, main.u32()?, main.u32()?);
    match change.block.id {
        0 => page.init_deleted(Opaque::linked(left, right, level), safe_xid)?,
        1 => Opaque {
            next: right,
            ..Opaque::read(page)?
        }
        .write(page)?,
        2 => Opaque {
            prev: left,
            ..Opaque::read(page)?
        }
        .write(page)?,
        3 => page.init_half_dead(leaf_left, leaf_right, leaf_top_parent)?,
        _ => return change.unexpected_block(),
    }
    Ok(Effect::Changed)
}

fn new_root(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    main.skip(4)?; // number of the root
    let level = main.u32()?;
    let leaf = if level == 0 { flag::LEAF } else { 0 };
    page.init_btree(Opaque {
        level,
        flags: flag::ROOT | leaf,
        ..Opaque::default()
    })?;
    if level > 0 {
        page.restore_tuples(change.block.data)?;
    }
    Ok(Effect::Changed)
}
