//! The metapage of a hash index (`HashMetaPageData`, behind the page header).

use postgres_ffi::cursor::Cursor;

use super::{Opaque, flag};
use crate::fault::Fault;
use crate::page::{HEADER_LEN, Page};

/// Offsets of the fields in bytes from the start of the page.
mod at {
    use crate::page::HEADER_LEN;

    pub const MAGIC: usize = HEADER_LEN;
    pub const VERSION: usize = HEADER_LEN + 4;
    pub const TUPLES: usize = HEADER_LEN + 8;
    pub const FILL_FACTOR: usize = HEADER_LEN + 16;
    pub const PAGE_BYTES: usize = HEADER_LEN + 18;
    pub const BITMAP_BYTES: usize = HEADER_LEN + 20;
    pub const BITMAP_SHIFT: usize = HEADER_LEN + 22;
    pub const MAX_BUCKET: usize = HEADER_LEN + 24;
    pub const HIGH_MASK: usize = HEADER_LEN + 28;
    pub const LOW_MASK: usize = HEADER_LEN + 32;
    pub const OVERFLOW_POINT: usize = HEADER_LEN + 36;
    pub const FIRST_FREE: usize = HEADER_LEN + 40;
    pub const BITMAPS: usize = HEADER_LEN + 44;
    pub const PROC_ID: usize = HEADER_LEN + 48;
    pub const SPARES: usize = HEADER_LEN + 52;
    pub const MAPS: usize = SPARES + super::SPLITPOINTS_MAX as usize * 4;
}

const MAGIC: u32 = 0x0644_0640;
const VERSION: u32 = 4;
/// Bytes for items on a page without them.
const PAGE_BYTES: u16 = 8152;
/// Largest power of two that fits, and the binary logarithm of its bits.
const BITMAP_BYTES: u16 = 4096;
const BITMAP_SHIFT: u16 = 15;
const SPLITPOINTS_MAX: u32 = 98;
const BITMAPS_MAX: u32 = 1024;
const META_LEN: usize = 4544;
const BUCKETS_MAX: u32 = 1 << 30;

/// Groups of splitpoints below this number have one phase, the others four.
const ONE_PHASE_GROUPS: u32 = 10;
const PHASE_BITS: u32 = 2;
const PHASE_MASK: u32 = (1 << PHASE_BITS) - 1;

const SPLIT_UPDATES_MASKS: u8 = 1 << 0;
const SPLIT_UPDATES_SPLITPOINT: u8 = 1 << 1;

/// Makes the metapage from `xl_hash_init_meta_page`.
pub(super) fn init(page: &mut Page<'_>, mut main: Cursor<'_>) -> Result<(), Fault> {
    let tuples = f64::from_bits(main.u64()?);
    let (proc_id, fill_factor) = (main.u32()?, main.u16()?);
    let buckets = initial_buckets(tuples / f64::from(fill_factor));
    let splitpoint = splitpoint_of(buckets);
    let high_mask = (buckets + 1).next_power_of_two() - 1;
    Opaque::without_bucket(flag::META_PAGE).init(page)?;
    page.put_u32(at::MAGIC, MAGIC)?;
    page.put_u32(at::VERSION, VERSION)?;
    page.put_u16(at::FILL_FACTOR, fill_factor)?;
    page.put_u16(at::PAGE_BYTES, PAGE_BYTES)?;
    page.put_u16(at::BITMAP_BYTES, BITMAP_BYTES)?;
    page.put_u16(at::BITMAP_SHIFT, BITMAP_SHIFT)?;
    page.put_u32(at::MAX_BUCKET, buckets - 1)?;
    page.put_u32(at::HIGH_MASK, high_mask)?;
    page.put_u32(at::LOW_MASK, high_mask >> 1)?;
    page.put_u32(at::OVERFLOW_POINT, splitpoint)?;
    page.put_u32(at::PROC_ID, proc_id)?;
    page.put_u32(spare_at(splitpoint)?, 1)?;
    page.set_lower(HEADER_LEN + META_LEN);
    Ok(())
}

/// Number of buckets for this many pages' worth of tuples.
fn initial_buckets(wanted: f64) -> u32 {
    if wanted >= f64::from(BUCKETS_MAX) {
        BUCKETS_MAX
    } else if wanted > 2.0 {
        buckets_at(splitpoint_of(wanted as u32))
    } else {
        2
    }
}

