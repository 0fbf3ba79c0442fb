//! Data pages (`storage/bufpage.h`): header, line pointers, special space.
//!
//! The header has a fixed place, so its fields are read and written without errors. Whatever the
//! header *says* is checked before it is followed: a page comes from a disk or a peer. Offsets and
//! lengths are bytes from the start of the page; offset numbers of items count from 1.

use std::ops::Range;

use utils::lsn::Lsn;

use super::BLCKSZ;

/// A data page.
pub type Page = [u8; BLCKSZ];

/// Length of the page header, where the line pointers begin (`SizeOfPageHeaderData`).
pub const HEADER_LEN: usize = 24;
/// Offset of `pd_lsn`: high half, then low half.
pub const PD_LSN: usize = 0;
/// Offset of `pd_checksum`.
pub const PD_CHECKSUM: usize = 8;
/// Offset of `pd_flags`.
pub const PD_FLAGS: usize = 10;
/// Offset of `pd_lower`.
pub const PD_LOWER: usize = 12;
/// Offset of `pd_upper`.
pub const PD_UPPER: usize = 14;
/// Offset of `pd_special`.
pub const PD_SPECIAL: usize = 16;
/// Offset of `pd_pagesize_version`.
pub const PD_PAGESIZE_VERSION: usize = 18;
/// Offset of `pd_prune_xid`.
pub const PD_PRUNE_XID: usize = 20;

/// Hint flag: there are unused line pointers.
pub const PD_HAS_FREE_LINES: u16 = 0x0001;
/// Hint flag: an update found no room.
pub const PD_PAGE_FULL: u16 = 0x0002;
/// All tuples are visible to everyone.
pub const PD_ALL_VISIBLE: u16 = 0x0004;
/// All flags there are.
pub const PD_VALID_FLAG_BITS: u16 = 0x0007;
/// Version of the page layout (`PG_PAGE_LAYOUT_VERSION`).
pub const PAGE_LAYOUT_VERSION: u16 = 4;

/// Length of a line pointer in bytes.
pub const ITEM_ID_LEN: usize = 4;
/// Line pointer state: free for use.
pub const LP_UNUSED: u8 = 0;
/// Line pointer state: has an item.
pub const LP_NORMAL: u8 = 1;
/// Line pointer state: the offset is the number of another line pointer.
pub const LP_REDIRECT: u8 = 2;
/// Line pointer state: dead, with or without an item.
pub const LP_DEAD: u8 = 3;

/// What the page says about itself cannot be.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
pub enum PageError {
    /// Lower, upper and special are not in order, within the page, or aligned.
    #[error("page header is corrupt: lower {lower}, upper {upper}, special {special}")]
    Header {
        /// `pd_lower`.
        lower: u16,
        /// `pd_upper`.
        upper: u16,
        /// `pd_special`.
        special: u16,
    },
    /// The page has no such line pointer.
    #[error("offset number {offset_number} is not among the {count} on the page")]
    NoSuchItem {
        /// Number asked for.
        offset_number: u16,
        /// Number of line pointers.
        count: u16,
    },
    /// The line pointer does not point into the page.
    #[error("item {offset_number} at {offset} with length {len} is not within the page")]
    Item {
        /// Number of the item.
        offset_number: u16,
        /// `lp_off`.
        offset: u16,
        /// `lp_len`.
        len: u16,
    },
}

/// A line pointer (`ItemIdData`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ItemId {
    /// `lp_off`: offset of the item, or the number of another line pointer if redirected.
    pub offset: u16,
    /// `lp_flags`: one of the `LP_` states.
    pub flags: u8,
    /// `lp_len`: length of the item in bytes, 0 if it has no storage.
    pub len: u16,
}

impl ItemId {
    /// From its four bytes: 15 bits of offset, 2 of flags, 15 of length, from the lowest bit up.
    pub fn from_raw(raw: u32) -> Self {
        Self {
            offset: (raw & 0x7fff) as u16,
            flags: ((raw >> 15) & 3) as u8,
            len: (raw >> 17) as u16,
        }
    }

    /// Its four bytes. Offset and length must be below 2^15.
    pub fn to_raw(self) -> u32 {
        assert!(
            self.offset < 1 << 15 && self.len < 1 << 15 && self.flags < 4,
            "line pointer field out of range: {self:?}"
        );
        u32::from(self.offset) | u32::from(self.flags) << 15 | u32::from(self.len) << 17
    }

    /// Whether the item has bytes on the page.
    pub fn has_storage(self) -> bool {
        self.len != 0
    }
}

