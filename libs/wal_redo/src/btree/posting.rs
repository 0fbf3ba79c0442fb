//! Posting lists: tuples with one key and many places in the heap, ascending.
//!
//! Such a tuple has [`index_tuple::AM_RESERVED_BIT`] and [`IS_POSTING`] set; its header's block number is
//! where the list starts in the tuple, and the header's offset number is the list's length.

use std::ops::Range;

use smallvec::SmallVec;

use super::page::{Opaque, flag};
use crate::change::{Change, Effect};
use crate::fault::Fault;
use crate::heap::tuple::Tid;
use crate::index_tuple::{self, AM_RESERVED_BIT, HEADER_LEN, SIZE_MASK};
use crate::offsets::Offsets;
use crate::page::{Page, maxalign};

const IS_POSTING: u16 = 0x2000;
const COUNT_MASK: u16 = 0x0fff;
const TID_LEN: usize = 6;
/// Longest tuple of a B-tree page in bytes (`BTMaxItemSize`).
const TUPLE_LEN_MAX: usize = 2704;

const NOT_POSTING: Fault = Fault::Page("an index tuple is not a posting list of the expected length");

/// Where a tuple's heap places are: in a list at its end, or one in its header.
struct Posting {
    /// Length of the tuple without the list.
    key_len: usize,
    tids: Range<usize>,
}

impl Posting {
    fn of(tuple: &[u8]) -> Result<Self, Fault> {
        let is_list =
            index_tuple::info(tuple)? & AM_RESERVED_BIT != 0 && index_tuple::offset(tuple)? & IS_POSTING != 0;
        if !is_list {
            return Ok(Posting {
                key_len: tuple.len(),
                tids: 0..TID_LEN,
            });
        }
        let start = index_tuple::block(tuple)? as usize;
        let count = usize::from(index_tuple::offset(tuple)? & COUNT_MASK);
        let tids = start..start.saturating_add(count * TID_LEN);
        if start < HEADER_LEN || count == 0 || tids.end > tuple.len() {
            return Err(NOT_POSTING);
        }
        Ok(Posting { key_len: start, tids })
    }

    /// Number of heap places.
    fn count(&self) -> usize {
        self.tids.len() / TID_LEN
    }
}

/// A tuple from a record, which may change before it is added.
pub(super) struct NewTuple(SmallVec<[u8; 256]>);

