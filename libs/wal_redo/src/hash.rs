//! Hash indexes.
//!
//! | record | 0 | 1 | 2 | 3 | 4 | 5 | 6 |
//! |---|---|---|---|---|---|---|---|
//! | initialise metapage | metapage | | | | | | |
//! | initialise bitmap | bitmap page | metapage | | | | | |
//! | insert | page | metapage | | | | | |
//! | add overflow page | overflow page, new | page before it | bitmap page | bitmap page, new | metapage | | |
//! | split: allocate | old bucket | new bucket, new | metapage | | | | |
//! | split: complete | old bucket | new bucket | | | | | |
//! | move contents | (bucket, locked) | to | from | | | | |
//! | squeeze | (bucket, locked) | to | freed page | page before it | page after it | bitmap page | metapage |
//! | delete | (bucket, locked) | page | | | | | |
//! | vacuum one page | page | metapage | | | | | |

mod meta;

use postgres_ffi::cursor::Cursor;
use postgres_ffi::v15::rmgr::{
    XLOG_HASH_ADD_OVFL_PAGE, XLOG_HASH_DELETE, XLOG_HASH_INIT_BITMAP_PAGE, XLOG_HASH_INIT_META_PAGE,
    XLOG_HASH_INSERT, XLOG_HASH_MOVE_PAGE_CONTENTS, XLOG_HASH_SPLIT_ALLOCATE_PAGE, XLOG_HASH_SPLIT_CLEANUP,
    XLOG_HASH_SPLIT_COMPLETE, XLOG_HASH_SQUEEZE_PAGE, XLOG_HASH_UPDATE_META_PAGE, XLOG_HASH_VACUUM_ONE_PAGE,
};

use crate::change::{Change, Effect};
use crate::fault::Fault;
use crate::index_tuple;
use crate::offsets::Offsets;
use crate::page::{HEADER_LEN, Page, maxalign};

/// Page types and flags (`LH_*`).
mod flag {
    pub const UNUSED_PAGE: u16 = 0;
    pub const OVERFLOW_PAGE: u16 = 1 << 0;
    pub const BITMAP_PAGE: u16 = 1 << 2;
    pub const META_PAGE: u16 = 1 << 3;
    pub const BUCKET_NEEDS_SPLIT_CLEANUP: u16 = 1 << 6;
    pub const PAGE_HAS_DEAD_TUPLES: u16 = 1 << 7;
}

const OPAQUE_LEN: usize = 16;
const INVALID_BLOCK: u32 = u32::MAX;
const INVALID_BUCKET: u32 = u32::MAX;
/// Last two bytes of every page of a hash index.
const PAGE_ID: u16 = 0xff80;

/// Offsets of the special space's fields in bytes (`HashPageOpaqueData`).
mod at {
    pub const PREV: usize = 0;
    pub const NEXT: usize = 4;
    pub const BUCKET: usize = 8;
    pub const FLAG: usize = 12;
    pub const PAGE_ID: usize = 14;
}

/// Whether a block of this record changes even when its image was restored: the flags set by a split are
/// not in the image.
pub(crate) fn changes_restored_page(change: &Change<'_>) -> bool {
    matches!(
        (change.info(), change.block.id),
        (XLOG_HASH_SPLIT_ALLOCATE_PAGE, 0) | (XLOG_HASH_SPLIT_COMPLETE, 0 | 1)
    )
}