/// The 16-bit number at `at`. `at` must be at most 8190.
pub fn get_u16(page: &Page, at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

/// Writes a 16-bit number at `at`. `at` must be at most 8190.
pub fn put_u16(page: &mut Page, at: usize, value: u16) {
    page[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// The 32-bit number at `at`. `at` must be at most 8188.
pub fn get_u32(page: &Page, at: usize) -> u32 {
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

/// Writes a 32-bit number at `at`. `at` must be at most 8188.
pub fn put_u32(page: &mut Page, at: usize, value: u32) {
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// `pd_lsn`: end of the last record that changed the page.
pub fn lsn(page: &Page) -> Lsn {
    Lsn(u64::from(get_u32(page, PD_LSN)) << 32 | u64::from(get_u32(page, PD_LSN + 4)))
}

/// Sets `pd_lsn`.
pub fn set_lsn(page: &mut Page, lsn: Lsn) {
    let Lsn(position) = lsn;
    put_u32(page, PD_LSN, (position >> 32) as u32);
    put_u32(page, PD_LSN + 4, position as u32);
}

/// `pd_flags`.
pub fn flags(page: &Page) -> u16 {
    get_u16(page, PD_FLAGS)
}

/// Sets `pd_flags`.
pub fn set_flags(page: &mut Page, flags: u16) {
    put_u16(page, PD_FLAGS, flags);
}

/// `pd_lower`: start of free space.
pub fn lower(page: &Page) -> u16 {
    get_u16(page, PD_LOWER)
}

/// Sets `pd_lower`.
pub fn set_lower(page: &mut Page, lower: u16) {
    put_u16(page, PD_LOWER, lower);
}

/// `pd_upper`: end of free space.
pub fn upper(page: &Page) -> u16 {
    get_u16(page, PD_UPPER)
}

/// Sets `pd_upper`.
pub fn set_upper(page: &mut Page, upper: u16) {
    put_u16(page, PD_UPPER, upper);
}

/// `pd_special`: start of the special space.
pub fn special_offset(page: &Page) -> u16 {
    get_u16(page, PD_SPECIAL)
}

/// `pd_prune_xid`: oldest transaction whose leavings may be pruned, 0 if none.
pub fn prune_xid(page: &Page) -> u32 {
    get_u32(page, PD_PRUNE_XID)
}

/// Sets `pd_prune_xid`.
pub fn set_prune_xid(page: &mut Page, xid: u32) {
    put_u32(page, PD_PRUNE_XID, xid);
}

/// Whether the page has never been initialised (`PageIsNew`).
pub fn is_new(page: &Page) -> bool {
    upper(page) == 0
}

/// Makes an empty page with a special space of `special_len` bytes, rounded up to a multiple of 8 (`PageInit`).
///
/// Panics if header and special space do not fit in a page: the length is a property of the access method.
pub fn init(page: &mut Page, special_len: usize) {
    let special_len = special_len.next_multiple_of(8);
    assert!(
        special_len + HEADER_LEN <= BLCKSZ,
        "special space of {special_len} bytes does not fit in a page"
    );
    let special = (BLCKSZ - special_len) as u16;
    page.fill(0);
    set_lower(page, HEADER_LEN as u16);
    set_upper(page, special);
    put_u16(page, PD_SPECIAL, special);
    put_u16(page, PD_PAGESIZE_VERSION, BLCKSZ as u16 | PAGE_LAYOUT_VERSION);
}

/// Checks that lower, upper and special are in order and within the page, and that special is aligned.
pub fn check_header(page: &Page) -> Result<(), PageError> {
    let (lower, upper, special) = (lower(page), upper(page), special_offset(page));
    let in_order = HEADER_LEN <= usize::from(lower)
        && lower <= upper
        && upper <= special
        && usize::from(special) <= BLCKSZ
        && special.is_multiple_of(8);
    if in_order {
        Ok(())
    } else {
        Err(PageError::Header {
            lower,
            upper,
            special,
        })
    }
}

/// The special space.
pub fn special(page: &Page) -> Result<&[u8], PageError> {
    check_header(page)?;
    Ok(&page[usize::from(special_offset(page))..])
}

/// The special space, to be changed.
pub fn special_mut(page: &mut Page) -> Result<&mut [u8], PageError> {
    check_header(page)?;
    let start = usize::from(special_offset(page));
    Ok(&mut page[start..])
}

/// Number of line pointers, which is also the highest offset number (`PageGetMaxOffsetNumber`): 0 for an empty page.
/// At most 2042, whatever the header says.
pub fn max_offset_number(page: &Page) -> u16 {
    const LINE_POINTERS_MAX: u16 = ((BLCKSZ - HEADER_LEN) / ITEM_ID_LEN) as u16;
    (lower(page).saturating_sub(HEADER_LEN as u16) / ITEM_ID_LEN as u16).min(LINE_POINTERS_MAX)
}

/// Offset on the page of a line pointer that need not exist yet. `offset_number` must be 1..=2042.
pub fn item_id_offset(offset_number: u16) -> usize {
    assert!(offset_number != 0, "offset numbers count from 1");
    HEADER_LEN + (usize::from(offset_number) - 1) * ITEM_ID_LEN
}

/// The line pointer with this number.
pub fn item_id(page: &Page, offset_number: u16) -> Result<ItemId, PageError> {
    let count = max_offset_number(page);
    if offset_number == 0 || offset_number > count {
        return Err(PageError::NoSuchItem { offset_number, count });
    }
    Ok(ItemId::from_raw(get_u32(page, item_id_offset(offset_number))))
}

/// Sets the line pointer with this number, which must exist.
pub fn set_item_id(page: &mut Page, offset_number: u16, item_id: ItemId) -> Result<(), PageError> {
    self::item_id(page, offset_number)?;
    put_u32(page, item_id_offset(offset_number), item_id.to_raw());
    Ok(())
}

/// Where the bytes of the item are on the page; an item without storage is an error.
pub fn item_range(page: &Page, offset_number: u16) -> Result<Range<usize>, PageError> {
    let id = item_id(page, offset_number)?;
    let start = usize::from(id.offset);
    let end = start + usize::from(id.len);
    if !id.has_storage() || start < HEADER_LEN || end > BLCKSZ {
        return Err(PageError::Item {
            offset_number,
            offset: id.offset,
            len: id.len,
        });
    }
    Ok(start..end)
}

/// The bytes of the item.
pub fn item(page: &Page, offset_number: u16) -> Result<&[u8], PageError> {
    item_range(page, offset_number).map(|range| &page[range])
}

/// The bytes of the item, to be changed.
pub fn item_mut(page: &mut Page, offset_number: u16) -> Result<&mut [u8], PageError> {
    let range = item_range(page, offset_number)?;
    Ok(&mut page[range])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fresh_page() {
        let mut page = [0xff; BLCKSZ];
        init(&mut page, 13);
        assert_eq!(
            (lower(&page), upper(&page), special_offset(&page)),
            (24, 8176, 8176)
        );
        assert_eq!(get_u16(&page, PD_PAGESIZE_VERSION), 0x2004);
        assert_eq!((check_header(&page), max_offset_number(&page)), (Ok(()), 0));
        assert_eq!(special(&page).unwrap().len(), 16);
        assert!(!is_new(&page) && is_new(&[0; BLCKSZ]));
        set_lsn(&mut page, Lsn(0x16_b374_d848));
        assert_eq!(lsn(&page), Lsn(0x16_b374_d848));
        assert_eq!(page[..8], [0x16, 0, 0, 0, 0x48, 0xd8, 0x74, 0xb3]);
    }

    #[test]
    fn items() {
        let mut page = [0; BLCKSZ];
        init(&mut page, 0);
        assert!(item(&page, 1).is_err());
        set_lower(&mut page, 28);
        let id = ItemId {
            offset: 8184,
            flags: LP_NORMAL,
            len: 8,
        };
        set_item_id(&mut page, 1, id).unwrap();
        page[8184..].copy_from_slice(b"an item!");
        assert_eq!(item(&page, 1), Ok(&b"an item!"[..]));
        assert!(item(&page, 0).is_err() && item(&page, 2).is_err());
        set_item_id(&mut page, 1, ItemId { len: 9, ..id }).unwrap();
        assert!(item(&page, 1).is_err());
    }

    proptest! {
        #[test]
        fn line_pointers_round_trip(raw: u32) {
            prop_assert_eq!(ItemId::from_raw(raw).to_raw(), raw);
        }

        #[test]
        fn any_header_is_safe(
            header in proptest::array::uniform32(any::<u8>()), number: u16,
        ) {
            let mut page = [0; BLCKSZ];
            page[..32].copy_from_slice(&header);
            let _ = special(&page);
            let _ = special_mut(&mut page);
            let _ = item(&page, number);
            let last = max_offset_number(&page);
            prop_assert_eq!(item_id(&page, last).is_ok(), last > 0);
        }
    }
}
