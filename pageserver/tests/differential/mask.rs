//! What may differ between a page of the server that wrote the WAL and the page redo makes of it: the rules PostgreSQL itself
//! compares by (`rm_mask` of each access method, `access/common/bufmask.c`), but stricter in two points: the page's LSN and
//! the flag `PD_ALL_VISIBLE` must agree.

use postgres_ffi::v15::BLCKSZ;
use postgres_ffi::v15::page::{self, LP_DEAD, LP_NORMAL, PD_ALL_VISIBLE};

type Page = [u8; BLCKSZ];

/// `t_infomask` bits that tell of xmin and xmax (`HEAP_XACT_MASK`).
const HEAP_XACT_MASK: u16 = 0xfff0;
/// `HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID`: frozen if both.
const HEAP_XMIN_FROZEN: u16 = 0x0300;
/// `HEAP_XMAX_COMMITTED | HEAP_XMAX_INVALID`.
const HEAP_XMAX_HINTS: u16 = 0x0c00;
/// Offset of `t_ctid` in a tuple header.
const T_CTID: usize = 12;
/// Offset number of a `t_ctid` that holds a speculative insertion's token.
const SPECULATIVE: u16 = 0xfffe;
const T_INFOMASK: usize = 20;

const BTP_LEAF: u16 = 1;
const BTP_META: u16 = 8;
/// `BTP_SPLIT_END | BTP_HAS_GARBAGE`.
const BTP_HINTS: u16 = 0x60;

/// Makes everything that may differ the same on all pages. `access_method` as in `pg_am`, or the relation kind.
pub fn mask(page: &mut Page, access_method: &str, block: u32) {
    if page::is_new(page) {
        return;
    }
    page[page::PD_CHECKSUM..page::PD_CHECKSUM + 2].fill(0);
    page::set_flags(page, page::flags(page) & PD_ALL_VISIBLE);
    page::set_prune_xid(page, 0);
    match access_method {
        // Of a prepared transaction's relations the catalogs tell nothing. Here, those are heaps and btrees.
        "?" if usize::from(page::special_offset(page)) == BLCKSZ => mask(page, "heap", block),
        "?" => mask(page, "btree", block),
        "heap" | "t" | "m" => {
            mask_unused(page);
            mask_heap(page, block);
        }
        "btree" => mask_btree(page),
        // The server keeps the position in the page ahead of the WAL, which has it in steps of 32.
        "S" => page[24..].fill(0),
        "brin" => mask_brin(page),
        "hash" => mask_hash(page),
        "gist" => mask_gist(page),
        "gin" => mask_gin(page),
        // Behind the magic number, the metapage remembers pages with free space, for the server's own use.
        "spgist" if block == 0 => page[page::HEADER_LEN + 4..].fill(0),
        "vm" => {}
        _ => {
            if usize::from(page::lower(page)) >= page::HEADER_LEN {
                mask_unused(page);
            }
        }
    }
}

/// The space between the line pointers and the items.
fn mask_unused(page: &mut Page) {
    let (lower, upper) = (usize::from(page::lower(page)), usize::from(page::upper(page)));
    assert!(
        lower <= upper && upper <= BLCKSZ,
        "a page with lower {lower}, upper {upper}"
    );
    page[lower..upper].fill(0);
}

fn mask_heap(page: &mut Page, block: u32) {
    for number in 1..=page::max_offset_number(page) {
        let item = page::item_id(page, number).unwrap();
        let (offset, len) = (usize::from(item.offset), usize::from(item.len));
        if item.flags == LP_NORMAL {
            mask_tuple(&mut page[offset..offset + len], block, number);
        }
        if item.has_storage() {
            page[offset + len..(offset + len).next_multiple_of(8)].fill(0);
        }
    }
}

