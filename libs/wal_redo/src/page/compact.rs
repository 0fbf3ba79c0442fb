//! Closing gaps between items (`PageRepairFragmentation` and its relatives for the heap).

use smallvec::SmallVec;

use super::{FreeLines, HEADER_LEN, ITEM_ID_LEN, ItemId, ItemState, PAGE_SIZE, Page, maxalign};
use crate::fault::Fault;

/// An item that stays: its line pointer and where it lies now.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub number: u16,
    pub offset: u16,
    pub aligned_len: u16,
}

/// More items than any page of PostgreSQL holds (`MaxIndexTuplesPerPage`) still fit, only slower.
pub(super) type KeptItems = SmallVec<[Kept; 408]>;

impl Page<'_> {
    /// Closes the gaps that removed items left and drops unused line pointers from the end.
    pub(crate) fn repair_fragmentation(&mut self) -> Result<(), Fault> {
        self.check_aligned_pointers()?;
        let count = self.max_offset();
        let mut kept = KeptItems::new();
        let mut unused = 0;
        let mut last_used = 0;
        for number in 1..=count {
            let id = self.item_id(number)?;
            if id.state == ItemState::Unused {
                self.set_item_id(number, ItemId::UNUSED)?;
                unused += 1;
                continue;
            }
            last_used = number;
            if id.has_storage() {
                kept.push(self.kept(number, id)?);
            }
        }
        self.compact(&kept)?;
        self.set_lower(HEADER_LEN + ITEM_ID_LEN * usize::from(last_used));
        unused -= count - last_used;
        self.set_has_free_lines(if unused > 0 {
            FreeLines::Some
        } else {
            FreeLines::None
        });
        Ok(())
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

    /// An item to be kept, checked to lie between `pd_upper` and `pd_special`.
    pub(super) fn kept(&self, number: u16, id: ItemId) -> Result<Kept, Fault> {
        let aligned_len = maxalign(usize::from(id.len));
        let offset = usize::from(id.offset);
        if offset < self.upper() || offset + aligned_len > self.special() {
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

    /// Moves the kept items to the end of the items' part, the first one last in the page, without
    /// gaps, and sets their line pointers and `pd_upper`.
    pub(super) fn compact(&mut self, kept: &[Kept]) -> Result<(), Fault> {
        let special = self.special();
        let total: usize = kept.iter().map(|item| usize::from(item.aligned_len)).sum();
        if self.lower() + total > special {
            return Err(Fault::Page("items overlap"));
        }
        // Items that lie in reverse order of their numbers, as when first added, move only towards the
        // end, past nothing that is still to be moved. Else work from a copy.
        let presorted = kept.is_sorted_by(|a, b| a.offset > b.offset);
        if presorted {
            self.compact_in_place(kept)
        } else {
            self.compact_from_copy(kept)
        }
    }

    fn compact_in_place(&mut self, kept: &[Kept]) -> Result<(), Fault> {
        let mut target_end = self.special();
        let mut rest = kept;
        while let Some(first) = rest.first() {
            // A run of adjacent items moves as one.
            let end = usize::from(first.offset) + usize::from(first.aligned_len);
            let mut start = usize::from(first.offset);
            let mut run = 1;
            while let Some(next) = rest.get(run)
                && usize::from(next.offset) + usize::from(next.aligned_len) == start
            {
                start = usize::from(next.offset);
                run += 1;
            }
            let shift = target_end.checked_sub(end).ok_or(Fault::Page("items overlap"))?;
            if shift > 0 {
                self.raw.copy_within(start..end, start + shift);
                for item in &rest[..run] {
                    self.move_line_pointer(item.number, usize::from(item.offset) + shift)?;
                }
            }
            target_end = start + shift;
            rest = &rest[run..];
        }
        self.set_upper(target_end);
        Ok(())
    }

    fn compact_from_copy(&mut self, kept: &[Kept]) -> Result<(), Fault> {
        let mut copy = [0; PAGE_SIZE];
        let items = self.upper()..self.special();
        copy[items.clone()].copy_from_slice(&self.raw[items]);
        let mut end = self.special();
        for item in kept {
            let (from, len) = (usize::from(item.offset), usize::from(item.aligned_len));
            let start = end - len; // The sum of the lengths was checked.
            self.raw[start..end].copy_from_slice(&copy[from..from + len]);
            self.move_line_pointer(item.number, start)?;
            end = start;
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
