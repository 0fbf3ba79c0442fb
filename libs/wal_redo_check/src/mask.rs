//! What PostgreSQL's own consistency check does not compare (`bufmask.c` and the `*_mask` functions of the
//! resource managers): changes that are made without WAL, and bytes that mean nothing.

use postgres_ffi::v15::rmgr::{
    RM_BRIN_ID, RM_BTREE_ID, RM_GENERIC_ID, RM_GIN_ID, RM_GIST_ID, RM_HASH_ID, RM_HEAP_ID, RM_HEAP2_ID,
    RM_SEQ_ID, RM_SPGIST_ID,
};
use utils::lsn::Lsn;
use wal_redo::page::{HEADER_LEN, ItemId, ItemState, PAGE_SIZE, Page, PageBuf, maxalign};

const HEAP_XMIN_FROZEN: u16 = 0x0300;
const HEAP_XACT_MASK: u16 = 0xfff0;
const HEAP_XMAX_HINTS: u16 = 0x0c00;
const HEAP_SPECULATIVE_TOKEN: u16 = 0xfffe;
const BTP_LEAF: u16 = 1 << 0;
const BTP_SPLIT_END: u16 = 1 << 5;
const BTP_HAS_GARBAGE: u16 = 1 << 6;
const GIN_DELETED: u16 = 1 << 2;
const GIST_LEAF: u16 = 1 << 0;
const GIST_FOLLOW_RIGHT: u16 = 1 << 3;
const GIST_HAS_GARBAGE: u16 = 1 << 4;
const HASH_PAGE_TYPE: u16 = 0x000f;
const HASH_BUCKET_OR_OVERFLOW: u16 = 0x0003;
const HASH_HAS_DEAD_TUPLES: u16 = 1 << 7;
const SPGIST_META: u16 = 1 << 0;
const BRIN_EVACUATE: u16 = 1 << 0;
const BRIN_META: u16 = 0xf091;
const BRIN_REGULAR: u16 = 0xf093;

/// The page's own pointers are out of order: nothing can be masked.
#[derive(Debug)]
pub struct Corrupt;

/// Which masking a page needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Heap,
    VisibilityMap,
    /// Everything behind the header counts.
    WholePage,
    Btree,
    Hash,
    Gin,
    Gist,
    Sequence,
    /// A sequence in a server's file: values handed out since the last record, which is ahead of them, do not count.
    SequenceInUse,
    Spgist,
    Brin,
    Generic,
}

impl Kind {
    /// The masking PostgreSQL does for a resource manager; `None` if it compares nothing there. The
    /// visibility map is masked less than there: PostgreSQL masks all of its bits.
    pub fn of_rmgr(rmid: u8, forknum: u8) -> Option<Kind> {
        Some(match rmid {
            RM_HEAP_ID | RM_HEAP2_ID if forknum == wal_redo::visibility::FORKNUM => Kind::VisibilityMap,
            RM_HEAP_ID | RM_HEAP2_ID => Kind::Heap,
            RM_BTREE_ID => Kind::Btree,
            RM_HASH_ID => Kind::Hash,
            RM_GIN_ID => Kind::Gin,
            RM_GIST_ID => Kind::Gist,
            RM_SEQ_ID => Kind::Sequence,
            RM_SPGIST_ID => Kind::Spgist,
            RM_BRIN_ID => Kind::Brin,
            RM_GENERIC_ID => Kind::Generic,
            _ => return None,
        })
    }

    /// The kind of a page known only by its content: by its special space.
    pub fn of_page(raw: &PageBuf, forknum: u8) -> Kind {
        let mut raw = *raw;
        let page = Page::new(&mut raw);
        let last = u16::from_le_bytes([page.bytes()[PAGE_SIZE - 2], page.bytes()[PAGE_SIZE - 1]]);
        let special = page.special();
        match (PAGE_SIZE.wrapping_sub(special), last) {
            (0, _) if forknum == wal_redo::visibility::FORKNUM => Kind::VisibilityMap,
            (0, _) => Kind::Heap,
            (16, 0xff80) => Kind::Hash,
            (16, 0xff81) => Kind::Gist,
            (16, _) => Kind::Btree,
            (8, 0xff82) => Kind::Spgist,
            (8, 0xf091..=0xf093) => Kind::Brin,
            (8, _) if page.bytes()[special..special + 4] == [0x17, 0x17, 0, 0] => Kind::Sequence,
            (8, _) => Kind::Gin,
            _ => Kind::Generic,
        }
    }
}

