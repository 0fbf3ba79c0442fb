//! Updates: the old row gets its deleter and a link, the new row is added. On one page or on two.

use std::ops::Range;

use postgres_ffi::cursor::Cursor;

use super::flag;
use super::tuple::{HEADER_LEN, HeapTuple, NewTuple, Tid};
use crate::change::{Change, Effect};
use crate::fault::Fault;
use crate::page::Page;

/// Whether the new row is in the same heap-only chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Hot,
    Cold,
}

/// `xl_heap_update`.
struct Record {
    old_xmax: u32,
    old_offset: u16,
    old_infobits: u8,
    flags: u8,
    new_xmax: u32,
    new_offset: u16,
}

impl Record {
    fn read(mut main: Cursor<'_>) -> Result<Self, Fault> {
        Ok(Record {
            old_xmax: main.u32()?,
            old_offset: main.u16()?,
            old_infobits: main.u8()?,
            flags: main.u8()?,
            new_xmax: main.u32()?,
            new_offset: main.u16()?,
        })
    }
}

pub(super) fn redo(change: &Change<'_>, page: &mut Page<'_>, kind: Kind) -> Result<Effect, Fault> {
    let record = Record::read(change.main())?;
    let two_pages = change.other(1).is_some();
    if two_pages && kind == Kind::Hot {
        return Err(Fault::Record("a heap-only update over two pages"));
    }
    match change.block.id {
        0 if two_pages => {
            super::init_if_asked(change, page);
            add_new(change, page, &record, None)?;
        }
        0 => {
            let old = mark_old(change, page, &record, kind)?;
            add_new(change, page, &record, Some(old))?;
        }
        1 => {
            mark_old(change, page, &record, kind)?;
        }
        _ => return change.unexpected_block(),
    }
    Ok(Effect::Changed)
}

/// The old row, after its header was changed: where it lies, and where its values start.
struct OldRow {
    range: Range<usize>,
    hoff: usize,
}

fn mark_old(change: &Change<'_>, page: &mut Page<'_>, record: &Record, kind: Kind) -> Result<OldRow, Fault> {
    let new_block = change.blkno_of(0)?;
    let mut tuple = HeapTuple::of(page, record.old_offset)?;
    tuple.clear_xmax_bits();
    match kind {
        Kind::Hot => tuple.set_hot_updated(),
        Kind::Cold => tuple.clear_hot_updated(),
    }
    tuple.set_xmax_bits(record.old_infobits);
    tuple.set_xmax(record.old_xmax);
    tuple.set_first_cmax();
    tuple.set_ctid(Tid::new(new_block, record.new_offset));
    let hoff = tuple.hoff();
    page.set_prunable(change.xid());
    if record.flags & flag::UPDATE_OLD_ALL_VISIBLE_CLEARED != 0 {
        page.clear_all_visible();
    }
    Ok(OldRow {
        range: page.item_range(record.old_offset)?,
        hoff,
    })
}

fn add_new(
    change: &Change<'_>,
    page: &mut Page<'_>,
    record: &Record,
    old: Option<OldRow>,
) -> Result<(), Fault> {
    let mut data = change.data();
    let length_if = |bit: u8, data: &mut Cursor<'_>| match record.flags & bit {
        0 => Ok(0),
        _ => data.u16().map(usize::from),
    };
    let prefix_len = length_if(flag::UPDATE_PREFIX_FROM_OLD, &mut data)?;
    let suffix_len = length_if(flag::UPDATE_SUFFIX_FROM_OLD, &mut data)?;
    let tuple = NewTuple {
        infomask2: data.u16()?,
        infomask: data.u16()?,
        hoff: data.u8()?,
        xmin: change.xid(),
        xmax: record.new_xmax,
        ctid: Tid::new(change.block.blkno, record.new_offset),
    };
    if prefix_len + suffix_len == 0 {
        tuple.add(page, record.new_offset, data.rest())?;
    } else {
        let old = old.ok_or(Fault::Record("parts of a row on another page"))?;
        let parts = Parts::new(&old, &tuple, prefix_len, suffix_len, &mut data)?;
        let rest_len = parts.bitmap.len() + prefix_len + data.left() + suffix_len;
        let place = tuple.reserve(page, record.new_offset, rest_len)?;
        parts.write(page, place.start, data.rest());
    }
    if record.flags & flag::UPDATE_NEW_ALL_VISIBLE_CLEARED != 0 {
        page.clear_all_visible();
    }
    Ok(())
}

/// A new row put together from the record and the ends of the old row on the same page.
struct Parts<'a> {
    /// Null bitmap and padding up to the first value; with no prefix it is part of the middle.
    bitmap: &'a [u8],
    prefix: Range<usize>,
    suffix: Range<usize>,
}

impl<'a> Parts<'a> {
    fn new(
        old: &OldRow,
        new: &NewTuple,
        prefix_len: usize,
        suffix_len: usize,
        data: &mut Cursor<'a>,
    ) -> Result<Self, Fault> {
        const TOO_LONG: Fault = Fault::Record("more taken from the old row than it has");
        let bitmap = if prefix_len > 0 {
            let len = usize::from(new.hoff)
                .checked_sub(HEADER_LEN)
                .ok_or(Fault::Record("impossible header length of a tuple"))?;
            data.bytes(len)?
        } else {
            &[]
        };
        let values = old.range.start + old.hoff;
        let prefix = values..values + prefix_len;
        let suffix_start = old.range.end.checked_sub(suffix_len).ok_or(TOO_LONG)?;
        if (prefix_len > 0 && prefix.end > old.range.end) || suffix_start < old.range.start {
            return Err(TOO_LONG);
        }
        Ok(Parts {
            bitmap,
            prefix: if prefix_len > 0 { prefix } else { 0..0 },
            suffix: suffix_start..old.range.end,
        })
    }

    /// Writes the row behind its fixed header; the place was reserved for exactly these parts.
    fn write(&self, page: &mut Page<'_>, start: usize, middle: &[u8]) {
        let raw = page.bytes_mut();
        let mut at = start;
        raw[at..at + self.bitmap.len()].copy_from_slice(self.bitmap);
        at += self.bitmap.len();
        raw.copy_within(self.prefix.clone(), at);
        at += self.prefix.len();
        raw[at..at + middle.len()].copy_from_slice(middle);
        at += middle.len();
        raw.copy_within(self.suffix.clone(), at);
    }
}
