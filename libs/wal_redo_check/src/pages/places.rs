//! Where pages are: a place for each tag.
//!
//! Blocks that neighbour each other in a relation fork share an extent, an array with an entry for each. An extent used lately is
//! found without hashing, and its entries are four bytes each, so that the places of a table's pages mostly are in the
//! processor's cache. Memory grows with the pages, not with the block numbers: an extent takes an eighth of a page.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::mem;

use wal_redo::PageTag;

/// Blocks in an extent.
const EXTENT_BLOCKS: usize = 256;
/// Extents kept in [`Recent`].
const RECENT_LEN: usize = 256;
/// Entry of a block that has no place.
const NONE: u32 = u32::MAX;

/// Places by tag.
#[derive(Default)]
pub struct Places {
    /// Numbers of extents, by the tag of their first block.
    by_tag: HashMap<PageTag, u32, BuildHasherDefault<TagHasher>>,
    /// Tags of the extents' first blocks, by number; `None` if the number is free.
    firsts: Vec<Option<PageTag>>,
    /// The extents' entries, by number.
    entries: Vec<[u32; EXTENT_BLOCKS]>,
    /// Numbers that are free.
    free: Vec<u32>,
    recent: Recent,
}

/// Pages of a relation fork to be forgotten: those from a block on of the forks for which `of` says so.
pub struct Gone<F> {
    pub of: F,
    pub from_block: u32,
}

/// Some extents and their numbers, each under a slot made of the tag of its first block.
struct Recent(Box<[Option<(PageTag, u32)>; RECENT_LEN]>);

impl Default for Recent {
    fn default() -> Self {
        Recent(Box::new([None; RECENT_LEN]))
    }
}

impl Recent {
    #[inline]
    fn slot(&mut self, first: &PageTag) -> &mut Option<(PageTag, u32)> {
        let extent = first.blkno / EXTENT_BLOCKS as u32;
        let number = extent ^ first.relnode.wrapping_mul(31) ^ u32::from(first.forknum);
        &mut self.0[number as usize % RECENT_LEN]
    }
}

/// Tag of the extent's first block, and the block's entry in the extent.
#[inline]
fn split(tag: &PageTag) -> (PageTag, usize) {
    let entry = tag.blkno % EXTENT_BLOCKS as u32;
    let first = PageTag {
        blkno: tag.blkno - entry,
        ..*tag
    };
    (first, entry as usize)
}

impl Places {
    /// Number of the block's entry, whether or not its page has a place; `None` if nothing is known of its extent. It is good
    /// until pages are forgotten.
    #[inline]
    pub fn entry(&mut self, tag: &PageTag) -> Option<u32> {
        let (first, entry) = split(tag);
        let number = match self.recent.slot(&first) {
            Some((known, number)) if *known == first => *number,
            _ => self.find(&first)?,
        };
        Some(number * EXTENT_BLOCKS as u32 + entry as u32)
    }

    /// The place of the page with this entry.
    #[inline]
    pub fn at(&self, entry: u32) -> Option<u32> {
        let place = self.entries.as_flattened()[entry as usize];
        Some(place).filter(|place| *place != NONE)
    }

    /// The page's place.
    #[inline]
    pub fn get(&mut self, tag: &PageTag) -> Option<u32> {
        let entry = self.entry(tag)?;
        self.at(entry)
    }

    /// Gives a page a place; gives its former one.
    pub fn insert(&mut self, tag: &PageTag, place: u32) -> Option<u32> {
        assert!(place != NONE, "no place has this number");
        let (first, entry) = split(tag);
        let number = self.find(&first).unwrap_or_else(|| self.add(first));
        let old = mem::replace(&mut self.entries[number as usize][entry], place);
        Some(old).filter(|place| *place != NONE)
    }

    /// Forgets a page; gives its place.
    pub fn remove(&mut self, tag: &PageTag) -> Option<u32> {
        let (first, entry) = split(tag);
        let number = self.find(&first)?;
        let old = mem::replace(&mut self.entries[number as usize][entry], NONE);
        Some(old).filter(|place| *place != NONE)
    }

    /// Forgets pages; adds their places to `released`.
    pub fn remove_all(&mut self, gone: &Gone<impl Fn(&PageTag) -> bool>, released: &mut Vec<u32>) {
        self.recent = Recent::default();
        for (number, slot) in self.firsts.iter_mut().enumerate() {
            let Some(first) = slot.filter(|first| (gone.of)(first)) else {
                continue;
            };
            let kept = gone.from_block.saturating_sub(first.blkno) as usize;
            let Some(places) = self.entries[number].get_mut(kept..) else {
                continue;
            };
            released.extend(places.iter().copied().filter(|place| *place != NONE));
            places.fill(NONE);
            if kept == 0 {
                *slot = None;
                self.by_tag.remove(&first);
                self.free.push(number as u32);
            }
        }
    }

    /// All pages and their places.
    pub fn iter(&self) -> impl Iterator<Item = (PageTag, u32)> {
        let extents = self.firsts.iter().zip(&self.entries);
        extents
            .filter_map(|(first, places)| first.map(|first| (first, places)))
            .flat_map(|(first, places)| {
                (0..)
                    .zip(places)
                    .map(move |(entry, place)| (first, entry, *place))
            })
            .filter(|(_, _, place)| *place != NONE)
            .map(|(first, entry, place)| {
                let blkno = first.blkno + entry;
                (PageTag { blkno, ..first }, place)
            })
    }

    fn find(&mut self, first: &PageTag) -> Option<u32> {
        let number = *self.by_tag.get(first)?;
        *self.recent.slot(first) = Some((*first, number));
        Some(number)
    }

    fn add(&mut self, first: PageTag) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.firsts.push(None);
            self.entries.push([NONE; EXTENT_BLOCKS]);
            (self.entries.len() - 1) as u32
        });
        self.firsts[number as usize] = Some(first);
        self.by_tag.insert(first, number);
        number
    }
}

/// Hash of a tag. Nobody attacks it.
#[derive(Default)]
pub struct TagHasher(u64);

impl Hasher for TagHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u32(u32::from(value));
    }

    #[inline]
    fn write_u32(&mut self, value: u32) {
        // The numbers of a place differ in few bits: shifted apart, they hardly ever cancel out.
        self.0 = self.0.rotate_left(17) ^ u64::from(value);
    }

    #[inline]
    fn finish(&self) -> u64 {
        let spread = self.0.wrapping_mul(ODD);
        spread ^ spread >> 32
    }
}

/// Odd factor that spreads neighbouring numbers over all bits.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