pub(crate) fn redo(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    let mut data = change.data();
    match (change.info(), change.block.id) {
        (XLOG_HASH_INIT_META_PAGE, 0) => meta::init(page, main)?,
        (XLOG_HASH_INIT_BITMAP_PAGE, 0) => init_bitmap(page, main.u16()?)?,
        (XLOG_HASH_INIT_BITMAP_PAGE, 1) => meta::add_first_bitmap(page)?,
        (XLOG_HASH_INSERT, 0) => page.insert_item(main.u16()?, data.rest())?,
        (XLOG_HASH_INSERT, 1) => meta::add_tuples(page, 1.0)?,
        (XLOG_HASH_ADD_OVFL_PAGE, _) => return add_overflow_page(change, page),
        (XLOG_HASH_SPLIT_ALLOCATE_PAGE, _) => return split_allocate(change, page),
        (XLOG_HASH_SPLIT_COMPLETE, 0) => set_opaque_u16(page, at::FLAG, main.u16()?)?,
        (XLOG_HASH_SPLIT_COMPLETE, 1) => {
            main.skip(2)?; // flags of the old bucket
            set_opaque_u16(page, at::FLAG, main.u16()?)?;
        }
        (XLOG_HASH_MOVE_PAGE_CONTENTS, 1) => add_tuples(page, main.u16()?, data)?,
        (XLOG_HASH_MOVE_PAGE_CONTENTS, 2) => delete_listed(page, data)?,
        (XLOG_HASH_SQUEEZE_PAGE, block) if block > 0 => return squeeze(change, page),
        // The bucket's page is there to be locked, and keeps its LSN.
        (XLOG_HASH_MOVE_PAGE_CONTENTS | XLOG_HASH_SQUEEZE_PAGE | XLOG_HASH_DELETE, 0) => {
            return Ok(Effect::LsnKept);
        }
        (XLOG_HASH_DELETE, 1) => {
            delete_listed(page, data)?;
            if main.u8()? != 0 {
                clear_flag(page, flag::PAGE_HAS_DEAD_TUPLES)?;
            }
        }
        (XLOG_HASH_SPLIT_CLEANUP, 0) => clear_flag(page, flag::BUCKET_NEEDS_SPLIT_CLEANUP)?,
        (XLOG_HASH_UPDATE_META_PAGE, 0) => meta::set_tuples(page, f64::from_bits(main.u64()?))?,
        (XLOG_HASH_VACUUM_ONE_PAGE, block) => {
            main.skip(4)?; // latestRemovedXid: for conflicts with standby queries
            let count = main.u32()?;
            match block {
                0 => {
                    data = main;
                    page.delete_items(Offsets::read(&mut data, count as usize)?.iter())?;
                    clear_flag(page, flag::PAGE_HAS_DEAD_TUPLES)?;
                }
                1 => meta::add_tuples(page, -f64::from(count))?,
                _ => return change.unexpected_block(),
            }
        }
        _ => return Err(Fault::Unknown),
    }
    Ok(Effect::Changed)
}

fn set_opaque_u32(page: &mut Page<'_>, field: usize, value: u32) -> Result<(), Fault> {
    page.put_u32(page.special() + field, value)
}

fn set_opaque_u16(page: &mut Page<'_>, field: usize, value: u16) -> Result<(), Fault> {
    page.put_u16(page.special() + field, value)
}

fn clear_flag(page: &mut Page<'_>, flag: u16) -> Result<(), Fault> {
    let old = page.get_u16(page.special() + at::FLAG)?;
    set_opaque_u16(page, at::FLAG, old & !flag)
}

/// Special space of a new page.
struct Opaque {
    prev: u32,
    bucket: u32,
    flag: u16,
}

impl Opaque {
    /// A page that belongs to no bucket.
    fn without_bucket(flag: u16) -> Self {
        Opaque {
            prev: INVALID_BLOCK,
            bucket: INVALID_BUCKET,
            flag,
        }
    }

    fn init(self, page: &mut Page<'_>) -> Result<(), Fault> {
        page.init(OPAQUE_LEN);
        set_opaque_u32(page, at::PREV, self.prev)?;
        set_opaque_u32(page, at::NEXT, INVALID_BLOCK)?;
        set_opaque_u32(page, at::BUCKET, self.bucket)?;
        set_opaque_u16(page, at::FLAG, self.flag)?;
        set_opaque_u16(page, at::PAGE_ID, PAGE_ID)
    }
}

/// A bitmap page with all bits set; `len` is its length in bytes.
fn init_bitmap(page: &mut Page<'_>, len: u16) -> Result<(), Fault> {
    Opaque::without_bucket(flag::BITMAP_PAGE).init(page)?;
    let bitmap = HEADER_LEN..HEADER_LEN + usize::from(len);
    if bitmap.end > page.special() {
        return Err(Fault::Record("a bitmap larger than a page"));
    }
    page.bytes_mut()[bitmap.clone()].fill(0xff);
    page.set_lower(bitmap.end);
    Ok(())
}

