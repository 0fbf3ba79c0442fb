//! What a read has found of one key so far, from the newest version down.

use std::ops::Range;

use bytes::Bytes;
use pageserver_api::key::Key;
use pageserver_api::value::{DecodeValueError, Value, ValueRef, WalRecord, WalRecordRef};
use smallvec::SmallVec;
use utils::lsn::Lsn;

use super::block::Block;

/// One key's way down through the layers.
///
/// Invariant: everything at or above `upper` has been found or is not wanted, so each version is added once,
/// in descending order, whatever layers overlap.
#[derive(Debug)]
pub struct ReadState {
    /// The key.
    pub key: Key,
    /// Only versions below this LSN are still missing.
    pub upper: Lsn,
    /// The newest image below the records.
    pub base: Option<Bytes>,
    /// Whether no older version is needed.
    pub complete: bool,
    /// Layer files that were looked into.
    pub files_visited: u32,
    /// Records newer than the base, newest first.
    records: SmallVec<[(Lsn, Found); 4]>,
    /// Blocks of layer files in which records lie.
    blocks: SmallVec<[Block; 2]>,
    /// What all versions below an LSN come to: none of them is looked for.
    known: Option<(Lsn, Bytes)>,
}

/// Where a record is.
#[derive(Debug)]
enum Found {
    Here(WalRecord),
    InBlock {
        /// Number of the block in `blocks`.
        block: u32,
        /// Where the record is in its payload.
        start: u32,
        end: u32,
        will_init: bool,
    },
}

/// A value in a layer's block is none.
#[derive(Debug, thiserror::Error)]
#[error("value at {lsn}: {source}")]
pub struct BadValue {
    lsn: Lsn,
    source: DecodeValueError,
}

impl ReadState {
    /// Nothing found yet; versions below `upper` are wanted.
    pub fn new(key: Key, upper: Lsn) -> Self {
        ReadState {
            key,
            upper,
            base: None,
            complete: false,
            files_visited: 0,
            records: SmallVec::new(),
            blocks: SmallVec::new(),
            known: None,
        }
    }

    /// Nothing found yet, but all versions below `bound` together are known to make `page`.
    pub fn with_known(key: Key, upper: Lsn, bound: Lsn, page: Bytes) -> Self {
        let mut state = ReadState {
            known: Some((bound, page)),
            ..ReadState::new(key, upper)
        };
        state.settle();
        state
    }

    /// Completes the state if what is known covers all that is missing.
    pub fn settle(&mut self) {
        if !self.complete
            && let Some((_, page)) = self.known.take_if(|(bound, _)| self.upper <= *bound)
        {
            self.base = Some(page);
            self.complete = true;
        }
    }

    /// The records, oldest first.
    pub fn records(&self) -> SmallVec<[(Lsn, WalRecordRef<'_>); 4]> {
        let in_place = |found| match found {
            &Found::InBlock {
                block,
                start,
                end,
                will_init,
            } => WalRecordRef::Postgres {
                will_init,
                record: &self.blocks[block as usize].payload()[start as usize..end as usize],
            },
            Found::Here(record) => record.into(),
        };
        let oldest_first = self.records.iter().rev();
        oldest_first.map(|(lsn, found)| (*lsn, in_place(found))).collect()
    }

    /// LSN of the newest record.
    pub fn newest_record(&self) -> Option<Lsn> {
        self.records.first().map(|(lsn, _)| *lsn)
    }

    /// Takes the next older version. Returns whether no older one is needed.
    pub fn add(&mut self, lsn: Lsn, value: Value) -> bool {
        if self.come_to(lsn) {
            return true;
        }
        self.complete = value.will_init();
        match value {
            Value::Image(image) => self.base = Some(image),
            Value::WalRecord(record) => self.records.push((lsn, Found::Here(record))),
        }
        self.complete
    }

    /// Takes the versions numbered `versions` in a block of a delta layer, newest first, until no older one is needed.
    /// Returns whether that is so. Nothing of them is copied.
    pub fn add_block(&mut self, block: &Block, versions: Range<usize>) -> Result<bool, BadValue> {
        if versions.is_empty() {
            return Ok(false);
        }
        self.records.reserve(versions.len());
        let number = self.blocks.len() as u32;
        for at in versions.rev() {
            let lsn = Lsn(block.key_tail(at));
            if self.come_to(lsn) {
                break;
            }
            let place = block.value_range(at);
            let value = ValueRef::decode(&block.payload()[place.clone()]);
            let found = match value.map_err(|source| BadValue { lsn, source })? {
                ValueRef::Image(image) => {
                    self.base = Some(block.payload().slice(place.end - image.len()..place.end));
                    self.complete = true;
                    break;
                }
                ValueRef::WalRecord(WalRecordRef::Postgres { will_init, record }) => {
                    self.complete = will_init;
                    Found::InBlock {
                        block: number,
                        start: (place.end - record.len()) as u32,
                        end: place.end as u32,
                        will_init,
                    }
                }
                ValueRef::WalRecord(WalRecordRef::Special(record)) => Found::Here(record.into_owned()),
            };
            self.records.push((lsn, found));
            if self.complete {
                break;
            }
        }
        self.blocks.push(block.clone());
        Ok(self.complete)
    }

    /// The next older version is at `lsn`. Returns whether it is not needed any more.
    fn come_to(&mut self, lsn: Lsn) -> bool {
        assert!(
            !self.complete && lsn < self.upper,
            "{lsn} of {} is not wanted",
            self.key
        );
        self.upper = lsn;
        if let Some((_, page)) = self.known.take_if(|(bound, _)| lsn < *bound) {
            self.base = Some(page);
            self.complete = true;
        }
        self.complete
    }
}
