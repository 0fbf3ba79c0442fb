//! Pages that were reconstructed a moment ago, shared by all timelines of the process: a page that changes with
//! every transaction is not made again from its last image and thousands of records for every read.
//!
//! Invariants
//! * What is remembered under a timeline and a key is the value of the key at every LSN within `changed..=read_at`.
//!   Versions at or below a timeline's last record never change, so an entry can become old but never wrong.
//! * An entry belongs to one [`super::Timeline`] object, not to a timeline id: what is deleted and made again under
//!   the same id starts with nothing.

use bytes::Bytes;
use pageserver_api::key::Key;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use utils::lsn::Lsn;

/// Memory an entry takes beside its page, in bytes, approximately.
const ENTRY_OVERHEAD_BYTES: u64 = 128;

/// What a page was known to be.
#[derive(Clone, Debug)]
pub struct KnownPage {
    /// LSN of the last record that changed it.
    pub changed: Lsn,
    /// The highest LSN at which it is known to be the value.
    pub read_at: Lsn,
    /// The value.
    pub page: Bytes,
}

#[derive(Clone, Debug)]
struct ByMemory;

impl Weighter<(u64, Key), KnownPage> for ByMemory {
    fn weight(&self, _key: &(u64, Key), known: &KnownPage) -> u64 {
        known.page.len() as u64 + ENTRY_OVERHEAD_BYTES
    }
}

/// See the module head.
#[derive(Debug)]
pub struct PageMemory(Cache<(u64, Key), KnownPage, ByMemory>);

impl PageMemory {
    /// Room for `bytes` of pages.
    pub fn new(bytes: u64) -> Self {
        PageMemory(Cache::with_weighter(
            (bytes / 8192).max(16) as usize,
            bytes,
            ByMemory,
        ))
    }

    /// The page of timeline object `timeline` under `key`, if it helps a read at `lsn`: at or before it.
    pub fn find(&self, timeline: u64, key: Key, lsn: Lsn) -> Option<KnownPage> {
        let known = self.0.get(&(timeline, key))?;
        (known.changed <= lsn).then_some(known)
    }

    /// Remembers a page, unless a newer one is there.
    pub fn remember(&self, timeline: u64, key: Key, page: KnownPage) {
        assert!(page.changed <= page.read_at, "{key} was read before its change");
        if self
            .0
            .peek(&(timeline, key))
            .is_none_or(|known| known.read_at < page.read_at)
        {
            self.0.insert((timeline, key), page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(changed: u64, read_at: u64) -> KnownPage {
        KnownPage {
            changed: Lsn(changed),
            read_at: Lsn(read_at),
            page: Bytes::from(vec![changed as u8; 8192]),
        }
    }

    #[test]
    fn a_page_helps_reads_at_or_after_its_last_change_only() {
        let memory = PageMemory::new(1 << 20);
        memory.remember(1, Key::MIN, known(10, 20));
        assert!(memory.find(1, Key::MIN, Lsn(9)).is_none());
        assert_eq!(memory.find(1, Key::MIN, Lsn(10)).unwrap().read_at, Lsn(20));
        assert!(memory.find(2, Key::MIN, Lsn(10)).is_none());
    }

    #[test]
    fn a_newer_page_stays() {
        let memory = PageMemory::new(1 << 20);
        memory.remember(1, Key::MIN, known(10, 20));
        memory.remember(1, Key::MIN, known(5, 9));
        assert_eq!(memory.find(1, Key::MIN, Lsn(30)).unwrap().changed, Lsn(10));
        memory.remember(1, Key::MIN, known(25, 30));
        assert_eq!(memory.find(1, Key::MIN, Lsn(30)).unwrap().changed, Lsn(25));
    }
}
