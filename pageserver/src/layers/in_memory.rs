//! The layer that new versions go to: in memory, open while it grows, frozen while it is written out.
//!
//! Invariants
//! * It holds every version its timeline got within `start..end`; `end` is set when it is frozen.
//! * Versions at or above `end` are invisible: they belong to a record whose ingest was abandoned, and
//!   that is ingested again.
//! * Values are kept as they came and share memory with the WAL they were decoded from, so a layer pins
//!   about as many bytes as the WAL it covers.
//!
//! Versions of one key form a list from the newest to the oldest. Each has besides the link to its
//! predecessor one that jumps further back, arranged so that any older version is found in a
//! logarithmic number of steps (Myers, "An applicative random-access stack", 1983).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use pageserver_api::key::Key;
use pageserver_api::value::{Value, WalRecord};
use parking_lot::RwLock;
use utils::lsn::Lsn;

use super::budget::{MemoryBudget, Reservation};
use super::read_state::ReadState;

/// Versions per allocation.
const CHUNK_LEN: usize = 1024;
/// What a key costs beside its versions, in bytes: an entry of the sorted index, with slack.
const KEY_OVERHEAD_BYTES: u64 = 48;
/// The absent link.
const NONE: u32 = u32::MAX;
/// Versions a layer can number.
pub const VERSIONS_MAX: usize = NONE as usize;

/// See the module head.
#[derive(Debug)]
pub struct InMemoryLayer {
    start: Lsn,
    end: OnceLock<Lsn>,
    opened_at: Instant,
    versions: RwLock<Versions>,
}

#[derive(Debug)]
struct Versions {
    newest: BTreeMap<Key, u32>,
    chunks: Vec<Vec<Version>>,
    memory: Reservation,
}

#[derive(Debug)]
struct Version {
    lsn: Lsn,
    value: Value,
    previous: u32,
    jump: u32,
    /// Number of older versions of the key.
    depth: u32,
}

impl InMemoryLayer {
    /// An empty layer whose versions will be at `start` or above.
    pub fn new(start: Lsn, budget: &Arc<MemoryBudget>) -> Self {
        InMemoryLayer {
            start,
            end: OnceLock::new(),
            opened_at: Instant::now(),
            versions: RwLock::new(Versions {
                newest: BTreeMap::new(),
                chunks: Vec::new(),
                memory: Reservation::new(budget),
            }),
        }
    }

    /// First LSN covered.
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// First LSN not covered any more; `None` while the layer is open.
    pub fn end(&self) -> Option<Lsn> {
        self.end.get().copied()
    }

    /// When the layer was made.
    pub fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// Memory the versions take, in bytes, approximately.
    pub fn memory_bytes(&self) -> u64 {
        self.versions.read().memory.bytes()
    }

    /// Whether no version has been put.
    pub fn is_empty(&self) -> bool {
        self.versions.read().newest.is_empty()
    }

    /// Ends the layer: from now on it does not change.
    pub fn freeze(&self, end: Lsn) {
        assert!(
            end > self.start,
            "a layer from {} cannot end at {end}",
            self.start
        );
        self.end.set(end).expect("a layer is frozen once");
    }

    /// Adds versions, ascending by LSN. One with the key and LSN of the version before replaces it.
    pub fn put(&self, values: Vec<(Key, Lsn, Value)>) {
        assert!(self.end.get().is_none(), "a frozen layer does not change");
        let mut versions = self.versions.write();
        for (key, lsn, value) in values {
            assert!(
                lsn >= self.start,
                "{lsn} is before the open layer, which starts at {}",
                self.start
            );
            versions.put(key, lsn, value);
        }
    }

    /// Gives the versions of `state.key` below `state.upper`, newest first, until it has enough.
    pub fn collect(&self, state: &mut ReadState) {
        let upper = self.end.get().map_or(state.upper, |end| state.upper.min(*end));
        let versions = self.versions.read();
        let mut at = versions.newest_below(state.key, upper);
        while let Some(version) = versions.get(at) {
            if state.add(version.lsn, version.value.clone()) {
                return;
            }
            at = version.previous;
        }
    }

