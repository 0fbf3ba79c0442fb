//! Removing and replacing items of index pages (`PageIndexTupleDelete` and its relatives).

use smallvec::SmallVec;

use super::compact::{Kept, KeptItems};
use super::{HEADER_LEN, ITEM_ID_LEN, ItemId, Page, item_id_at, maxalign};
use crate::fault::Fault;

impl Page<'_> {
    /// An item found to lie properly in the items' part of the page.
    fn placed(&self, number: u16, id: ItemId) -> Result<Kept, Fault> {
        let item = self.items_bounds().kept(number, id)?;
        if !id.offset.is_multiple_of(8) {
            return Err(Fault::Item {
                offset: number,
                state: "is not aligned",
            });
        }
        Ok(item)
    }

    /// Removes an item and its line pointer; the later line pointers move down by one
    /// (`PageIndexTupleDelete`).
    pub(crate) fn delete_item(&mut self, number: u16) -> Result<(), Fault> {
        self.check_aligned_pointers()?;
        let item = self.placed(number, self.item_id(number)?)?;
        let lower = self.lower();
        let first = item_id_at(number);
        self.raw.copy_within(first + ITEM_ID_LEN..lower, first);
        self.set_lower(lower - ITEM_ID_LEN);
        self.shift_items_before(usize::from(item.offset), Shift::Up(usize::from(item.aligned_len)))
    }

    /// Removes an item but not its line pointer, unless that is the last one
    /// (`PageIndexTupleDeleteNoCompact`).
    pub(crate) fn delete_item_keeping_numbers(&mut self, number: u16) -> Result<(), Fault> {
        self.check_aligned_pointers()?;
        let item = self.placed(number, self.item_id(number)?)?;
        if number < self.max_offset() {
            self.set_item_id(number, ItemId::UNUSED)?;
        } else {
            self.set_lower(self.lower() - ITEM_ID_LEN);
        }
        self.shift_items_before(usize::from(item.offset), Shift::Up(usize::from(item.aligned_len)))
    }

    /// Removes several items with their line pointers; `numbers` ascend (`PageIndexMultiDelete`).
    pub(crate) fn delete_items(
        &mut self,
        numbers: impl DoubleEndedIterator<Item = u16> + ExactSizeIterator,
    ) -> Result<(), Fault> {
        // PostgreSQL removes up to two one by one; the items' order on the page can depend on it.
        if numbers.len() <= 2 {
            for number in numbers.rev() {
                self.delete_item(number)?;
            }
            return Ok(());
        }
        self.check_aligned_pointers()?;
        let mut kept = KeptItems::new();
        let mut ids: SmallVec<[ItemId; 408]> = SmallVec::new();
        let mut to_delete = numbers.peekable();
        for number in 1..=self.max_offset() {
            let id = self.item_id(number)?;
            let item = self.placed(number, id)?;
            if to_delete.next_if_eq(&number).is_some() {
                continue;
            }
            ids.push(id);
            kept.push(Kept {
                number: ids.len() as u16,
                ..item
            });
        }
        if to_delete.next().is_some() {
            return Err(Fault::Record("item numbers to delete are not in order"));
        }
        self.set_lower(HEADER_LEN + ITEM_ID_LEN * ids.len());
        for (number, id) in (1..).zip(&ids) {
            self.set_item_id(number, *id)?;
        }
        self.compact(&kept)
    }

    /// Replaces an item in its place, moving the ones before it when the length changes
    /// (`PageIndexTupleOverwrite`).
    pub(crate) fn replace_item(&mut self, number: u16, item: &[u8]) -> Result<(), Fault> {
        self.check_aligned_pointers()?;
        let id = self.item_id(number)?;
        let old = self.placed(number, id)?;
        let (old_offset, old_len) = (usize::from(old.offset), usize::from(old.aligned_len));
        let new_len = maxalign(item.len());
        if new_len > old_len + (self.upper() - self.lower()) {
            return Err(super::NO_ROOM);
        }
        if new_len < old_len {
            self.shift_items_before(old_offset, Shift::Up(old_len - new_len))?;
        } else if new_len > old_len {
            self.shift_items_before(old_offset, Shift::Down(new_len - old_len))?;
        }
        let start = old.end() - new_len;
        self.set_item_id(
            number,
            ItemId {
                offset: start as u16,
                len: item.len() as u16,
                ..id
            },
        )?;
        self.put(start, item)
    }

    /// Moves the items between `pd_upper` and `end`, and `pd_upper`, with the line pointers of all
    /// items that start at or before `end`.
    fn shift_items_before(&mut self, end: usize, shift: Shift) -> Result<(), Fault> {
        let upper = self.upper();
        let moved = |offset: usize| match shift {
            Shift::Up(by) => offset + by,
            Shift::Down(by) => offset - by,
        };
        self.raw.copy_within(upper..end, moved(upper));
        self.set_upper(moved(upper));
        for number in 1..=self.max_offset() {
            let id = self.item_id(number)?;
            let offset = usize::from(id.offset);
            if !id.has_storage() || offset > end {
                continue;
            }
            if offset < upper {
                return Err(Fault::Item {
                    offset: number,
                    state: "lies outside the items' part of the page",
                });
            }
            self.move_line_pointer(number, moved(offset))?;
        }
        Ok(())
    }
}

/// Direction and distance in bytes.
#[derive(Clone, Copy)]
enum Shift {
    /// Towards the end of the page.
    Up(usize),
    /// Towards its start, into the free space; the caller has checked that it is large enough.
    Down(usize),
}