/// Sets or clears a bit of a bitmap page.
fn set_bit(page: &mut Page<'_>, bit: u32, value: Bit) -> Result<(), Fault> {
    let at = HEADER_LEN + bit as usize / 8;
    let mask = 1u8 << (bit % 8);
    if at >= page.lower() {
        return Err(Fault::Record("a bit outside the bitmap"));
    }
    let byte = page
        .bytes_mut()
        .get_mut(at)
        .ok_or(Fault::Page("corrupted page pointers"))?;
    match value {
        Bit::InUse => *byte |= mask,
        Bit::Free => *byte &= !mask,
    }
    Ok(())
}

/// State of an overflow page in the bitmap.
enum Bit {
    InUse,
    Free,
}

fn add_overflow_page(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    let (bitmap_len, found_in_bitmap) = (main.u16()?, main.u8()? != 0);
    let mut data = change.data();
    match change.block.id {
        0 => Opaque {
            prev: change.blkno_of(1)?,
            bucket: data.u32()?,
            flag: flag::OVERFLOW_PAGE,
        }
        .init(page)?,
        1 => set_opaque_u32(page, at::NEXT, change.blkno_of(0)?)?,
        2 => set_bit(page, data.u32()?, Bit::InUse)?,
        3 => init_bitmap(page, bitmap_len)?,
        4 => {
            meta::set_first_free(page, data.u32()?)?;
            if !found_in_bitmap {
                meta::add_overflow_page(page, change.other(3).map(|block| block.blkno))?;
            }
        }
        _ => return change.unexpected_block(),
    }
    Ok(Effect::Changed)
}

fn split_allocate(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    let new_bucket = main.u32()?;
    let (old_flag, new_flag) = (main.u16()?, main.u16()?);
    let flags = main.u8()?;
    match change.block.id {
        0 => {
            set_opaque_u16(page, at::FLAG, old_flag)?;
            set_opaque_u32(page, at::PREV, new_bucket)?;
        }
        1 => Opaque {
            prev: new_bucket,
            bucket: new_bucket,
            flag: new_flag,
        }
        .init(page)?,
        2 => meta::split(page, new_bucket, flags, change.data())?,
        _ => return change.unexpected_block(),
    }
    Ok(Effect::Changed)
}

/// Adds the tuples that moved here, each at the number listed for it.
fn add_tuples(page: &mut Page<'_>, count: u16, mut data: Cursor<'_>) -> Result<(), Fault> {
    if count == 0 {
        return Ok(());
    }
    let numbers = Offsets::read(&mut data, usize::from(count))?;
    for number in numbers.iter() {
        let len = maxalign(index_tuple::trimmed(data.rest())?.len());
        page.insert_item(number, data.bytes(len)?)?;
    }
    Change::finish(data)
}

/// Deletes the items whose numbers make up the block's data.
fn delete_listed(page: &mut Page<'_>, mut data: Cursor<'_>) -> Result<(), Fault> {
    let count = data.left() / 2;
    page.delete_items(Offsets::read(&mut data, count)?.iter())
}

fn squeeze(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    let mut main = change.main();
    let (prev, next) = (main.u32()?, main.u32()?);
    let count = main.u16()?;
    main.skip(1)?; // whether tuples go to the bucket's first page: matters for locks
    let to_is_prev = main.u8()? != 0;
    let mut data = change.data();
    match change.block.id {
        1 => {
            add_tuples(page, count, data)?;
            if to_is_prev {
                set_opaque_u32(page, at::NEXT, next)?;
            }
        }
        2 => Opaque::without_bucket(flag::UNUSED_PAGE).init(page)?,
        3 if !to_is_prev => set_opaque_u32(page, at::NEXT, next)?,
        4 => set_opaque_u32(page, at::PREV, prev)?,
        5 => set_bit(page, data.u32()?, Bit::Free)?,
        6 => meta::set_first_free(page, data.u32()?)?,
        _ => return change.unexpected_block(),
    }
    Ok(Effect::Changed)
}
