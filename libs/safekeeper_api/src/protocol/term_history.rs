//! Which term wrote which part of the WAL.
//!
//! Invariants
//! * Terms ascend strictly; LSNs never descend.
//! * Entry `i` says: WAL from its LSN up to the LSN of entry `i + 1` was first written in its term.
//! * Two histories that share an entry of some term agree on everything before it, because a term is
//!   written by one elected proposer, which took the older part from a quorum.

use std::fmt;

use bytes::{BufMut, BytesMut};
use utils::lsn::Lsn;

use super::{TERM_HISTORY_ENTRIES_MAX, Term};

/// The start of a term in the WAL.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TermLsn {
    /// The term.
    pub term: Term,
    /// Where its WAL begins.
    pub lsn: Lsn,
}

impl TermLsn {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 16;
}

/// The entries do not form a history.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum TermHistoryError {
    /// More than [`TERM_HISTORY_ENTRIES_MAX`] entries.
    #[error("{0} entries are more than the {TERM_HISTORY_ENTRIES_MAX} allowed")]
    TooLong(usize),
    /// A term is not above the one before it, or an LSN is below the one before it.
    #[error("term {} at {} cannot follow term {} at {}", next.term, next.lsn, previous.term, previous.lsn)]
    OutOfOrder {
        /// The entry before.
        previous: TermLsn,
        /// The entry that cannot follow it.
        next: TermLsn,
    },
}

/// Starts of the terms of a timeline, oldest first.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct TermHistory(Vec<TermLsn>);

impl TermHistory {
    /// A history with these entries.
    ///
    /// # Errors
    /// [`TermHistoryError`] if they are too many or out of order.
    pub fn new(entries: Vec<TermLsn>) -> Result<TermHistory, TermHistoryError> {
        if entries.len() > TERM_HISTORY_ENTRIES_MAX {
            return Err(TermHistoryError::TooLong(entries.len()));
        }
        for pair in entries.windows(2) {
            check_order(pair[0], pair[1])?;
        }
        Ok(TermHistory(entries))
    }

    /// Adds the newest term.
    ///
    /// # Errors
    /// [`TermHistoryError`] if the history is full or the entry cannot follow the last one.
    pub fn push(&mut self, entry: TermLsn) -> Result<(), TermHistoryError> {
        if self.0.len() == TERM_HISTORY_ENTRIES_MAX {
            return Err(TermHistoryError::TooLong(self.0.len() + 1));
        }
        if let Some(last) = self.0.last() {
            check_order(*last, entry)?;
        }
        self.0.push(entry);
        Ok(())
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> &[TermLsn] {
        &self.0
    }

    /// The newest entry.
    pub fn last(&self) -> Option<TermLsn> {
        self.0.last().copied()
    }

    /// The history as seen by someone whose WAL ends at `end`: entries that start at or before it.
    pub fn up_to(&self, end: Lsn) -> TermHistory {
        let count = self.0.partition_point(|entry| entry.lsn <= end);
        TermHistory(self.0[..count].to_vec())
    }

    /// The epoch of WAL that ends at `end`: term of the last entry at or before it, 0 without one.
    pub fn epoch_at(&self, end: Lsn) -> Term {
        let count = self.0.partition_point(|entry| entry.lsn <= end);
        count.checked_sub(1).map_or(Term::ZERO, |last| self.0[last].term)
    }

    /// How far the WAL of `other`, which ends at `other_end`, agrees with the WAL this history
    /// describes. `None` if they share no term.
    ///
    /// That is the end of the last common term: the earlier of the next entries of both, where
    /// `other_end` stands for the next entry that `other` lacks.
    pub fn common_end(&self, other: &TermHistory, other_end: Lsn) -> Option<Lsn> {
        let pairs = self.0.iter().zip(&other.0);
        let common = pairs.take_while(|(ours, theirs)| ours == theirs).count();
        if common == 0 {
            return None;
        }
        let theirs = other
            .0
            .get(common)
            .map_or(other_end, |next| next.lsn.min(other_end));
        let ours = self.0.get(common).map_or(Lsn::MAX, |next| next.lsn);
        Some(ours.min(theirs))
    }

    /// What [`Mutation::ForgetHistoryEntry`](crate::mutation::Mutation::ForgetHistoryEntry) leaves.
    pub fn without_last_but_one(&self) -> TermHistory {
        let forgotten = self.0.len().checked_sub(2);
        let kept = self
            .0
            .iter()
            .enumerate()
            .filter(|(index, _)| Some(*index) != forgotten);
        TermHistory(kept.map(|(_, entry)| *entry).collect())
    }

    /// Appends the wire form: `n u32, n x (term u64, lsn u64)`, little-endian.
    pub(super) fn encode(&self, out: &mut BytesMut) {
        let count = u32::try_from(self.0.len()).expect("TERM_HISTORY_ENTRIES_MAX fits in 32 bits");
        out.put_u32_le(count);
        for entry in &self.0 {
            out.put_u64_le(entry.term.0);
            out.put_u64_le(entry.lsn.0);
        }
    }

    /// Length of the wire form, in bytes.
    pub(super) fn encoded_len(&self) -> usize {
        4 + self.0.len() * TermLsn::LEN
    }
}

fn check_order(previous: TermLsn, next: TermLsn) -> Result<(), TermHistoryError> {
    if next.term > previous.term && next.lsn >= previous.lsn {
        Ok(())
    } else {
        Err(TermHistoryError::OutOfOrder { previous, next })
    }
}

/// `1@0/1000 3@0/2000`.
impl fmt::Display for TermHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, entry) in self.0.iter().enumerate() {
            let blank = if i == 0 { "" } else { " " };
            write!(f, "{blank}{}@{}", entry.term, entry.lsn)?;
        }
        Ok(())
    }
}