    /// Adds to `keys` those of `range` that have a version below `upper`.
    pub fn keys(&self, range: &Range<Key>, upper: Lsn, keys: &mut Vec<Key>) {
        let upper = self.end.get().map_or(upper, |end| upper.min(*end));
        let versions = self.versions.read();
        let within = versions.newest.range(range.clone());
        keys.extend(within.filter_map(|(key, _)| {
            let at = versions.newest_below(*key, upper);
            versions.get(at).map(|_| *key)
        }));
    }

    /// Calls `visit` with every version of a frozen layer, ascending by key and LSN, until it fails.
    pub fn for_each<E>(&self, mut visit: impl FnMut(Key, Lsn, &Value) -> Result<(), E>) -> Result<(), E> {
        let end = *self.end.get().expect("only frozen layers are written out");
        let versions = self.versions.read();
        let mut of_key = Vec::new();
        for (key, newest) in &versions.newest {
            of_key.clear();
            let mut at = *newest;
            while let Some(version) = versions.get(at) {
                of_key.push(at);
                at = version.previous;
            }
            for at in of_key.iter().rev() {
                let version = versions.get(*at).expect("the index was met on the way back");
                if version.lsn < end {
                    visit(*key, version.lsn, &version.value)?;
                }
            }
        }
        Ok(())
    }
}

impl Versions {
    fn get(&self, at: u32) -> Option<&Version> {
        let at = at as usize;
        self.chunks.get(at / CHUNK_LEN)?.get(at % CHUNK_LEN)
    }

    fn put(&mut self, key: Key, lsn: Lsn, value: Value) {
        let cost = std::mem::size_of::<Version>() as u64 + payload_bytes(&value);
        let at = self.next_index();
        let head = self.newest.entry(key).or_insert(NONE);
        let previous = std::mem::replace(head, at);
        let mut added = cost;
        if previous == NONE {
            added += KEY_OVERHEAD_BYTES;
            self.push(Version {
                lsn,
                value,
                previous,
                jump: NONE,
                depth: 0,
            });
        } else {
            let newest = self.get(previous).expect("links lead to versions");
            let newest_lsn = newest.lsn;
            assert!(lsn >= newest_lsn, "{lsn} of {key} comes after {newest_lsn}");
            if lsn == newest_lsn {
                *self.newest.get_mut(&key).expect("it was just inserted") = previous;
                let same = &mut self.chunks[previous as usize / CHUNK_LEN][previous as usize % CHUNK_LEN];
                same.value = value;
            } else {
                let (jump, depth) = (self.jump_from(previous), newest.depth + 1);
                self.push(Version {
                    lsn,
                    value,
                    previous,
                    jump,
                    depth,
                });
            }
        }
        self.memory.grow(added);
    }

    fn next_index(&self) -> u32 {
        let full = self.chunks.len().saturating_sub(1) * CHUNK_LEN;
        let index = full + self.chunks.last().map_or(0, Vec::len);
        assert!(
            index < VERSIONS_MAX,
            "a layer is frozen long before it holds so many versions"
        );
        index as u32
    }

    fn push(&mut self, version: Version) {
        match self.chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK_LEN => chunk.push(version),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK_LEN);
                chunk.push(version);
                self.chunks.push(chunk);
            }
        }
    }

    /// Where the version after `previous` jumps to: past two equal jumps at once, or to `previous`.
    fn jump_from(&self, previous: u32) -> u32 {
        let depth_of = |at: u32| self.get(at).map(|version| version.depth);
        let Some(version) = self.get(previous) else {
            return NONE;
        };
        let Some(first) = self.get(version.jump) else {
            return previous;
        };
        match depth_of(first.jump) {
            Some(second) if version.depth - first.depth == first.depth - second => first.jump,
            _ => previous,
        }
    }

    /// The newest version of `key` with an LSN below `upper`.
    fn newest_below(&self, key: Key, upper: Lsn) -> u32 {
        let mut at = self.newest.get(&key).copied().unwrap_or(NONE);
        while let Some(version) = self.get(at) {
            if version.lsn < upper {
                return at;
            }
            at = match self.get(version.jump) {
                Some(jump) if jump.lsn >= upper => version.jump,
                _ => version.previous,
            };
        }
        NONE
    }
}

