//! SLRUs that are part of a cluster's history: where a transaction or multixact has its bits, and which segments
//! a truncation removes (`access/transam/{slru,clog,multixact}.c`).
//!
//! Pages are numbered through; a segment is a file of 32 pages. All id arithmetic is on the 32-bit circle.

use super::BLCKSZ;
use super::checkpoint::{FIRST_NORMAL_XID, precedes};

/// Pages in a segment file.
pub const SLRU_PAGES_PER_SEGMENT: u32 = 32;
/// Transactions on a clog page: two bits each.
pub const CLOG_XACTS_PER_PAGE: u32 = BLCKSZ as u32 * 4;
/// Offsets on a page of multixact offsets: four bytes each.
pub const MULTIXACT_OFFSETS_PER_PAGE: u32 = BLCKSZ as u32 / 4;
/// Members in a group of multixact members.
pub const MULTIXACT_MEMBERS_PER_MEMBERGROUP: u32 = 4;
/// Length of a group in bytes: four status bytes, then four transaction ids.
pub const MULTIXACT_MEMBERGROUP_SIZE: u32 = 20;
/// Groups on a page; 12 bytes at its end stay unused.
pub const MULTIXACT_MEMBERGROUPS_PER_PAGE: u32 = BLCKSZ as u32 / MULTIXACT_MEMBERGROUP_SIZE;
/// Members on a page.
pub const MULTIXACT_MEMBERS_PER_PAGE: u32 =
    MULTIXACT_MEMBERGROUPS_PER_PAGE * MULTIXACT_MEMBERS_PER_MEMBERGROUP;
/// Lowest multixact id (`FirstMultiXactId`).
pub const FIRST_MULTIXACT_ID: u32 = 1;

/// Clog status: running, or crashed.
pub const TRANSACTION_STATUS_IN_PROGRESS: u8 = 0;
/// Clog status: committed.
pub const TRANSACTION_STATUS_COMMITTED: u8 = 1;
/// Clog status: aborted.
pub const TRANSACTION_STATUS_ABORTED: u8 = 2;
/// Clog status: a committed subtransaction whose parent is still running.
pub const TRANSACTION_STATUS_SUB_COMMITTED: u8 = 3;

/// A page in a segment file.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct SlruPage {
    /// Segment number.
    pub segment: u32,
    /// Page in the segment, 0 to 31.
    pub block: u32,
}

impl SlruPage {
    /// The page with this number.
    pub fn new(page: u32) -> Self {
        Self {
            segment: page / SLRU_PAGES_PER_SEGMENT,
            block: page % SLRU_PAGES_PER_SEGMENT,
        }
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.segment * SLRU_PAGES_PER_SEGMENT + self.block
    }
}

/// File name of a segment: at least four hexadecimal digits.
pub fn segment_name(segment: u32) -> String {
    format!("{segment:04X}")
}

/// Reads the file name of a segment: four to six upper-case hexadecimal digits.
pub fn parse_segment_name(name: &str) -> Option<u32> {
    let plain = (4..=6).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
    let segment = plain.then(|| u32::from_str_radix(name, 16).ok()).flatten()?;
    (segment_name(segment) == name).then_some(segment)
}

/// Clog page that has the status of `xid`.
pub fn clog_page(xid: u32) -> u32 {
    xid / CLOG_XACTS_PER_PAGE
}

/// Byte on the page, and shift of the two bits in it, of the status of `xid`.
pub fn clog_position(xid: u32) -> (usize, u32) {
    ((xid % CLOG_XACTS_PER_PAGE / 4) as usize, xid % 4 * 2)
}

/// Page that has the offset of multixact `multi`.
pub fn multixact_offset_page(multi: u32) -> u32 {
    multi / MULTIXACT_OFFSETS_PER_PAGE
}

/// Where on its page the offset of `multi` stands, in bytes.
pub fn multixact_offset_position(multi: u32) -> usize {
    (multi % MULTIXACT_OFFSETS_PER_PAGE * 4) as usize
}

/// Page that has the member at `offset`.
pub fn multixact_member_page(offset: u32) -> u32 {
    offset / MULTIXACT_MEMBERS_PER_PAGE
}

/// Where on its page the status byte and the transaction id of the member at `offset` stand, in bytes.
pub fn multixact_member_positions(offset: u32) -> (usize, usize) {
    let in_group = offset % MULTIXACT_MEMBERS_PER_MEMBERGROUP;
    let group = offset / MULTIXACT_MEMBERS_PER_MEMBERGROUP % MULTIXACT_MEMBERGROUPS_PER_PAGE;
    let start = group * MULTIXACT_MEMBERGROUP_SIZE;
    let xid = start + MULTIXACT_MEMBERS_PER_MEMBERGROUP + in_group * 4;
    ((start + in_group) as usize, xid as usize)
}

