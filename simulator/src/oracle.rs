//! What must hold, whatever happens.
//!
//! * At most one proposer is elected in a term, and no safekeeper votes for two in one.
//! * What is committed was durable on a majority when it was, and stays so, byte for byte.
//! * What a proposer commits is the start of the WAL of every proposer elected in a higher term: nothing
//!   acknowledged is missing from what a later compute recovers, and a fenced compute acknowledges
//!   nothing more than that.
//! * The WAL of a compute is what is committed as far as it says so.
//! * A safekeeper's commit LSN is at most what is committed, and its WAL agrees up to there. What nobody needs any more is
//!   committed, too.
//! * Term and commit LSN never go back on disk, nor does WAL that was reported as durable go away,
//!   except where an election cut it off.

use std::collections::{BTreeMap, HashMap};

use postgres_ffi::v15::stream::{Checksums, RecordEnds};
use safekeeper::acceptor::{ControlState, Positions};
use safekeeper_api::protocol::Term;
use utils::lsn::Lsn;
use walproposer::Proposer;

use crate::disk::Disk;
use crate::wal::{LocalWal, SEGMENT_SIZE};
use crate::{Violation, violation};

/// A run of a proposer: compute and number of the run.
pub(crate) type ProposerRun = (usize, u64);

#[derive(Debug)]
struct Leader {
    run: ProposerRun,
    epoch_start_lsn: Lsn,
    commit_lsn: Lsn,
}

/// Knows the whole history.
#[derive(Debug)]
pub(crate) struct Oracle {
    quorum: usize,
    leaders: BTreeMap<Term, Leader>,
    votes: HashMap<(usize, Term), ProposerRun>,
    /// Where the timeline begins.
    start: Lsn,
    committed: Vec<u8>,
    /// By safekeeper: how far its durable WAL is the committed one.
    matched: Vec<Lsn>,
}

impl Oracle {
    pub(crate) fn new(safekeepers: usize, start: Lsn) -> Oracle {
        Oracle {
            quorum: safekeepers / 2 + 1,
            leaders: BTreeMap::new(),
            votes: HashMap::new(),
            start,
            committed: Vec::new(),
            matched: vec![start; safekeepers],
        }
    }

    pub(crate) fn committed_end(&self) -> Lsn {
        self.start + self.committed.len() as u64
    }

