//! Closing gaps between items (`PageRepairFragmentation` and its relatives for the heap).

use std::ops::Range;

use smallvec::SmallVec;

use super::{
    FreeLines, HEADER_LEN, ITEM_ID_LEN, ItemId, ItemState, PAGE_SIZE, Page, PageBuf, RawItemId, item_id_at,
    maxalign,
};
use crate::fault::Fault;

/// An item that stays: its line pointer and where it lies now.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub number: u16,
    pub offset: u16,
    pub aligned_len: u16,
}

impl Kept {
    /// Where the next item towards the end of the page begins, if there is no gap.
    pub fn end(&self) -> usize {
        usize::from(self.offset) + usize::from(self.aligned_len)
    }
}

/// The part of a page that items lie in, between `pd_upper` and `pd_special`, in bytes from the page's start.
#[derive(Clone, Copy)]
pub(super) struct ItemsBounds {
    start: usize,
    end: usize,
}

impl ItemsBounds {
    /// An item to be kept, checked to lie there.
    pub(super) fn kept(self, number: u16, id: ItemId) -> Result<Kept, Fault> {
        let aligned_len = maxalign(usize::from(id.len));
        let offset = usize::from(id.offset);
        if offset < self.start || offset + aligned_len > self.end {
            return Err(Fault::Item {
                offset: number,
                state: "lies outside the items' part of the page",
            });
        }
        Ok(Kept {
            number,
            offset: id.offset,
            aligned_len: aligned_len as u16,
        })
    }
}

/// Adjacent items in descending order.
#[derive(Clone, Copy)]
struct Run {
    /// Number of the first one.
    first: u16,
    /// Where the last one begins.
    start: u16,
    /// Where the first one ends.
    end: u16,
}

/// What a look at a page's line pointers, one after the other, has shown.
struct Lines {
    /// The items, if they are in order. That of the last ones is still to be ended.
    runs: SmallVec<[Run; 32]>,
    /// Number of the first item of the run under way, and where that ends.
    run_first: u16,
    run_end: u32,
    /// Where the last item begins.
    start: u32,
    /// Whether each item lies before the one with the number before: so they lie when first added.
    in_order: bool,
    /// Number of the last line pointer in use, 0 if there is none.
    last_used: u16,
    /// How many are not in use.
    unused: u16,
}

/// Line pointers looked at in one step.
const STEP: usize = 8;

impl Lines {
    fn new(end: usize) -> Self {
        Lines {
            runs: SmallVec::new(),
            run_first: 1,
            run_end: end as u32,
            start: end as u32,
            in_order: true,
            last_used: 0,
            unused: 0,
        }
    }

    /// Goes on with the next line pointers, of which `first` is the number of the first, if all are of items in the run under way;
    /// gives whether they are. Most are, and to find that out for some at once takes no branches.
    #[inline]
    fn go_on_in_run(&mut self, first: u16, raw: &[[u8; ITEM_ID_LEN]; STEP]) -> bool {
        let ids = raw.map(|raw| RawItemId(u32::from_le_bytes(raw)));
        let mut differing = ids[0].aligned_end() ^ self.start;
        for index in 1..STEP {
            differing |= ids[index].aligned_end() ^ ids[index - 1].offset();
        }
        for id in ids {
            differing |= id.state() ^ ItemState::Normal as u32;
        }
        if differing != 0 {
            return false;
        }
        self.last_used = first + STEP as u16 - 1;
        self.start = ids[STEP - 1].offset();
        true
    }

    /// Goes on with the next line pointer; clears it if it is not in use.
    #[inline]
    fn add(&mut self, number: u16, raw: &mut [u8; ITEM_ID_LEN]) {
        let id = RawItemId(u32::from_le_bytes(*raw));
        if id.state() == ItemState::Unused as u32 {
            *raw = ItemId::UNUSED.to_raw().to_le_bytes();
            self.unused += 1;
            return;
        }
        self.last_used = number;
        if id.len() == 0 {
            return;
        }
        if id.aligned_end() != self.start {
            self.in_order &= id.aligned_end() <= self.start;
            self.end_run();
            (self.run_first, self.run_end) = (number, id.aligned_end());
        }
        self.start = id.offset();
    }

    fn end_run(&mut self) {
        self.runs.push(Run {
            first: self.run_first,
            start: self.start as u16,
            end: self.run_end as u16,
        });
    }
}

/// More items than any page of PostgreSQL holds (`MaxIndexTuplesPerPage`) still fit, only slower.
pub(super) type KeptItems = SmallVec<[Kept; 408]>;

const OVERLAP: Fault = Fault::Page("items overlap");

