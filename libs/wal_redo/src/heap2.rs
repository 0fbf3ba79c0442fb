//! Heap, continued: pruning, vacuum, freezing, visibility, many rows at once.
//!
//! Block 0 is the heap page, except of `VISIBLE`, where it is the visibility map's page and the heap
//! page is block 1.

use postgres_ffi::cursor::Cursor;
use postgres_ffi::v15::rmgr::{
    XLOG_HEAP_INIT_PAGE, XLOG_HEAP_OPMASK, XLOG_HEAP2_FREEZE_PAGE, XLOG_HEAP2_LOCK_UPDATED,
    XLOG_HEAP2_MULTI_INSERT, XLOG_HEAP2_PRUNE, XLOG_HEAP2_VACUUM, XLOG_HEAP2_VISIBLE,
};

use crate::change::{Change, Effect};
use crate::fault::Fault;
use crate::heap::tuple::{HeapTuple, NewTuple, Tid};
use crate::heap::{flag, init_if_asked};
use crate::offsets::Offsets;
use crate::page::{ItemId, ItemState, Page};
use crate::visibility;

pub(crate) fn redo(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    match change.info() & XLOG_HEAP_OPMASK {
        XLOG_HEAP2_PRUNE => prune(change, page),
        XLOG_HEAP2_VACUUM => vacuum(change, page),
        XLOG_HEAP2_FREEZE_PAGE => freeze_page(change, page),
        XLOG_HEAP2_VISIBLE => visible(change, page),
        XLOG_HEAP2_MULTI_INSERT => multi_insert(change, page),
        XLOG_HEAP2_LOCK_UPDATED => lock_updated(change, page),
        _ => Err(Fault::Unknown),
    }
}

fn bare(offset: u16, state: ItemState) -> ItemId {
    ItemId {
        offset,
        state,
        len: 0,
    }
}

fn prune(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    main.skip(4)?; // latestRemovedXid: for conflicts with standby queries
    let (redirected, dead) = (usize::from(main.u16()?), usize::from(main.u16()?));
    let mut data = change.data();
    let redirected = Offsets::read(&mut data, redirected * 2)?;
    let dead = Offsets::read(&mut data, dead)?;
    let unused = data.left() / 2;
    let unused = Offsets::read(&mut data, unused)?;
    Change::finish(data)?;
    for pair in 0..redirected.len() / 2 {
        let (Some(from), Some(to)) = (redirected.get(pair * 2), redirected.get(pair * 2 + 1)) else {
            return Err(Fault::Record("half a redirect"));
        };
        page.set_item_id(from, bare(to, ItemState::Redirect))?;
    }
    for offset in dead.iter() {
        page.set_item_id(offset, bare(0, ItemState::Dead))?;
    }
    for offset in unused.iter() {
        page.set_item_id(offset, bare(0, ItemState::Unused))?;
    }
    page.repair_fragmentation()?;
    Ok(Effect::Changed)
}

fn vacuum(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let count = change.main().u16()?;
    for offset in Offsets::read(&mut change.data(), usize::from(count))?.iter() {
        page.set_item_id(offset, bare(0, ItemState::Unused))?;
    }
    page.truncate_line_pointers()?;
    Ok(Effect::Changed)
}

fn freeze_page(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    const XVAC_FROZEN: u8 = 0x02;
    const XVAC_INVALID: u8 = 0x04;
    const FROZEN_XID: u32 = 2;
    let mut main = change.main();
    main.skip(4)?; // cutoff_xid: for conflicts with standby queries
    let count = main.u16()?;
    let mut data = change.data();
    for _ in 0..count {
        let (xmax, offset) = (data.u32()?, data.u16()?);
        let (infomask2, infomask, flags) = (data.u16()?, data.u16()?, data.u8()?);
        data.skip(1)?; // padding
        let mut tuple = HeapTuple::with_storage(page, offset)?;
        tuple.set_xmax(xmax);
        if flags & XVAC_FROZEN != 0 {
            tuple.set_xvac(FROZEN_XID);
        }
        if flags & XVAC_INVALID != 0 {
            tuple.set_xvac(0);
        }
        tuple.set_masks(infomask, infomask2);
    }
    Change::finish(data)?;
    Ok(Effect::Changed)
}

fn visible(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    main.skip(4)?; // cutoff_xid: for conflicts with standby queries
    let flags = main.u8()?;
    match change.block.id {
        0 => {
            if page.is_new() {
                page.init(0);
            }
            visibility::set(page, change.blkno_of(1)?, change.block.blkno, flags)
        }
        1 => {
            // The page's LSN moves only with checksums or wal_log_hints, which a compute has off.
            page.set_all_visible();
            Ok(Effect::LsnKept)
        }
        _ => change.unexpected_block(),
    }
}

fn multi_insert(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    let flags = main.u8()?;
    main.skip(1)?; // padding
    let count = main.u16()?;
    init_if_asked(change, page);
    let mut rows = Rows::of(change);
    if change.info() & XLOG_HEAP_INIT_PAGE != 0 {
        // On a new page the rows are numbered through; else their numbers are listed.
        let mut items = page.appender()?;
        for offset in 1..=count {
            let (tuple, values) = rows.next(offset)?;
            tuple.append(&mut items, values)?;
        }
        items.finish();
    } else {
        for offset in Offsets::read(&mut main, usize::from(count))?.iter() {
            let (tuple, values) = rows.next(offset)?;
            tuple.add(page, offset, values)?;
        }
    }
    Change::finish(rows.rest)?;
    if flags & flag::INSERT_ALL_VISIBLE_CLEARED != 0 {
        page.clear_all_visible();
    }
    if flags & flag::INSERT_ALL_FROZEN_SET != 0 {
        page.set_all_visible();
    }
    Ok(Effect::Changed)
}

/// The rows of a multi-insert.
struct Rows<'a> {
    xid: u32,
    block: u32,
    data_len: usize,
    rest: Cursor<'a>,
}

impl<'a> Rows<'a> {
    fn of(change: &Change<'a>) -> Self {
        let rest = change.data();
        Rows {
            xid: change.xid(),
            block: change.block.blkno,
            data_len: rest.left(),
            rest,
        }
    }

    /// Reads the next row, which gets the line pointer `offset`: `xl_multi_insert_tuple` and what follows it.
    #[inline]
    fn next(&mut self, offset: u16) -> Result<(NewTuple, &'a [u8]), Fault> {
        // Each row's header stands at an even place.
        if !(self.data_len - self.rest.left()).is_multiple_of(2) {
            self.rest.skip(1)?;
        }
        let [l0, l1, m0, m1, n0, n1, hoff] = self.rest.array()?;
        let tuple = NewTuple {
            infomask2: u16::from_le_bytes([m0, m1]),
            infomask: u16::from_le_bytes([n0, n1]),
            hoff,
            xmin: self.xid,
            xmax: 0,
            ctid: Tid::new(self.block, offset),
        };
        let values = self.rest.bytes(usize::from(u16::from_le_bytes([l0, l1])))?;
        Ok((tuple, values))
    }
}

fn lock_updated(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    let (xmax, offset, infobits) = (main.u32()?, main.u16()?, main.u8()?);
    let mut tuple = HeapTuple::of(page, offset)?;
    tuple.clear_xmax_bits();
    tuple.set_xmax_bits(infobits);
    tuple.set_xmax(xmax);
    Ok(Effect::Changed)
}