/// Masks a page in place. A page of zeros stays as it is.
pub fn mask(raw: &mut PageBuf, kind: Kind, blkno: u32) -> Result<(), Corrupt> {
    let mut page = Page::new(raw);
    if page.is_new() {
        return Ok(());
    }
    page.set_lsn(Lsn(0));
    page.bytes_mut()[8..10].fill(0); // checksum
    if !matches!(kind, Kind::Sequence | Kind::SequenceInUse | Kind::Generic) {
        page.bytes_mut()[20..24].fill(0); // oldest transaction to prune
        page.clear_hint_flags();
    }
    let lower_is_set = page.lower() > HEADER_LEN;
    match kind {
        Kind::Heap => {
            unused_space(&mut page)?;
            heap(&mut page, blkno)
        }
        Kind::VisibilityMap | Kind::WholePage => Ok(()),
        Kind::Btree => btree(&mut page),
        Kind::Hash => hash(&mut page),
        Kind::Gin => {
            let flags = special_u16(&page, 6)?;
            if flags & GIN_DELETED != 0 {
                content(&mut page);
                Ok(())
            } else if lower_is_set {
                unused_space(&mut page)
            } else {
                Ok(())
            }
        }
        Kind::Gist => gist(&mut page),
        Kind::Sequence | Kind::Generic => unused_space(&mut page),
        Kind::SequenceInUse => {
            unused_space(&mut page)?;
            sequence_position(&mut page)
        }
        Kind::Spgist => {
            if page.lower() >= HEADER_LEN {
                unused_space(&mut page)?;
            }
            if special_u16(&page, 0)? & SPGIST_META != 0 {
                // Which pages were used last is remembered behind the magic number without WAL.
                let lower = page.lower().clamp(HEADER_LEN + 4, PAGE_SIZE);
                page.bytes_mut()[HEADER_LEN + 4..lower].fill(0);
            }
            Ok(())
        }
        Kind::Brin => {
            let page_type = special_u16(&page, 6)?;
            if page_type == BRIN_REGULAR || (page_type == BRIN_META && lower_is_set) {
                unused_space(&mut page)?;
            }
            change_special(&mut page, 4, |flags| flags & !BRIN_EVACUATE)
        }
    }
}

fn unused_space(page: &mut Page<'_>) -> Result<(), Corrupt> {
    let (lower, upper, special) = (page.lower(), page.upper(), page.special());
    if lower > upper || special < upper || lower < HEADER_LEN || special > PAGE_SIZE {
        return Err(Corrupt);
    }
    page.bytes_mut()[lower..upper].fill(0);
    Ok(())
}

/// Everything but the header; of that the two pointers.
fn content(page: &mut Page<'_>) {
    page.bytes_mut()[HEADER_LEN..].fill(0);
    page.bytes_mut()[12..16].fill(0);
}

fn special_u16(page: &Page<'_>, at: usize) -> Result<u16, Corrupt> {
    let at = page.special() + at;
    let raw = page.bytes().get(at..at + 2).ok_or(Corrupt)?;
    Ok(u16::from_le_bytes([raw[0], raw[1]]))
}

fn change_special(page: &mut Page<'_>, at: usize, change: impl FnOnce(u16) -> u16) -> Result<(), Corrupt> {
    let value = change(special_u16(page, at)?);
    let at = page.special() + at;
    page.bytes_mut()[at..at + 2].copy_from_slice(&value.to_le_bytes());
    Ok(())
}