impl Page<'_> {
    /// Closes the gaps that removed items left and drops unused line pointers from the end.
    pub(crate) fn repair_fragmentation(&mut self) -> Result<(), Fault> {
        self.check_aligned_pointers()?;
        let count = self.max_offset();
        let lines = self.look_at_lines();
        if lines.in_order {
            self.close_gaps(&lines);
        } else {
            self.compact(&self.kept_items(count)?)?;
        }
        self.set_lower(HEADER_LEN + ITEM_ID_LEN * usize::from(lines.last_used));
        let dropped = count - lines.last_used;
        self.set_has_free_lines(if lines.unused > dropped {
            FreeLines::Some
        } else {
            FreeLines::None
        });
        Ok(())
    }

    /// Looks at all line pointers; clears those that are not in use. The page's own pointers must have been checked.
    fn look_at_lines(&mut self) -> Lines {
        let bounds = self.items_bounds();
        let mut lines = Lines::new(bounds.end);
        let ids = HEADER_LEN..self.lower();
        let mut number = 1;
        let (steps, rest) = self.raw[ids]
            .as_chunks_mut::<ITEM_ID_LEN>()
            .0
            .as_chunks_mut::<STEP>();
        for step in steps {
            if !lines.go_on_in_run(number, step) {
                for (number, raw) in (number..).zip(step) {
                    lines.add(number, raw);
                }
            }
            number += STEP as u16;
        }
        for (number, raw) in (number..).zip(rest) {
            lines.add(number, raw);
        }
        lines.end_run();
        lines.in_order &= lines.start as usize >= bounds.start;
        lines
    }

    /// Moves runs of items towards the end of the items' part. They must be in order.
    fn close_gaps(&mut self, lines: &Lines) {
        let mut end = self.special();
        for (index, run) in lines.runs.iter().enumerate() {
            let (start, run_end) = (usize::from(run.start), usize::from(run.end));
            let shift = end - run_end;
            end = start + shift;
            if shift == 0 {
                continue;
            }
            self.raw.copy_within(start..run_end, end);
            let behind = lines
                .runs
                .get(index + 1)
                .map_or(lines.last_used + 1, |next| next.first);
            let ids = item_id_at(run.first)..item_id_at(behind);
            for raw in self.raw[ids].as_chunks_mut::<ITEM_ID_LEN>().0 {
                let id = RawItemId(u32::from_le_bytes(*raw));
                // The offset stands in the lowest bits, and stays within the page.
                let shift = if id.len() == 0 { 0 } else { shift as u32 };
                *raw = (id.0 + shift).to_le_bytes();
            }
        }
        self.set_upper(end);
    }

    /// The first `count` items, those that have bytes.
    fn kept_items(&self, count: u16) -> Result<KeptItems, Fault> {
        let bounds = self.items_bounds();
        let mut kept = KeptItems::new();
        for number in 1..=count {
            let id = self.item_id(number)?;
            if id.has_storage() {
                kept.push(bounds.kept(number, id)?);
            }
        }
        Ok(kept)
    }

    /// Drops unused line pointers from the end, but never the first one
    /// (`PageTruncateLinePointerArray`).
    pub(crate) fn truncate_line_pointers(&mut self) -> Result<(), Fault> {
        let unused = |page: &Self, number| page.item_id(number).map(|id| id.state == ItemState::Unused);
        let mut count = self.max_offset();
        while count > 1 && unused(self, count)? {
            count -= 1;
        }
        let mut free = FreeLines::None;
        for number in 1..=count {
            if unused(self, number)? {
                free = FreeLines::Some;
                break;
            }
        }
        if count > 0 {
            self.set_lower(HEADER_LEN + ITEM_ID_LEN * usize::from(count));
        }
        self.set_has_free_lines(free);
        Ok(())
    }

    pub(super) fn items_bounds(&self) -> ItemsBounds {
        ItemsBounds {
            start: self.upper(),
            end: self.special(),
        }
    }

    /// Moves the kept items to the end of the items' part, the first one last in the page, without
    /// gaps, and sets their line pointers and `pd_upper`.
    pub(super) fn compact(&mut self, kept: &[Kept]) -> Result<(), Fault> {
        let special = self.special();
        let total: usize = kept.iter().map(|item| usize::from(item.aligned_len)).sum();
        if self.lower() + total > special {
            return Err(OVERLAP);
        }
        // The first ones often lie where they shall.
        let mut end = special;
        let settled = kept.iter().take_while(|item| {
            let in_place = item.end() == end;
            if in_place {
                end = usize::from(item.offset);
            }
            in_place
        });
        let moved = &kept[settled.count()..];
        // Items that lie in reverse order of their numbers, as when first added, move only towards the
        // end, past nothing that is still to be moved. Else work from a copy.
        if moved.is_sorted_by(|a, b| a.offset > b.offset) {
            self.move_runs(moved, end, |raw, run, to| {
                if to < run.start {
                    return Err(OVERLAP);
                }
                raw.copy_within(run, to);
                Ok(())
            })
        } else {
            let mut copy = [0; PAGE_SIZE];
            let items = self.upper()..special;
            copy[items.clone()].copy_from_slice(&self.raw[items]);
            self.move_runs(moved, end, |raw, run, to| {
                raw[to..to + run.len()].copy_from_slice(&copy[run]);
                Ok(())
            })
        }
    }

    /// Moves items to where they end at `end`, the first one last, and sets their line pointers and `pd_upper`.
    /// `copy` gets the bytes that adjacent items have now, and where they shall begin.
    fn move_runs(
        &mut self,
        mut items: &[Kept],
        mut end: usize,
        copy: impl Fn(&mut PageBuf, Range<usize>, usize) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        while let Some(first) = items.first() {
            let mut start = usize::from(first.offset);
            let mut count = 1;
            while let Some(next) = items.get(count)
                && next.end() == start
            {
                start = usize::from(next.offset);
                count += 1;
            }
            let (run, rest) = items.split_at(count);
            let len = first.end() - start;
            let target = end.checked_sub(len).ok_or(OVERLAP)?;
            if target != start {
                copy(self.raw, start..first.end(), target)?;
                for item in run {
                    let to = usize::from(item.offset) - start + target;
                    self.move_line_pointer(item.number, to)?;
                }
            }
            end = target;
            items = rest;
        }
        self.set_upper(end);
        Ok(())
    }

    pub(super) fn move_line_pointer(&mut self, number: u16, to: usize) -> Result<(), Fault> {
        let id = self.item_id(number)?;
        self.set_item_id(
            number,
            ItemId {
                offset: to as u16,
                ..id
            },
        )
    }
}

#[cfg(test)]
mod tests;
