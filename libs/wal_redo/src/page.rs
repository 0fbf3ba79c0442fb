//! A page being changed: the operations of PostgreSQL's `bufpage.c`, with the layout they leave.
//!
//! Invariants
//! * No operation writes outside the 8192 bytes, whatever the page and the arguments hold.
//! * An operation that fails reports what does not fit; it may leave the page half changed, so the
//!   caller throws the page away.
//! * Items lie in the order in which PostgreSQL would have put them: pages are compared byte by byte.

mod append;
mod compact;
mod index;

use utils::lsn::Lsn;

use crate::fault::Fault;

pub(crate) use self::append::Appender;

/// Size of a page in bytes (`BLCKSZ`).
pub const PAGE_SIZE: usize = 8192;
/// A page's bytes.
pub type PageBuf = [u8; PAGE_SIZE];

/// Length of the page header in bytes (`SizeOfPageHeaderData`).
pub const HEADER_LEN: usize = 24;
const ITEM_ID_LEN: usize = 4;
/// Page size and layout version 4, as `PageInit` writes them.
const SIZE_AND_VERSION: u16 = PAGE_SIZE as u16 | 4;
/// Highest item number of a heap page (`MaxHeapTuplesPerPage`).
pub const HEAP_ITEMS_MAX: u16 = 291;

const PD_HAS_FREE_LINES: u16 = 0x0001;
const PD_PAGE_FULL: u16 = 0x0002;
const PD_ALL_VISIBLE: u16 = 0x0004;

/// Offsets of the header's fields in bytes.
mod at {
    pub const FLAGS: usize = 10;
    pub const LOWER: usize = 12;
    pub const UPPER: usize = 14;
    pub const SPECIAL: usize = 16;
    pub const SIZE_AND_VERSION: usize = 18;
    pub const PRUNE_XID: usize = 20;
}

/// Rounds up to the alignment of items (`MAXALIGN`).
pub const fn maxalign(len: usize) -> usize {
    (len + 7) & !7
}

/// State of a line pointer (`lp_flags`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum ItemState {
    /// Free for a new item.
    Unused = 0,
    /// Points to an item.
    Normal = 1,
    /// Points to another line pointer (heap-only chains).
    Redirect = 2,
    /// Known to be dead; may or may not still have an item.
    Dead = 3,
}

/// A line pointer (`ItemIdData`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ItemId {
    /// Where the item starts, in bytes from the page's start; of a redirect, the item it points to.
    pub offset: u16,
    /// State.
    pub state: ItemState,
    /// Length of the item in bytes, 0 if there is none.
    pub len: u16,
}

impl ItemId {
    const UNUSED: ItemId = ItemId {
        offset: 0,
        state: ItemState::Unused,
        len: 0,
    };

    fn from_raw(raw: u32) -> Self {
        let raw = RawItemId(raw);
        ItemId {
            offset: raw.offset() as u16,
            state: match raw.state() {
                0 => ItemState::Unused,
                1 => ItemState::Normal,
                2 => ItemState::Redirect,
                _ => ItemState::Dead,
            },
            len: raw.len() as u16,
        }
    }

    fn to_raw(self) -> u32 {
        u32::from(self.offset) & 0x7fff | (self.state as u32) << 15 | u32::from(self.len) << 17
    }

    /// Whether bytes of the page belong to it (`ItemIdHasStorage`).
    pub fn has_storage(self) -> bool {
        self.len != 0
    }

    /// Where its bytes are; checked only when used.
    fn range(self) -> std::ops::Range<usize> {
        usize::from(self.offset)..usize::from(self.offset) + usize::from(self.len)
    }
}

/// A line pointer as it stands in the page: 15 bits of offset, 2 of state, 15 of length. Loops over all of a page's do not take
/// each apart.
#[derive(Clone, Copy)]
struct RawItemId(u32);

impl RawItemId {
    fn offset(self) -> u32 {
        self.0 & 0x7fff
    }

    fn state(self) -> u32 {
        self.0 >> 15 & 3
    }

    fn len(self) -> u32 {
        self.0 >> 17
    }

    /// Where the next item towards the end of the page begins, if there is no gap.
    fn aligned_end(self) -> u32 {
        self.offset() + maxalign(self.len() as usize) as u32
    }
}

/// A page under change.
#[derive(Debug)]
pub struct Page<'a> {
    raw: &'a mut PageBuf,
}