/// Line pointer states of index pages, which backends change on their own.
fn line_pointers(page: &mut Page<'_>) -> Result<(), Corrupt> {
    for number in 1..=page.max_offset() {
        page.item_id(number).map_err(|_| Corrupt)?;
        let at = HEADER_LEN + (usize::from(number) - 1) * 4;
        // The state is in the highest bit of the second byte and the lowest of the third.
        page.bytes_mut()[at + 1] &= 0x7f;
        page.bytes_mut()[at + 2] &= 0xfe;
    }
    Ok(())
}

/// Last value, values still to be handed out without a record, and whether the first was: the columns of the only row.
fn sequence_position(page: &mut Page<'_>) -> Result<(), Corrupt> {
    let id = page.item_id(1).map_err(|_| Corrupt)?;
    let start = usize::from(id.offset);
    let hoff = usize::from(*page.bytes().get(start + 22).ok_or(Corrupt)?);
    let columns = start + hoff..start + hoff + 17;
    page.bytes_mut().get_mut(columns).ok_or(Corrupt)?.fill(0);
    Ok(())
}

fn btree(page: &mut Page<'_>) -> Result<(), Corrupt> {
    unused_space(page)?;
    if special_u16(page, 12)? & BTP_LEAF != 0 {
        line_pointers(page)?;
    }
    change_special(page, 12, |flags| flags & !(BTP_HAS_GARBAGE | BTP_SPLIT_END))?;
    change_special(page, 14, |_| 0)
}

fn gist(page: &mut Page<'_>) -> Result<(), Corrupt> {
    unused_space(page)?;
    let special = page.special();
    page.bytes_mut()
        .get_mut(special..special + 8)
        .ok_or(Corrupt)?
        .fill(0); // NSN
    change_special(page, 12, |flags| (flags | GIST_FOLLOW_RIGHT) & !GIST_HAS_GARBAGE)?;
    if special_u16(page, 12)? & GIST_LEAF != 0 {
        line_pointers(page)?;
    }
    Ok(())
}

fn hash(page: &mut Page<'_>) -> Result<(), Corrupt> {
    unused_space(page)?;
    match special_u16(page, 12)? & HASH_PAGE_TYPE {
        0 => {
            content(page);
            return Ok(());
        }
        page_type if page_type & HASH_BUCKET_OR_OVERFLOW != 0 => line_pointers(page)?,
        _ => {}
    }
    change_special(page, 12, |flags| flags & !HASH_HAS_DEAD_TUPLES)
}

fn heap(page: &mut Page<'_>, blkno: u32) -> Result<(), Corrupt> {
    for number in 1..=page.max_offset() {
        let id = page.item_id(number).map_err(|_| Corrupt)?;
        if !id.has_storage() {
            continue;
        }
        let (start, len) = (usize::from(id.offset), usize::from(id.len));
        let item = page
            .bytes_mut()
            .get_mut(start..start + maxalign(len))
            .ok_or(Corrupt)?;
        let (item, padding) = item.split_at_mut(len);
        padding.fill(0);
        if id.state == ItemState::Normal {
            heap_tuple(item, id, number, blkno)?;
        }
    }
    Ok(())
}

fn heap_tuple(item: &mut [u8], id: ItemId, number: u16, blkno: u32) -> Result<(), Corrupt> {
    if item.len() < 23 {
        return Err(Corrupt);
    }
    debug_assert_eq!(id.state, ItemState::Normal);
    let infomask = u16::from_le_bytes([item[20], item[21]]);
    let masked = if infomask & HEAP_XMIN_FROZEN == HEAP_XMIN_FROZEN {
        infomask & !HEAP_XMAX_HINTS
    } else {
        infomask & !HEAP_XACT_MASK
    };
    item[20..22].copy_from_slice(&masked.to_le_bytes());
    item[8..12].fill(0); // command id
    if u16::from_le_bytes([item[16], item[17]]) == HEAP_SPECULATIVE_TOKEN {
        let [b0, b1, b2, b3] = blkno.to_le_bytes();
        let [o0, o1] = number.to_le_bytes();
        item[12..18].copy_from_slice(&[b2, b3, b0, b1, o0, o1]);
    }
    Ok(())
}
