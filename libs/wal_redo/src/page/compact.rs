//! Closing gaps between items (`PageRepairFragmentation` and its relatives for the heap).

use std::ops::Range;

use smallvec::SmallVec;

use super::{
    FreeLines, HEADER_LEN, ITEM_ID_LEN, ItemId, ItemState, PAGE_SIZE, Page, PageBuf, item_id_at, maxalign,
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
    /// Where it ends.
    end: u16,
}

/// Items as runs, for as long as each item lies before the one with the number before: so they lie when first added.
struct Runs {
    bounds: ItemsBounds,
    runs: SmallVec<[Run; 32]>,
    /// Where each run starts but the last one.
    starts: SmallVec<[u16; 32]>,
    /// Where the last item starts.
    start: usize,
    /// No item broke the order.
    in_order: bool,
}

impl Runs {
    fn new(bounds: ItemsBounds) -> Self {
        Runs {
            bounds,
            runs: SmallVec::new(),
            starts: SmallVec::new(),
            start: bounds.end,
            in_order: true,
        }
    }

    /// Adds the item with the next number.
    #[inline]
    fn add(&mut self, item: Kept) {
        let end = item.end();
        if end != self.start || self.runs.is_empty() {
            self.begin(item.number, end);
        }
        self.start = usize::from(item.offset);
    }

    fn begin(&mut self, first: u16, end: usize) {
        self.in_order &= end <= self.start;
        if !self.runs.is_empty() {
            self.starts.push(self.start as u16);
        }
        self.runs.push(Run {
            first,
            end: end as u16,
        });
    }

    fn start(&self, run: usize) -> usize {
        self.starts
            .get(run)
            .map_or(self.start, |start| usize::from(*start))
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
        let bounds = self.items_bounds();
        let mut runs = Runs::new(bounds);
        let mut unused = 0;
        let mut last_used = 0;
        let (ids, _) = self.raw[HEADER_LEN..].as_chunks_mut::<ITEM_ID_LEN>();
        for (number, raw) in (1..=count).zip(ids) {
            let id = ItemId::from_raw(u32::from_le_bytes(*raw));
            if id.state == ItemState::Unused {
                *raw = ItemId::UNUSED.to_raw().to_le_bytes();
                unused += 1;
                continue;
            }
            last_used = number;
            if id.has_storage() {
                runs.add(bounds.kept(number, id)?);
            }
        }
        if runs.in_order {
            self.close_gaps(&runs, last_used);
        } else {
            self.compact(&self.kept_items(count)?)?;
        }
        self.set_lower(HEADER_LEN + ITEM_ID_LEN * usize::from(last_used));
        unused -= count - last_used;
        self.set_has_free_lines(if unused > 0 {
            FreeLines::Some
        } else {
            FreeLines::None
        });
        Ok(())
    }

    /// Moves runs of items towards the end of the items' part. The last line pointer in use has the number `last`.
    fn close_gaps(&mut self, runs: &Runs, last: u16) {
        let mut end = runs.bounds.end;
        for (index, run) in runs.runs.iter().enumerate() {
            let (start, run_end) = (runs.start(index), usize::from(run.end));
            let shift = end - run_end;
            end = start + shift;
            if shift == 0 {
                continue;
            }
            self.raw.copy_within(start..run_end, end);
            let behind = runs.runs.get(index + 1).map_or(last + 1, |next| next.first);
            let ids = item_id_at(run.first)..item_id_at(behind);
            for raw in self.raw[ids].as_chunks_mut::<ITEM_ID_LEN>().0 {
                let id = u32::from_le_bytes(*raw);
                if ItemId::from_raw(id).has_storage() {
                    // The offset stands in the lowest bits, and stays within the page.
                    *raw = (id + shift as u32).to_le_bytes();
                }
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