impl<'a> Page<'a> {
    /// Takes the page for changing.
    pub fn new(raw: &'a mut PageBuf) -> Self {
        Page { raw }
    }

    /// All bytes.
    pub fn bytes(&self) -> &PageBuf {
        self.raw
    }

    /// All bytes, for changing.
    pub fn bytes_mut(&mut self) -> &mut PageBuf {
        self.raw
    }

    pub(crate) fn get_u16(&self, at: usize) -> Result<u16, Fault> {
        let raw = self.raw.get(at..at + 2).ok_or(OUTSIDE)?;
        Ok(u16::from_le_bytes([raw[0], raw[1]]))
    }

    pub(crate) fn get_u32(&self, at: usize) -> Result<u32, Fault> {
        let raw = self.raw.get(at..at + 4).ok_or(OUTSIDE)?;
        Ok(u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]))
    }

    /// Writes bytes at a place that is checked.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.raw
            .get_mut(at..at + bytes.len())
            .ok_or(OUTSIDE)?
            .copy_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn put_u16(&mut self, at: usize, value: u16) -> Result<(), Fault> {
        self.put(at, &value.to_le_bytes())
    }

    pub(crate) fn put_u32(&mut self, at: usize, value: u32) -> Result<(), Fault> {
        self.put(at, &value.to_le_bytes())
    }

    fn header_u16(&self, at: usize) -> usize {
        usize::from(u16::from_le_bytes([self.raw[at], self.raw[at + 1]]))
    }

    fn set_header_u16(&mut self, at: usize, value: usize) {
        assert!(value <= PAGE_SIZE, "page pointer {value} exceeds the page");
        self.raw[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    }

    /// End of the line pointers (`pd_lower`).
    pub fn lower(&self) -> usize {
        self.header_u16(at::LOWER)
    }

    /// Start of the items (`pd_upper`).
    pub fn upper(&self) -> usize {
        self.header_u16(at::UPPER)
    }

    /// Start of the special space (`pd_special`).
    pub fn special(&self) -> usize {
        self.header_u16(at::SPECIAL)
    }

    pub(crate) fn set_lower(&mut self, lower: usize) {
        self.set_header_u16(at::LOWER, lower);
    }

    pub(crate) fn set_upper(&mut self, upper: usize) {
        self.set_header_u16(at::UPPER, upper);
    }

    /// LSN of the last change (`pd_lsn`, two halves with the high one first).
    pub fn lsn(&self) -> Lsn {
        let half = |at: usize| {
            u64::from(u32::from_le_bytes([
                self.raw[at],
                self.raw[at + 1],
                self.raw[at + 2],
                self.raw[at + 3],
            ]))
        };
        Lsn(half(0) << 32 | half(4))
    }

    /// Sets `pd_lsn`.
    pub fn set_lsn(&mut self, lsn: Lsn) {
        self.raw[..4].copy_from_slice(&((lsn.0 >> 32) as u32).to_le_bytes());
        self.raw[4..8].copy_from_slice(&(lsn.0 as u32).to_le_bytes());
    }

    /// Whether the page was never initialised (`PageIsNew`).
    pub fn is_new(&self) -> bool {
        self.upper() == 0
    }

    /// An empty page with a special space of `special_len` bytes (`PageInit`).
    pub fn init(&mut self, special_len: usize) {
        assert!(special_len <= 64, "special space of {special_len} bytes");
        self.raw.fill(0);
        let special = PAGE_SIZE - maxalign(special_len);
        self.set_header_u16(at::LOWER, HEADER_LEN);
        self.set_header_u16(at::UPPER, special);
        self.set_header_u16(at::SPECIAL, special);
        self.raw[at::SIZE_AND_VERSION..at::SIZE_AND_VERSION + 2]
            .copy_from_slice(&SIZE_AND_VERSION.to_le_bytes());
    }

    /// Empties the page, keeping its special space (`PageGetTempPageCopySpecial`).
    pub(crate) fn reset_keeping_special(&mut self) -> Result<(), Fault> {
        let special = self.special();
        let len = PAGE_SIZE
            .checked_sub(special)
            .filter(|&len| len <= 64)
            .ok_or(Fault::Page("size of the special space"))?;
        let mut kept = [0; 64];
        kept[..len].copy_from_slice(&self.raw[special..]);
        self.init(len);
        if self.special() != special {
            return Err(Fault::Page("alignment of the special space"));
        }
        self.raw[special..].copy_from_slice(&kept[..len]);
        Ok(())
    }

    fn flags(&self) -> u16 {
        u16::from_le_bytes([self.raw[at::FLAGS], self.raw[at::FLAGS + 1]])
    }

    fn set_flags(&mut self, flags: u16) {
        self.raw[at::FLAGS..at::FLAGS + 2].copy_from_slice(&flags.to_le_bytes());
    }

    /// Sets or clears the hint that line pointers are free in the middle.
    pub(crate) fn set_has_free_lines(&mut self, some: FreeLines) {
        match some {
            FreeLines::Some => self.set_flags(self.flags() | PD_HAS_FREE_LINES),
            FreeLines::None => self.set_flags(self.flags() & !PD_HAS_FREE_LINES),
        }
    }

    pub(crate) fn set_all_visible(&mut self) {
        self.set_flags(self.flags() | PD_ALL_VISIBLE);
    }

    pub(crate) fn clear_all_visible(&mut self) {
        self.set_flags(self.flags() & !PD_ALL_VISIBLE);
    }

    /// Clears the flags that are hints only; masking for comparison needs it.
    pub fn clear_hint_flags(&mut self) {
        self.set_flags(self.flags() & !(PD_HAS_FREE_LINES | PD_PAGE_FULL | PD_ALL_VISIBLE));
    }

    /// Sets the field that heap pages use for pruning and GIN for the transaction that deleted a page.
    pub(crate) fn set_prune_xid(&mut self, xid: u32) {
        self.raw[at::PRUNE_XID..at::PRUNE_XID + 4].copy_from_slice(&xid.to_le_bytes());
    }

    /// Remembers that `xid` left something to prune, if it is the oldest to do so (`PageSetPrunable`).
    pub(crate) fn set_prunable(&mut self, xid: u32) {
        let at = at::PRUNE_XID;
        let old = u32::from_le_bytes([self.raw[at], self.raw[at + 1], self.raw[at + 2], self.raw[at + 3]]);
        if old == 0 || xid_precedes(xid, old) {
            self.set_prune_xid(xid);
        }
    }

    /// Number of line pointers (`PageGetMaxOffsetNumber`).
    pub fn max_offset(&self) -> u16 {
        // Cannot exceed 16378, as pd_lower is a u16.
        (self.lower().saturating_sub(HEADER_LEN) / ITEM_ID_LEN) as u16
    }

    /// The header's pointers are in order; what `bufpage.c` checks before it moves anything.
    pub(crate) fn check_pointers(&self) -> Result<(), Fault> {
        let (lower, upper, special) = (self.lower(), self.upper(), self.special());
        if lower < HEADER_LEN || lower > upper || upper > special || special > PAGE_SIZE {
            return Err(Fault::Page("corrupted page pointers"));
        }
        Ok(())
    }

    fn check_aligned_pointers(&self) -> Result<(), Fault> {
        self.check_pointers()?;
        match self.special() % 8 {
            0 => Ok(()),
            _ => Err(Fault::Page("corrupted page pointers")),
        }
    }

    /// The line pointer with number `offset`, from 1.
    pub fn item_id(&self, offset: u16) -> Result<ItemId, Fault> {
        if offset == 0 || offset > self.max_offset() {
            return Err(no_item(offset));
        }
        self.get_u32(item_id_at(offset)).map(ItemId::from_raw)
    }

    pub(crate) fn set_item_id(&mut self, offset: u16, id: ItemId) -> Result<(), Fault> {
        if offset == 0 || offset > self.max_offset() {
            return Err(no_item(offset));
        }
        self.put_u32(item_id_at(offset), id.to_raw())
    }

    /// Where the item lies; it must have bytes, inside the page and behind the header.
    pub(crate) fn item_range(&self, offset: u16) -> Result<std::ops::Range<usize>, Fault> {
        let id = self.item_id(offset)?;
        self.range_under(offset, id)
    }

    /// The same under the line pointer `id`, which has the number `offset`.
    #[inline]
    pub(crate) fn range_under(&self, offset: u16, id: ItemId) -> Result<std::ops::Range<usize>, Fault> {
        if !id.has_storage() {
            return Err(Fault::Item {
                offset,
                state: "has no storage",
            });
        }
        let range = id.range();
        if range.start < HEADER_LEN || range.end > PAGE_SIZE {
            return Err(Fault::Item {
                offset,
                state: "lies outside the page",
            });
        }
        Ok(range)
    }

    /// The item's bytes.
    pub fn item(&self, offset: u16) -> Result<&[u8], Fault> {
        self.item_range(offset).map(|range| &self.raw[range])
    }

    pub(crate) fn item_mut(&mut self, offset: u16) -> Result<&mut [u8], Fault> {
        self.item_range(offset).map(|range| &mut self.raw[range])
    }

    /// Makes room for a heap tuple of `len` bytes under the line pointer `offset`, which must be unused
    /// or the first behind the last (`PageAddItem` with overwrite). The bytes are the caller's to fill.
    pub(crate) fn place_heap_item(
        &mut self,
        offset: u16,
        len: usize,
    ) -> Result<std::ops::Range<usize>, Fault> {
        if offset == 0 || offset > HEAP_ITEMS_MAX {
            return Err(Fault::Item {
                offset,
                state: "cannot be on a heap page",
            });
        }
        self.place_unused(offset, len)
    }

    /// The same for index pages that keep unused line pointers (BRIN, SP-GiST).
    pub(crate) fn overwrite_item(&mut self, offset: u16, item: &[u8]) -> Result<(), Fault> {
        let range = self.place_unused(offset, item.len())?;
        self.raw[range].copy_from_slice(item);
        Ok(())
    }

    fn place_unused(&mut self, offset: u16, len: usize) -> Result<std::ops::Range<usize>, Fault> {
        self.check_pointers()?;
        let limit = self.max_offset() + 1;
        if offset == 0 || offset > limit {
            return Err(Fault::Item {
                offset,
                state: "is beyond the first free one",
            });
        }
        if offset < limit {
            let id = self.item_id(offset)?;
            if id.state != ItemState::Unused || id.has_storage() {
                return Err(Fault::Item {
                    offset,
                    state: "is in use",
                });
            }
        }
        let lower = self.lower() + if offset == limit { ITEM_ID_LEN } else { 0 };
        self.place(offset, len, lower)
    }

    /// Adds an item under the line pointer `offset`; that and the later ones move up by one
    /// (`PageAddItem` without overwrite).
    pub(crate) fn insert_item(&mut self, offset: u16, item: &[u8]) -> Result<(), Fault> {
        self.check_pointers()?;
        let limit = self.max_offset() + 1;
        if offset == 0 || offset > limit {
            return Err(Fault::Item {
                offset,
                state: "is beyond the first free one",
            });
        }
        let lower = self.lower() + ITEM_ID_LEN;
        if lower + maxalign(item.len()) > self.upper() {
            return Err(NO_ROOM);
        }
        let first = item_id_at(offset);
        self.raw
            .copy_within(first..lower - ITEM_ID_LEN, first + ITEM_ID_LEN);
        let range = self.place(offset, item.len(), lower)?;
        self.raw[range].copy_from_slice(item);
        Ok(())
    }

    /// Takes `len` bytes from the free space for item `offset`; `lower` is the new `pd_lower`.
    fn place(&mut self, offset: u16, len: usize, lower: usize) -> Result<std::ops::Range<usize>, Fault> {
        let upper = self
            .upper()
            .checked_sub(maxalign(len))
            .filter(|&upper| lower <= upper)
            .ok_or(NO_ROOM)?;
        self.set_lower(lower);
        self.set_upper(upper);
        let id = ItemId {
            offset: upper as u16,
            state: ItemState::Normal,
            len: len as u16,
        };
        self.set_item_id(offset, id)?;
        Ok(upper..upper + len)
    }
}

/// Whether unused line pointers stand before used ones.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FreeLines {
    Some,
    None,
}

const OUTSIDE: Fault = Fault::Page("a write or read outside the page");
const NO_ROOM: Fault = Fault::Page("not enough free space");

fn no_item(offset: u16) -> Fault {
    Fault::Item {
        offset,
        state: "does not exist",
    }
}

fn item_id_at(offset: u16) -> usize {
    HEADER_LEN + ITEM_ID_LEN * (usize::from(offset) - 1)
}

/// Order of transaction ids in the circle of 2^32, special ids before all (`TransactionIdPrecedes`).
fn xid_precedes(a: u32, b: u32) -> bool {
    if a < 3 || b < 3 {
        return a < b;
    }
    (a.wrapping_sub(b) as i32) < 0
}
