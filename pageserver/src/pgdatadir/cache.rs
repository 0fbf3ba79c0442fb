//! What ingest remembers of the timeline, so that its hot path does not read: sizes of relation forks and
//! SLRU segments, and the directories.
//!
//! Invariants
//! * Everything written through [`super::modification`] since the last [`MetadataCache::forget_old`] is in here:
//!   a read that finds nothing here may go to the store and misses no change that is still in a batch.
//! * One cache belongs to one writer of one timeline. After a failed write it is thrown away.

use std::collections::HashMap;

use bytes::Bytes;
use pageserver_api::reltag::{RelTag, SlruKind};
use rustc_hash::FxHashMap;

use super::directory::{DbDirectory, NumberSet};
use super::repl_origins::ReplOrigins;

/// Relation forks remembered per generation; an entry takes about 40 bytes.
const RELS_PER_GENERATION: usize = 256 * 1024;

/// Size of a relation fork in blocks; `None` if it does not exist.
pub type RelState = Option<u32>;

/// See the module head.
#[derive(Debug, Default)]
pub struct MetadataCache {
    /// Two generations: what is used moves to `young`; when that is full it becomes `old`, and what was in `old`
    /// and not used since is forgotten.
    young: FxHashMap<RelTag, RelState>,
    old: FxHashMap<RelTag, RelState>,
    /// Sizes in blocks of SLRU segments; there are at most some ten thousand.
    pub(super) slru_sizes: FxHashMap<(SlruKind, u32), u32>,
    pub(super) slru_segments: HashMap<SlruKind, NumberSet>,
    pub(super) databases: Option<DbDirectory>,
    pub(super) prepared: Option<NumberSet>,
    pub(super) control_file: Option<Bytes>,
    pub(super) origins: Option<ReplOrigins>,
    /// Change of the cluster's logical size since it was last taken, in blocks.
    pub(super) grown_blocks: i64,
}

impl MetadataCache {
    /// What is known of the fork; the outer `None` is "nothing".
    pub(super) fn rel(&mut self, rel: RelTag) -> Option<RelState> {
        if let Some(state) = self.young.get(&rel) {
            return Some(*state);
        }
        let state = self.old.remove(&rel)?;
        self.young.insert(rel, state);
        Some(state)
    }

    pub(super) fn set_rel(&mut self, rel: RelTag, state: RelState) {
        self.young.insert(rel, state);
    }

    /// All forks of the database that are remembered as existing.
    pub(super) fn known_rels(&self, of: impl Fn(&RelTag) -> bool) -> Vec<RelTag> {
        let all = self.young.iter().chain(&self.old);
        all.filter(|(rel, state)| state.is_some() && of(rel))
            .map(|(rel, _)| *rel)
            .collect()
    }

    /// To be called when the store has every value written so far: bounds the memory used.
    pub fn forget_old(&mut self) {
        if self.young.len() >= RELS_PER_GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
    }

    /// Change of the logical size since the last call, in blocks.
    pub fn take_grown_blocks(&mut self) -> i64 {
        std::mem::take(&mut self.grown_blocks)
    }
}

#[cfg(test)]
mod tests {
    use pageserver_api::reltag::Fork;

    use super::*;

    fn rel(relnode: u32) -> RelTag {
        RelTag {
            spcnode: 1663,
            dbnode: 5,
            relnode,
            fork: Fork::Main,
        }
    }

    #[test]
    fn unused_relations_are_forgotten_only_when_the_store_has_them() {
        let mut cache = MetadataCache::default();
        for relnode in 0..3 * RELS_PER_GENERATION as u32 {
            cache.set_rel(rel(relnode), Some(relnode));
        }
        assert_eq!(cache.rel(rel(0)), Some(Some(0)));
        cache.forget_old();
        assert_eq!(cache.rel(rel(7)), Some(Some(7)));
        for relnode in 0..RELS_PER_GENERATION as u32 {
            cache.set_rel(rel(1_000_000_000 + relnode), None);
        }
        cache.forget_old();
        assert_eq!(cache.rel(rel(7)), Some(Some(7)));
        assert_eq!(cache.rel(rel(8)), None);
        assert_eq!(cache.rel(rel(1_000_000_000)), Some(None));
    }
}