impl NewTuple {
    pub fn copy(raw: &[u8]) -> Result<Self, Fault> {
        if raw.len() < HEADER_LEN {
            return Err(Fault::Record("an index tuple is too short"));
        }
        Ok(NewTuple(SmallVec::from_slice(raw)))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Puts the new tuple's place into the list of item `number` at `index`, and the list's last into the new
/// tuple (`_bt_swap_posting`).
pub(super) fn swap(page: &mut Page<'_>, number: u16, index: u16, new: &mut NewTuple) -> Result<(), Fault> {
    let item = page.item_mut(number)?;
    let posting = Posting::of(index_tuple::trimmed(item)?)?;
    let index = usize::from(index);
    if index == 0 || index >= posting.count() {
        return Err(NOT_POSTING);
    }
    let tids = &mut item[posting.tids];
    let mut last = [0; TID_LEN];
    last.copy_from_slice(&tids[tids.len() - TID_LEN..]);
    let at = index * TID_LEN;
    tids.copy_within(at..tids.len() - TID_LEN, at + TID_LEN);
    tids[at..at + TID_LEN].copy_from_slice(&new.0[..TID_LEN]);
    new.0[..TID_LEN].copy_from_slice(&last);
    Ok(())
}

/// Takes the entries with these indexes out of the list of item `number` (`_bt_update_posting`).
pub(super) fn remove_entries(page: &mut Page<'_>, number: u16, removed: Offsets<'_>) -> Result<(), Fault> {
    let tuple = index_tuple::trimmed(page.item(number)?)?;
    let posting = Posting::of(tuple)?;
    let left = posting
        .count()
        .checked_sub(removed.len())
        .filter(|&left| left > 0 && left < posting.count())
        .ok_or(NOT_POSTING)?;
    let mut tids: SmallVec<[u8; TUPLE_LEN_MAX]> = SmallVec::new();
    let mut removed = removed.iter().peekable();
    for (index, tid) in tuple[posting.tids.clone()].chunks_exact(TID_LEN).enumerate() {
        if removed.next_if(|&next| usize::from(next) == index).is_none() {
            tids.extend_from_slice(tid);
        }
    }
    if tids.len() != left * TID_LEN {
        return Err(Fault::Record("entries to remove are not in order"));
    }
    let mut new: SmallVec<[u8; TUPLE_LEN_MAX]> = SmallVec::from_slice(&tuple[..posting.key_len]);
    form(&mut new, &tids)?;
    page.replace_item(number, &new)
}

/// Makes a tuple of a key and heap places (`_bt_form_posting`). `tuple` holds the key.
fn form(tuple: &mut SmallVec<[u8; TUPLE_LEN_MAX]>, tids: &[u8]) -> Result<(), Fault> {
    let key_len = tuple.len();
    let count = tids.len() / TID_LEN;
    if count > 1 {
        tuple.extend_from_slice(tids);
        tuple.resize(maxalign(tuple.len()), 0);
    }
    if tuple.len() > TUPLE_LEN_MAX || !key_len.is_multiple_of(8) {
        return Err(NOT_POSTING);
    }
    let mut info = index_tuple::info(tuple)? & !SIZE_MASK | tuple.len() as u16;
    if count > 1 {
        info |= AM_RESERVED_BIT;
        let header = Tid::new(key_len as u32, count as u16 | IS_POSTING);
        tuple[..TID_LEN].copy_from_slice(&header.0);
    } else {
        info &= !AM_RESERVED_BIT;
        tuple[..TID_LEN].copy_from_slice(tids);
    }
    tuple[6..8].copy_from_slice(&info.to_le_bytes());
    Ok(())
}

/// Runs of tuples with equal keys become posting lists; which runs, the record says.
pub(super) fn dedup(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let count = usize::from(change.main().u16()?);
    let intervals = Offsets::read(&mut change.data(), count * 2)?;
    let mut copy = *page.bytes();
    let old = Page::new(&mut copy);
    let mut opaque = Opaque::read(&old)?;
    page.reset_keeping_special()?;
    let first = opaque.first_data_item();
    if first > 1 {
        page.insert_item(1, old.item(1)?)?;
    }
    let last = old.max_offset();
    let mut number = first;
    let mut interval = 0;
    while number <= last {
        // An interval: number of its first item, and how many there are.
        let run = match intervals.get(interval * 2) {
            Some(base) if base == number => {
                interval += 1;
                intervals.get(interval * 2 - 1).unwrap_or(0)
            }
            _ => 1,
        };
        let end = number
            .checked_add(run)
            .filter(|&end| run > 0 && end - 1 <= last)
            .ok_or(Fault::Record("an interval runs past the last item"))?;
        add_merged(page, &old, number..end)?;
        number = end;
    }
    if interval != count {
        return Err(Fault::Record("an interval does not start where it should"));
    }
    opaque.flags &= !flag::HAS_GARBAGE;
    opaque.write(page)?;
    Ok(Effect::Changed)
}

/// Adds the items of a run, as one if they are several.
fn add_merged(page: &mut Page<'_>, old: &Page<'_>, run: Range<u16>) -> Result<(), Fault> {
    let number = page.max_offset() + 1;
    let base = index_tuple::trimmed(old.item(run.start)?)?;
    if run.len() == 1 {
        return page.insert_item(number, base);
    }
    let mut tids: SmallVec<[u8; TUPLE_LEN_MAX]> = SmallVec::new();
    for number in run {
        let tuple = index_tuple::trimmed(old.item(number)?)?;
        tids.extend_from_slice(&tuple[Posting::of(tuple)?.tids]);
        if tids.len() > TUPLE_LEN_MAX {
            return Err(NOT_POSTING);
        }
    }
    let mut merged = SmallVec::from_slice(&base[..Posting::of(base)?.key_len]);
    form(&mut merged, &tids)?;
    page.insert_item(number, &merged)
}
