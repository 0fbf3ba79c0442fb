//! Heap: rows inserted, updated, deleted, locked.
//!
//! Block 0 is the page of the row, of an update the page of the new row; block 1 of an update is the
//! page of the old row if that is another one. Bits of the visibility map that a record clears are not
//! among its blocks: see [`crate::visibility`].

pub(crate) mod tuple;
mod update;

use postgres_ffi::v15::rmgr::{
    XLOG_HEAP_CONFIRM, XLOG_HEAP_DELETE, XLOG_HEAP_HOT_UPDATE, XLOG_HEAP_INIT_PAGE, XLOG_HEAP_INPLACE,
    XLOG_HEAP_INSERT, XLOG_HEAP_LOCK, XLOG_HEAP_OPMASK, XLOG_HEAP_UPDATE,
};

use self::tuple::{HeapTuple, NewTuple, Tid};
use crate::change::{Change, Effect};
use crate::fault::Fault;
use crate::page::Page;

/// Flag bits of the records (`XLH_*`).
pub(crate) mod flag {
    pub const INSERT_ALL_VISIBLE_CLEARED: u8 = 1 << 0;
    pub const INSERT_ALL_FROZEN_SET: u8 = 1 << 5;
    pub const UPDATE_OLD_ALL_VISIBLE_CLEARED: u8 = 1 << 0;
    pub const UPDATE_NEW_ALL_VISIBLE_CLEARED: u8 = 1 << 1;
    pub const UPDATE_PREFIX_FROM_OLD: u8 = 1 << 5;
    pub const UPDATE_SUFFIX_FROM_OLD: u8 = 1 << 6;
    pub const DELETE_ALL_VISIBLE_CLEARED: u8 = 1 << 0;
    pub const DELETE_IS_SUPER: u8 = 1 << 3;
    pub const DELETE_IS_PARTITION_MOVE: u8 = 1 << 4;
    pub const LOCK_ALL_FROZEN_CLEARED: u8 = 1 << 0;
}

pub(crate) fn redo(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    match change.info() & XLOG_HEAP_OPMASK {
        XLOG_HEAP_INSERT => insert(change, page),
        XLOG_HEAP_DELETE => delete(change, page),
        XLOG_HEAP_UPDATE => update::redo(change, page, update::Kind::Cold),
        XLOG_HEAP_HOT_UPDATE => update::redo(change, page, update::Kind::Hot),
        XLOG_HEAP_CONFIRM => confirm(change, page),
        XLOG_HEAP_LOCK => lock(change, page),
        XLOG_HEAP_INPLACE => inplace(change, page),
        _ => Err(Fault::Unknown),
    }
}

/// The page is made anew if the record says so.
pub(crate) fn init_if_asked(change: &Change<'_>, page: &mut Page<'_>) {
    if change.info() & XLOG_HEAP_INIT_PAGE != 0 {
        page.init(0);
    }
}

fn insert(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    let (offset, flags) = (main.u16()?, main.u8()?);
    init_if_asked(change, page);
    let mut data = change.data();
    let tuple = NewTuple {
        infomask2: data.u16()?,
        infomask: data.u16()?,
        hoff: data.u8()?,
        xmin: change.xid(),
        xmax: 0,
        ctid: Tid::new(change.block.blkno, offset),
    };
    tuple.add(page, offset, data.rest())?;
    if flags & flag::INSERT_ALL_VISIBLE_CLEARED != 0 {
        page.clear_all_visible();
    }
    Ok(Effect::Changed)
}

fn delete(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    let (xmax, offset, infobits, flags) = (main.u32()?, main.u16()?, main.u8()?, main.u8()?);
    let mut tuple = HeapTuple::of(page, offset)?;
    tuple.clear_xmax_bits();
    tuple.clear_hot_updated();
    tuple.set_xmax_bits(infobits);
    if flags & flag::DELETE_IS_SUPER == 0 {
        tuple.set_xmax(xmax);
    } else {
        tuple.set_xmin(0);
    }
    tuple.set_first_cmax();
    tuple.set_ctid(if flags & flag::DELETE_IS_PARTITION_MOVE != 0 {
        Tid::MOVED_PARTITIONS
    } else {
        Tid::new(change.block.blkno, offset)
    });
    page.set_prunable(change.xid());
    if flags & flag::DELETE_ALL_VISIBLE_CLEARED != 0 {
        page.clear_all_visible();
    }
    Ok(Effect::Changed)
}

/// A speculative insertion came to stay.
fn confirm(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let offset = change.main().u16()?;
    HeapTuple::of(page, offset)?.set_ctid(Tid::new(change.block.blkno, offset));
    Ok(Effect::Changed)
}

fn lock(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    let (xmax, offset, infobits) = (main.u32()?, main.u16()?, main.u8()?);
    let mut tuple = HeapTuple::of(page, offset)?;
    tuple.clear_xmax_bits();
    tuple.set_xmax_bits(infobits);
    if tuple.xmax_is_locked_only() {
        tuple.clear_hot_updated();
        tuple.set_ctid(Tid::new(change.block.blkno, offset));
    }
    tuple.set_xmax(xmax);
    tuple.set_first_cmax();
    Ok(Effect::Changed)
}

fn inplace(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let offset = change.main().u16()?;
    let new = change.data().rest();
    let body = HeapTuple::of(page, offset)?.into_body()?;
    if body.len() != new.len() {
        return Err(Fault::Item {
            offset,
            state: "has another length",
        });
    }
    body.copy_from_slice(new);
    Ok(Effect::Changed)
}