    pub(crate) fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }

    fn committed_slice(&self, begin: Lsn, end: Lsn) -> &[u8] {
        &self.committed[(begin - self.start) as usize..(end - self.start) as usize]
    }

    /// Start of the last record that ends at or before `end`, as a page server that has all committed
    /// WAL knows it; 0 if there is none.
    pub(crate) fn last_record_start(&self, end: Lsn) -> Lsn {
        let mut ends = RecordEnds::new(self.start, SEGMENT_SIZE, Checksums::Skip);
        // WAL that is not valid is found elsewhere.
        let _ = ends.feed(self.committed_slice(self.start, end));
        if ends.last_end() > ends.last_start() {
            ends.last_start()
        } else {
            Lsn::INVALID
        }
    }

    /// A safekeeper gives its vote.
    pub(crate) fn on_vote(&mut self, sk: usize, term: Term, run: ProposerRun) -> Result<(), Violation> {
        let first = *self.votes.entry((sk, term)).or_insert(run);
        if first != run {
            return violation!("safekeeper {sk} votes in term {term} for {first:?} and for {run:?}");
        }
        Ok(())
    }

    /// Looks at a proposer after each of its steps. `wal` is the local server's, if there is one.
    pub(crate) fn on_proposer(
        &mut self,
        run: ProposerRun,
        proposer: &Proposer,
        wal: Option<&LocalWal>,
        disks: &[&Disk],
    ) -> Result<(), Violation> {
        let (Some(term), Some(start)) = (proposer.elected_term(), proposer.epoch_start_lsn()) else {
            return Ok(());
        };
        if !self.leaders.contains_key(&term) {
            self.on_election(term, run, start)?;
        }
        let leader = &self.leaders[&term];
        if leader.run != run {
            return violation!("term {term} is won by {:?} and by {run:?}", leader.run);
        }
        let (before, commit) = (leader.commit_lsn, proposer.commit_lsn());
        if commit > before {
            self.on_commit(term, commit, wal, disks)?;
        }
        Ok(())
    }

    fn on_election(&mut self, term: Term, run: ProposerRun, start: Lsn) -> Result<(), Violation> {
        for (older, leader) in self.leaders.range(..term) {
            if leader.commit_lsn > start {
                let lost = leader.commit_lsn;
                return violation!("term {term} starts at {start}, but term {older} has committed {lost}");
            }
        }
        let leader = Leader {
            run,
            epoch_start_lsn: start,
            commit_lsn: Lsn::INVALID,
        };
        self.leaders.insert(term, leader);
        Ok(())
    }

    fn on_commit(
        &mut self,
        term: Term,
        commit: Lsn,
        wal: Option<&LocalWal>,
        disks: &[&Disk],
    ) -> Result<(), Violation> {
        for (newer, leader) in self.leaders.range(Term(term.0 + 1)..) {
            let start = leader.epoch_start_lsn;
            if commit > start {
                return violation!("term {term} commits {commit}, but term {newer} starts at {start}");
            }
        }
        let known = self.committed_end();
        if commit > known {
            let len = (commit - known) as usize;
            let held: Vec<&[u8]> = disks
                .iter()
                .filter_map(|disk| disk.durable_from(known).get(..len))
                .collect();
            let copies = |bytes: &&[u8]| held.iter().filter(|other| *other == bytes).count();
            let Some(agreed) = held.iter().find(|bytes| copies(bytes) >= self.quorum) else {
                return violation!("term {term} commits {commit}, which is not durable on a majority");
            };
            self.committed.extend_from_slice(agreed);
            for (sk, disk) in disks.iter().enumerate() {
                self.extend_match(sk, disk);
            }
            self.check_majority()?;
        }
        let leader = self.leaders.get_mut(&term).expect("whoever commits was elected");
        let before = std::mem::replace(&mut leader.commit_lsn, commit);
        if let Some(wal) = wal {
            let begin = before.max(wal.start());
            if begin < commit
                && (wal.end() < commit || wal.slice(begin, commit) != self.committed_slice(begin, commit))
            {
                return violation!("what term {term} commits up to {commit} is not its server's WAL");
            }
        }
        Ok(())
    }

    /// Looks at a safekeeper's disk after its durable WAL has changed from `changed` on.
    pub(crate) fn on_disk(&mut self, sk: usize, disk: &Disk, changed: Lsn) -> Result<(), Violation> {
        self.matched[sk] = self.matched[sk].min(changed.max(self.start));
        self.extend_match(sk, disk);
        self.check_majority()
    }

    fn extend_match(&mut self, sk: usize, disk: &Disk) {
        let begin = self.matched[sk];
        let held = disk.durable_from(begin);
        let wanted = self.committed_slice(begin, self.committed_end());
        let same = held.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        self.matched[sk] = begin + same as u64;
    }

    fn check_majority(&self) -> Result<(), Violation> {
        let end = self.committed_end();
        let copies = self.matched.iter().filter(|matched| **matched >= end).count();
        if copies < self.quorum {
            return violation!("WAL is committed up to {end}, but only {copies} safekeepers have it");
        }
        Ok(())
    }

    /// Looks at a safekeeper that has done everything it decided.
    pub(crate) fn on_positions(&self, sk: usize, positions: Positions) -> Result<(), Violation> {
        let (commit, horizon) = (positions.commit_lsn, positions.peer_horizon_lsn);
        if horizon > self.committed_end() {
            return violation!("safekeeper {sk} may remove WAL up to {horizon}, and it is not committed");
        }
        if commit > self.start && commit > self.committed_end() {
            return violation!("safekeeper {sk} takes {commit} for committed, and it is not");
        }
        if commit > self.matched[sk] {
            let matched = self.matched[sk];
            return violation!("safekeeper {sk} has commit LSN {commit}, its WAL is right up to {matched}");
        }
        Ok(())
    }

    /// Looks at a control file that replaces another.
    pub(crate) fn on_control(
        &self,
        sk: usize,
        old: &ControlState,
        new: &ControlState,
    ) -> Result<(), Violation> {
        if new.term < old.term || new.commit_lsn < old.commit_lsn {
            return violation!(
                "safekeeper {sk} goes back from term {}, commit LSN {} to {}, {}",
                old.term,
                old.commit_lsn,
                new.term,
                new.commit_lsn
            );
        }
        Ok(())
    }

    /// A proposer that only synchronised, in this term, says where the WAL ends.
    pub(crate) fn on_synced(&self, term: Term, lsn: Lsn) -> Result<(), Violation> {
        for (older, leader) in self.leaders.range(..term) {
            let commit = leader.commit_lsn;
            if commit > lsn {
                return violation!("term {term} synced to {lsn}, but term {older} has committed {commit}");
            }
        }
        let end = self.committed_end();
        if lsn > end {
            return violation!("term {term} synced to {lsn}, but WAL is committed up to {end} only");
        }
        Ok(())
    }
}
