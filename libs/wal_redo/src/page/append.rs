//! Many heap items added to a page in a row, each under the line pointer behind the last.

use super::{HEADER_LEN, HEAP_ITEMS_MAX, ITEM_ID_LEN, ItemId, ItemState, NO_ROOM, Page, maxalign};
use crate::fault::Fault;

/// Adds items behind all others. The page's own pointers change only at [`Self::finish`].
pub(crate) struct Appender<'p> {
    page: Page<'p>,
    /// Number of the item added last.
    last: u16,
    upper: usize,
}

impl Page<'_> {
    /// For adding heap items behind all others.
    pub(crate) fn appender(&mut self) -> Result<Appender<'_>, Fault> {
        self.check_pointers()?;
        Ok(Appender {
            last: self.max_offset(),
            upper: self.upper(),
            page: Page::new(self.raw),
        })
    }
}

impl Appender<'_> {
    /// Makes room for an item of `len` bytes. They are the caller's to fill.
    #[inline]
    pub fn append(&mut self, len: usize) -> Result<&mut [u8], Fault> {
        let id_at = HEADER_LEN + ITEM_ID_LEN * usize::from(self.last);
        let upper = self
            .upper
            .checked_sub(maxalign(len))
            .filter(|upper| id_at + ITEM_ID_LEN <= *upper && self.last < HEAP_ITEMS_MAX)
            .ok_or(NO_ROOM)?;
        let id = ItemId {
            offset: upper as u16,
            state: ItemState::Normal,
            len: len as u16,
        };
        self.page.raw[id_at..id_at + ITEM_ID_LEN].copy_from_slice(&id.to_raw().to_le_bytes());
        self.last += 1;
        self.upper = upper;
        Ok(&mut self.page.raw[upper..upper + len])
    }

    /// Makes the items part of the page.
    pub fn finish(mut self) {
        self.page
            .set_lower(HEADER_LEN + ITEM_ID_LEN * usize::from(self.last));
        self.page.set_upper(self.upper);
    }
}