/// Whether truncation of the clog to `cutoff_page` removes `segment`.
pub fn clog_segment_is_removed(segment: u32, cutoff_page: u32) -> bool {
    let order = PageOrder {
        ids_per_page: CLOG_XACTS_PER_PAGE,
        shift: FIRST_NORMAL_XID + 1,
    };
    order.segment_precedes(segment, cutoff_page)
}

/// Whether truncation of the multixact offsets to the new oldest multixact removes `segment`.
pub fn multixact_offset_segment_is_removed(segment: u32, oldest_multi: u32) -> bool {
    let order = PageOrder {
        ids_per_page: MULTIXACT_OFFSETS_PER_PAGE,
        shift: FIRST_MULTIXACT_ID + 1,
    };
    // The one before is kept: the end of its members is the start of the next one's.
    let last_removed = match oldest_multi.wrapping_sub(1) {
        multi if multi < FIRST_MULTIXACT_ID => u32::MAX,
        multi => multi,
    };
    order.segment_precedes(segment, multixact_offset_page(last_removed))
}

/// Segments of multixact members that truncation from member `start` to member `end` removes.
pub fn multixact_member_segments_removed(start: u32, end: u32) -> impl Iterator<Item = u32> {
    let segment_of = |offset| SlruPage::new(multixact_member_page(offset)).segment;
    let last = segment_of(u32::MAX);
    let end = segment_of(end);
    std::iter::successors(Some(segment_of(start)), move |segment| {
        Some(if *segment == last { 0 } else { segment + 1 })
    })
    .take_while(move |segment| *segment != end)
}

/// How the pages of an SLRU follow each other on the circle of ids.
struct PageOrder {
    ids_per_page: u32,
    /// Added to the first id of a page, so that no reserved id is compared.
    shift: u32,
}

impl PageOrder {
    /// Whether every id on `page` is older than every id on `other`.
    fn page_precedes(&self, page: u32, other: u32) -> bool {
        let first = |page: u32| page.wrapping_mul(self.ids_per_page).wrapping_add(self.shift);
        precedes(first(page), first(other))
            && precedes(first(page), first(other).wrapping_add(self.ids_per_page - 1))
    }

    /// Whether the segment lies wholly before the page (`SlruMayDeleteSegment`).
    fn segment_precedes(&self, segment: u32, cutoff_page: u32) -> bool {
        let first = segment.wrapping_mul(SLRU_PAGES_PER_SEGMENT);
        self.page_precedes(first, cutoff_page)
            && self.page_precedes(first.wrapping_add(SLRU_PAGES_PER_SEGMENT - 1), cutoff_page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        assert_eq!((clog_page(32768 * 33), clog_position(32768 + 7)), (33, (1, 6)));
        assert_eq!(SlruPage::new(33), SlruPage { segment: 1, block: 1 });
        assert_eq!(SlruPage::new(33).number(), 33);
        assert_eq!(
            (multixact_offset_page(2049), multixact_offset_position(2049)),
            (1, 4)
        );
        assert_eq!(MULTIXACT_MEMBERS_PER_PAGE, 1636);
        assert_eq!(multixact_member_page(1636), 1);
        assert_eq!(multixact_member_positions(0), (0, 4));
        assert_eq!(multixact_member_positions(1636 + 5), (21, 28));
        assert_eq!(multixact_member_positions(1635), (8163, 8176));
    }

    #[test]
    fn names() {
        assert_eq!(
            (segment_name(10), segment_name(0x14078)),
            ("000A".to_owned(), "14078".to_owned())
        );
        for segment in [0, 0xfff, 0x14078] {
            assert_eq!(parse_segment_name(&segment_name(segment)), Some(segment));
        }
        for name in ["", "000", "000a", "00010", "0000000", "00G0", "+001"] {
            assert_eq!(parse_segment_name(name), None, "{name}");
        }
    }

    #[test]
    fn truncation_on_the_circle() {
        assert!(clog_segment_is_removed(0, 32) && !clog_segment_is_removed(0, 31));
        assert!(!clog_segment_is_removed(1, 32));
        // The last segment of the circle is older than the first pages.
        assert!(clog_segment_is_removed(4095, 0) && !clog_segment_is_removed(0, 4095 * 32));
        assert!(multixact_offset_segment_is_removed(0, 32 * 2048 + 1));
        assert!(!multixact_offset_segment_is_removed(0, 32 * 2048));
        assert!(!multixact_offset_segment_is_removed(0x7fff, 1));
        let removed = |start, end| multixact_member_segments_removed(start, end).collect::<Vec<_>>();
        assert!(removed(0, 52351).is_empty());
        assert_eq!(removed(5, 52352 * 2), [0, 1]);
        assert_eq!(removed(u32::MAX, 52352), [0x14078, 0]);
    }
}