impl fmt::Debug for TermHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(text: &str) -> TermHistory {
        let entry = |part: &str| {
            let (term, lsn) = part.split_once('@').unwrap();
            TermLsn {
                term: Term(term.parse().unwrap()),
                lsn: Lsn(lsn.parse().unwrap()),
            }
        };
        TermHistory::new(text.split_whitespace().map(entry).collect()).unwrap()
    }

    #[test]
    fn common_end_of_two_histories() {
        for (ours, theirs, theirs_end, want) in [
            ("", "", 0, None),
            ("1@8", "", 0, None),
            ("1@8", "2@8", 16, None),
            ("1@8", "1@8", 30, Some(30)),
            ("1@8 3@20", "1@8", 30, Some(20)),
            ("1@8 3@40", "1@8", 30, Some(30)),
            ("1@8 3@40", "1@8 2@20", 30, Some(20)),
            ("1@8 3@40", "1@8 3@40", 40, Some(40)),
            ("1@8 3@40", "1@8 3@40", 60, Some(60)),
            ("1@8 3@40 9@50", "1@8 3@40 7@60", 70, Some(50)),
            // The same term at another place is not common: whoever says so is broken.
            ("1@8 3@40", "1@8 3@50", 60, Some(40)),
        ] {
            let got = history(ours).common_end(&history(theirs), Lsn(theirs_end));
            assert_eq!(got, want.map(Lsn), "{ours} / {theirs} end {theirs_end}");
        }
    }

    #[test]
    fn cut_and_epoch() {
        let full = history("1@8 3@40 4@40 9@50");
        for (end, cut, epoch) in [
            (0, "", 0),
            (7, "", 0),
            (8, "1@8", 1),
            (40, "1@8 3@40 4@40", 4),
            (50, "1@8 3@40 4@40 9@50", 9),
        ] {
            assert_eq!(full.up_to(Lsn(end)), history(cut), "cut at {end}");
            assert_eq!(full.epoch_at(Lsn(end)), Term(epoch), "epoch at {end}");
        }
    }

    #[test]
    fn order_is_checked() {
        let entry = |term, lsn| TermLsn {
            term: Term(term),
            lsn: Lsn(lsn),
        };
        assert!(TermHistory::new(vec![entry(1, 8), entry(1, 9)]).is_err());
        assert!(TermHistory::new(vec![entry(2, 8), entry(1, 9)]).is_err());
        assert!(TermHistory::new(vec![entry(1, 9), entry(2, 8)]).is_err());
        let mut good = history("1@8");
        assert!(good.push(entry(1, 10)).is_err());
        good.push(entry(2, 8)).unwrap();
        assert_eq!(good, history("1@8 2@8"));
    }
}