/// Bytes outside the version's own memory.
fn payload_bytes(value: &Value) -> u64 {
    let bytes = match value {
        Value::Image(image) => image.len(),
        Value::WalRecord(WalRecord::Postgres { record, .. }) => record.len(),
        Value::WalRecord(WalRecord::ClogSetCommitted { xids, .. } | WalRecord::ClogSetAborted { xids }) => {
            std::mem::size_of_val(xids.as_slice())
        }
        Value::WalRecord(WalRecord::MultixactMembersCreate { members, .. }) => {
            std::mem::size_of_val(members.as_slice())
        }
        Value::WalRecord(
            WalRecord::ClearVisibilityMapFlags { .. } | WalRecord::MultixactOffsetCreate { .. },
        ) => 0,
    };
    bytes as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u32) -> Key {
        Key {
            field6: n,
            ..Key::MIN
        }
    }

    fn layer() -> InMemoryLayer {
        InMemoryLayer::new(Lsn(8), &MemoryBudget::new(u64::MAX))
    }

    fn record(n: u64) -> Value {
        let record = n.to_be_bytes().to_vec().into();
        Value::WalRecord(WalRecord::Postgres {
            will_init: n.is_multiple_of(50),
            record,
        })
    }

    fn read(layer: &InMemoryLayer, key: Key, upper: Lsn) -> Vec<Lsn> {
        let mut state = ReadState::new(key, upper);
        layer.collect(&mut state);
        state.records().iter().rev().map(|(lsn, _)| *lsn).collect()
    }

    proptest! {
        #[test]
        fn every_version_is_found_from_every_lsn(count in 1u64..300, step in 1u64..20) {
            let layer = layer();
            for n in 1..=count {
                layer.put(vec![(key(1), Lsn(n * step + 8), record(n)), (key(3), Lsn(n * step + 8), record(1))]);
            }
            for upper in 0..(count + 2) * step + 8 {
                let newest = upper.saturating_sub(9) / step;
                let newest = newest.min(count);
                let oldest = if newest >= 50 { newest / 50 * 50 } else { 1 };
                let want: Vec<Lsn> = (oldest..=newest).rev().map(|n| Lsn(n * step + 8)).collect();
                prop_assert_eq!(read(&layer, key(1), Lsn(upper)), want);
            }
            prop_assert_eq!(read(&layer, key(2), Lsn::MAX), vec![]);
        }
    }

    #[test]
    fn old_versions_are_few_steps_away() {
        let layer = layer();
        for n in 1..=100_000u64 {
            layer.put(vec![(key(1), Lsn(8 * n), record(1))]);
        }
        let versions = layer.versions.read();
        let (mut at, mut steps) = (versions.newest[&key(1)], 0);
        while versions.get(at).unwrap().lsn >= Lsn(8 * 777) {
            let version = versions.get(at).unwrap();
            at = match versions.get(version.jump) {
                Some(jump) if jump.lsn >= Lsn(8 * 777) => version.jump,
                _ => version.previous,
            };
            steps += 1;
        }
        assert!(steps < 60, "{steps}");
    }

    #[test]
    fn what_is_put_twice_at_an_lsn_counts_once() {
        let layer = layer();
        layer.put(vec![
            (key(1), Lsn(8), record(1)),
            (key(1), Lsn(16), record(2)),
            (key(1), Lsn(16), Value::Image("page".into())),
            (key(1), Lsn(24), record(3)),
        ]);
        let mut state = ReadState::new(key(1), Lsn::MAX);
        layer.collect(&mut state);
        assert_eq!(state.base.as_deref(), Some(&b"page"[..]));
        assert_eq!(state.records().len(), 1);
    }

    #[test]
    fn a_frozen_layer_hides_what_was_abandoned() {
        let budget = MemoryBudget::new(u64::MAX);
        let layer = InMemoryLayer::new(Lsn(8), &budget);
        layer.put(vec![
            (key(2), Lsn(8), record(1)),
            (key(1), Lsn(16), record(2)),
            (key(1), Lsn(24), record(3)),
        ]);
        layer.freeze(Lsn(17));
        assert_eq!(read(&layer, key(1), Lsn::MAX), [Lsn(16)]);
        let mut seen = Vec::new();
        layer
            .for_each(|key, lsn, _| -> Result<(), ()> {
                seen.push((key, lsn));
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, [(key(1), Lsn(16)), (key(2), Lsn(8))]);
        let mut keys = Vec::new();
        layer.keys(&(key(0)..key(9)), Lsn(16), &mut keys);
        assert_eq!(keys, [key(2)]);
        assert!(budget.used() > 0);
        drop(layer);
        assert_eq!(budget.used(), 0);
    }
}
