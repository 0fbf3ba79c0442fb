//! What a read has found of one key so far, from the newest version down.

use bytes::Bytes;
use pageserver_api::key::Key;
use pageserver_api::value::{Value, WalRecord};
use smallvec::SmallVec;
use utils::lsn::Lsn;

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
    /// Records newer than the base, newest first.
    pub records: SmallVec<[(Lsn, WalRecord); 4]>,
    /// Whether no older version is needed.
    pub complete: bool,
    /// Layer files that were looked into.
    pub files_visited: u32,
    /// What all versions below an LSN come to: none of them is looked for.
    known: Option<(Lsn, Bytes)>,
}

impl ReadState {
    /// Nothing found yet; versions below `upper` are wanted.
    pub fn new(key: Key, upper: Lsn) -> Self {
        ReadState {
            key,
            upper,
            base: None,
            records: SmallVec::new(),
            complete: false,
            files_visited: 0,
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

    /// Takes the next older version. Returns whether no older one is needed.
    pub fn add(&mut self, lsn: Lsn, value: Value) -> bool {
        assert!(
            !self.complete && lsn < self.upper,
            "{lsn} of {} is not wanted",
            self.key
        );
        self.upper = lsn;
        if let Some((_, page)) = self.known.take_if(|(bound, _)| lsn < *bound) {
            self.base = Some(page);
            self.complete = true;
            return true;
        }
        self.complete = value.will_init();
        match value {
            Value::Image(image) => self.base = Some(image),
            Value::WalRecord(record) => self.records.push((lsn, record)),
        }
        self.complete
    }
}