/// Splitpoint phase that allocates the last of so many buckets (`_hash_spareindex`).
fn splitpoint_of(buckets: u32) -> u32 {
    let group = buckets.next_power_of_two().ilog2();
    if group < ONE_PHASE_GROUPS {
        return group;
    }
    let phase = (buckets - 1) >> (group - (PHASE_BITS + 1)) & PHASE_MASK;
    ONE_PHASE_GROUPS + ((group - ONE_PHASE_GROUPS) << PHASE_BITS) + phase
}

/// Number of buckets once a splitpoint phase is done (`_hash_get_totalbuckets`).
fn buckets_at(splitpoint: u32) -> u32 {
    if splitpoint < ONE_PHASE_GROUPS {
        return 1 << splitpoint;
    }
    let after = splitpoint - ONE_PHASE_GROUPS;
    let group = ONE_PHASE_GROUPS + (after >> PHASE_BITS);
    let before_group = 1 << (group - 1);
    before_group + (before_group >> PHASE_BITS) * ((after & PHASE_MASK) + 1)
}

fn spare_at(splitpoint: u32) -> Result<usize, Fault> {
    if splitpoint >= SPLITPOINTS_MAX {
        return Err(Fault::Page("impossible splitpoint of a hash index"));
    }
    Ok(at::SPARES + splitpoint as usize * 4)
}

/// Notes a new bitmap page.
fn add_bitmap(page: &mut Page<'_>, block: u32) -> Result<(), Fault> {
    let count = page.get_u32(at::BITMAPS)?;
    if count >= BITMAPS_MAX {
        return Err(Fault::Page("too many bitmaps of a hash index"));
    }
    page.put_u32(at::MAPS + count as usize * 4, block)?;
    page.put_u32(at::BITMAPS, count + 1)
}

/// The first bitmap page stands behind the first buckets.
pub(super) fn add_first_bitmap(page: &mut Page<'_>) -> Result<(), Fault> {
    let max_bucket = page.get_u32(at::MAX_BUCKET)?;
    add_bitmap(page, max_bucket.wrapping_add(2))
}

pub(super) fn set_tuples(page: &mut Page<'_>, tuples: f64) -> Result<(), Fault> {
    page.put(at::TUPLES, &tuples.to_le_bytes())
}

pub(super) fn add_tuples(page: &mut Page<'_>, more: f64) -> Result<(), Fault> {
    let low = u64::from(page.get_u32(at::TUPLES)?);
    let high = u64::from(page.get_u32(at::TUPLES + 4)?);
    set_tuples(page, f64::from_bits(high << 32 | low) + more)
}

pub(super) fn set_first_free(page: &mut Page<'_>, bit: u32) -> Result<(), Fault> {
    page.put_u32(at::FIRST_FREE, bit)
}

/// Counts a new overflow page, and the bitmap page that was needed for it, if any.
pub(super) fn add_overflow_page(page: &mut Page<'_>, bitmap: Option<u32>) -> Result<(), Fault> {
    let spare = spare_at(page.get_u32(at::OVERFLOW_POINT)?)?;
    let count = page.get_u32(spare)?;
    page.put_u32(spare, count.wrapping_add(1))?;
    if let Some(block) = bitmap {
        add_bitmap(page, block)?;
        page.put_u32(spare, count.wrapping_add(2))?;
    }
    Ok(())
}

/// A bucket more; the block's data follows the flags.
pub(super) fn split(
    page: &mut Page<'_>,
    new_bucket: u32,
    flags: u8,
    mut data: Cursor<'_>,
) -> Result<(), Fault> {
    page.put_u32(at::MAX_BUCKET, new_bucket)?;
    if flags & SPLIT_UPDATES_MASKS != 0 {
        page.put_u32(at::LOW_MASK, data.u32()?)?;
        page.put_u32(at::HIGH_MASK, data.u32()?)?;
    }
    if flags & SPLIT_UPDATES_SPLITPOINT != 0 {
        let splitpoint = data.u32()?;
        page.put_u32(spare_at(splitpoint)?, data.u32()?)?;
        page.put_u32(at::OVERFLOW_POINT, splitpoint)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_and_splitpoints_agree() {
        for splitpoint in 0..93 {
            assert_eq!(splitpoint_of(buckets_at(splitpoint)), splitpoint);
        }
        for (wanted, buckets) in [
            (0.5, 2),
            (3.0, 4),
            (500.0, 512),
            (513.0, 640),
            (1e12, BUCKETS_MAX),
        ] {
            assert_eq!(initial_buckets(wanted), buckets);
        }
        assert_eq!(initial_buckets(f64::NAN), 2);
    }
}
