//! Page splits. The right page's tuples are in the record; the left page keeps the first of its own, with
//! the new tuple among them if it belongs there.

use super::page::{BtreePage, NONE, Opaque, flag};
use super::posting;
use crate::change::{Change, Effect};
use crate::fault::Fault;
use crate::index_tuple;
use crate::page::{Page, maxalign};

/// The page that the tuple went to for whose sake the split was made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NewItem {
    Left,
    Right,
}

/// `xl_btree_split`.
struct Record {
    level: u32,
    /// First of the old page's items that goes right.
    first_right: u16,
    /// Number the new tuple would have on a page large enough.
    new_item: u16,
    /// If not 0, the new tuple splits the posting list before it at this index.
    posting_offset: u16,
}

pub(super) fn redo(change: &Change<'_>, page: &mut Page<'_>, side: NewItem) -> Result<Effect, Fault> {
    let mut main = change.main();
    let record = Record {
        level: main.u32()?,
        first_right: main.u16()?,
        new_item: main.u16()?,
        posting_offset: main.u16()?,
    };
    match change.block.id {
        0 => left(change, page, &record, side)?,
        1 => {
            let next = change.other(2).map_or(NONE, |block| block.blkno);
            page.init_btree(Opaque::linked(change.blkno_of(0)?, next, record.level))?;
            page.restore_tuples(change.block.data)?;
        }
        2 => Opaque {
            prev: change.blkno_of(1)?,
            ..Opaque::read(page)?
        }
        .write(page)?,
        3 if record.level > 0 => return super::clear_incomplete_split(page),
        _ => return change.unexpected_block(),
    }
    Ok(Effect::Changed)
}

fn left(change: &Change<'_>, page: &mut Page<'_>, record: &Record, side: NewItem) -> Result<(), Fault> {
    let mut copy = *page.bytes();
    let mut old = Page::new(&mut copy);
    let mut data = change.data();
    let mut aligned_tuple = || -> Result<&[u8], Fault> {
        let len = maxalign(index_tuple::trimmed(data.rest())?.len());
        Ok(data.bytes(len)?)
    };
    let mut new_item = None;
    if side == NewItem::Left || record.posting_offset != 0 {
        let mut tuple = posting::NewTuple::copy(aligned_tuple()?)?;
        if record.posting_offset != 0 {
            let number = record.new_item.wrapping_sub(1);
            posting::swap(&mut old, number, record.posting_offset, &mut tuple)?;
        }
        new_item = Some(tuple).filter(|_| side == NewItem::Left);
    }
    let high_key = aligned_tuple()?;
    Change::finish(data)?;

    page.reset_keeping_special()?;
    page.insert_item(1, high_key)?;
    let mut opaque = Opaque::read(&old)?;
    for number in opaque.first_data_item()..record.first_right {
        if let Some(tuple) = new_item.take_if(|_| number == record.new_item) {
            page.insert_item(page.max_offset() + 1, tuple.bytes())?;
        }
        page.insert_item(page.max_offset() + 1, old.item(number)?)?;
    }
    if let Some(tuple) = new_item {
        if record.new_item != record.first_right {
            return Err(Fault::Record("the new tuple's place is not on the left page"));
        }
        page.insert_item(page.max_offset() + 1, tuple.bytes())?;
    }
    opaque.flags = flag::INCOMPLETE_SPLIT | if record.level == 0 { flag::LEAF } else { 0 };
    opaque.next = change.blkno_of(1)?;
    opaque.cycle_id = 0;
    opaque.write(page)
}