fn mask_tuple(tuple: &mut [u8], block: u32, number: u16) {
    let infomask = u16::from_le_bytes([tuple[T_INFOMASK], tuple[T_INFOMASK + 1]]);
    let frozen = infomask & HEAP_XMIN_FROZEN == HEAP_XMIN_FROZEN;
    let masked = infomask & if frozen { !HEAP_XMAX_HINTS } else { !HEAP_XACT_MASK };
    tuple[T_INFOMASK..T_INFOMASK + 2].copy_from_slice(&masked.to_le_bytes());
    // The command id, which redo does not know.
    tuple[8..12].fill(0);
    if tuple[T_CTID + 4..T_CTID + 6] == SPECULATIVE.to_le_bytes() {
        tuple[T_CTID..T_CTID + 2].copy_from_slice(&((block >> 16) as u16).to_le_bytes());
        tuple[T_CTID + 2..T_CTID + 4].copy_from_slice(&(block as u16).to_le_bytes());
        tuple[T_CTID + 4..T_CTID + 6].copy_from_slice(&number.to_le_bytes());
    }
}

fn mask_btree(page: &mut Page) {
    let flags_at = BLCKSZ - 4;
    let flags = u16::from_le_bytes([page[flags_at], page[flags_at + 1]]);
    page[flags_at..flags_at + 2].copy_from_slice(&(flags & !BTP_HINTS).to_le_bytes());
    page[BLCKSZ - 2..].fill(0);
    mask_unused(page);
    if flags & BTP_LEAF != 0 && flags & BTP_META == 0 {
        mask_dead_items(page);
    }
}

/// Index scans mark items dead without a record.
fn mask_dead_items(page: &mut Page) {
    for number in 1..=page::max_offset_number(page) {
        let mut item = page::item_id(page, number).unwrap();
        if item.flags == LP_DEAD {
            item.flags = LP_NORMAL;
            page::set_item_id(page, number, item).unwrap();
        }
    }
}

/// Everything behind the page header, of a page whose contents do not matter.
fn mask_content(page: &mut Page) {
    page[page::PD_LOWER..].fill(0);
}

/// Flags of hash and GiST pages, 4 bytes from the end; of GIN pages 2.
fn special_flags(page: &Page, from_end: usize) -> u16 {
    u16::from_le_bytes([page[BLCKSZ - from_end], page[BLCKSZ - from_end + 1]])
}

fn mask_hash(page: &mut Page) {
    let flags = special_flags(page, 4);
    mask_unused(page);
    match flags & 0xf {
        0 => mask_content(page),
        // Overflow and bucket pages.
        1 | 2 => mask_dead_items(page),
        _ => {}
    }
    // LH_PAGE_HAS_DEAD_TUPLES.
    page[BLCKSZ - 4..BLCKSZ - 2].copy_from_slice(&(flags & !0x80).to_le_bytes());
}

fn mask_gist(page: &mut Page) {
    let flags = special_flags(page, 4);
    mask_unused(page);
    // The NSN, a position in the WAL.
    page[BLCKSZ - 16..BLCKSZ - 8].fill(0);
    if flags & 1 != 0 {
        mask_dead_items(page);
    }
    // F_FOLLOW_RIGHT and F_HAS_GARBAGE.
    page[BLCKSZ - 4..BLCKSZ - 2].copy_from_slice(&(flags & !0x18).to_le_bytes());
}

fn mask_gin(page: &mut Page) {
    if special_flags(page, 2) & 4 != 0 {
        mask_content(page);
    } else if usize::from(page::lower(page)) > page::HEADER_LEN {
        mask_unused(page);
    }
}

fn mask_brin(page: &mut Page) {
    let kind = u16::from_le_bytes([page[BLCKSZ - 2], page[BLCKSZ - 1]]);
    let regular = kind == 0xf093;
    let meta = kind == 0xf091;
    if regular || meta && usize::from(page::lower(page)) > page::HEADER_LEN {
        mask_unused(page);
    }
    // BRIN_EVACUATE_PAGE.
    page[BLCKSZ - 4] &= !1;
}
