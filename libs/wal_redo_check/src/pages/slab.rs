//! Memory for pages, each in a place that has a number.

use std::io;

use memmap2::{MmapMut, MmapOptions};
use wal_redo::{PAGE_SIZE, PageBuf};

/// Pages in one mapping, which the kernel backs with memory at one go instead of in a page fault for each.
const CHUNK_PAGES: usize = 128;

/// Memory for pages.
#[derive(Default)]
pub struct Slab {
    /// Anonymous mappings, zeros at first.
    chunks: Vec<MmapMut>,
    /// Places that are not used any more.
    pub free: Vec<u32>,
    /// Places given out so far, free ones included.
    pub len: u32,
}

impl Slab {
    /// A place for a page, made of zeros.
    pub fn add(&mut self) -> io::Result<u32> {
        if let Some(place) = self.free.pop() {
            self.page(place).fill(0);
            return Ok(place);
        }
        let place = self.len;
        if (place as usize).is_multiple_of(CHUNK_PAGES) {
            let mut mapping = MmapOptions::new();
            self.chunks
                .push(mapping.len(CHUNK_PAGES * PAGE_SIZE).populate().map_anon()?);
        }
        self.len += 1;
        Ok(place)
    }

    /// The page at a place, for changing.
    #[inline]
    pub fn page(&mut self, place: u32) -> &mut PageBuf {
        let (pages, _) = self.chunks[place as usize / CHUNK_PAGES].as_chunks_mut();
        &mut pages[place as usize % CHUNK_PAGES]
    }

    /// The page at a place.
    pub fn shared(&self, place: u32) -> &PageBuf {
        let (pages, _) = self.chunks[place as usize / CHUNK_PAGES].as_chunks();
        &pages[place as usize % CHUNK_PAGES]
    }
}
