//! Which safekeepers get new WAL at once, and which a moment later.
//!
//! A commit waits for a quorum. Safekeepers that share a disk or CPUs delay each other if all are given a small
//! piece of WAL at once, so only as many get it as make a quorum, and the others what has gathered after a short
//! delay. Who is preferred is found out by giving some pieces to all at once and counting who has them before they are
//! committed. What was held back goes out between two commits if it can: while one is under way it would have a flush of
//! its own beside those that are waited for, and wake processes when the commit is to be told.
//!
//! Invariants
//! * Only the moment of sending is changed, never what is sent, in which order, or what makes a quorum.
//! * Nothing is held back for longer than `HoldBack::delay` ([`Hold::due`]), commit or no commit, nor once one of the
//!   preferred is lost.
//! * While WAL is held back, all of the preferred have been sent all there is, as far as their connections take it.

use safekeeper_api::mutation::{Mutation, is_active};
use safekeeper_api::protocol::SAFEKEEPERS_MAX;

use crate::config::HoldBack;
use crate::event::Time;

/// What is held back from whom. See the module's head.
#[derive(Debug)]
pub(super) struct Hold {
    config: HoldBack,
    safekeepers: usize,
    quorum: usize,
    stage: Stage,
    /// Since when something has been held back; `None` if nothing is.
    since: Option<Time>,
    /// Whether anything has been committed since then.
    progress: bool,
    /// Since when everything has been committed; `None` while something is not.
    all_committed: Option<Time>,
}

#[derive(Debug)]
enum Stage {
    /// Everyone gets WAL at once, and it is counted who has it before it is committed.
    Comparing {
        pieces: u32,
        in_time: [u32; SAFEKEEPERS_MAX],
    },
    /// These, a quorum, get WAL first.
    Preferring {
        pieces: u32,
        preferred: [bool; SAFEKEEPERS_MAX],
    },
}

const COMPARING: Stage = Stage::Comparing {
    pieces: 0,
    in_time: [0; SAFEKEEPERS_MAX],
};

impl Hold {
    /// Holds nothing back for the time being.
    pub(super) fn new(config: HoldBack, safekeepers: usize, quorum: usize) -> Hold {
        Hold {
            config,
            safekeepers,
            quorum,
            stage: COMPARING,
            since: None,
            progress: false,
            all_committed: None,
        }
    }

    fn is_off(&self) -> bool {
        self.config.delay.is_zero() || self.quorum == self.safekeepers
    }

    /// There is new WAL, and `uncommitted` bytes in all are not committed. `is_ready` tells who has been sent
    /// everything before.
    pub(super) fn on_wal(&mut self, uncommitted: u64, is_ready: impl Fn(usize) -> bool, now: Time) {
        if self.is_off() {
            return;
        }
        self.all_committed = None;
        if uncommitted > self.config.uncommitted_bytes_max {
            self.since = None;
            return;
        }
        match &mut self.stage {
            Stage::Comparing { pieces, .. } if *pieces < self.config.compared_pieces => *pieces += 1,
            Stage::Comparing { in_time, .. } => {
                let preferred = best(in_time, self.safekeepers, self.quorum);
                self.stage = Stage::Preferring { pieces: 0, preferred };
            }
            Stage::Preferring { pieces, .. } => *pieces += 1,
        }
        let Stage::Preferring { pieces, preferred } = &self.stage else {
            return;
        };
        let ready = (0..self.safekeepers).all(|index| !preferred[index] || is_ready(index));
        if ready && *pieces < self.config.preferred_pieces {
            if self.since.is_none() {
                (self.since, self.progress) = (Some(now), false);
            }
        } else {
            self.give_up();
        }
    }

    /// A safekeeper has made WAL durable that was not committed when its answer came.
    pub(super) fn in_time(&mut self, index: usize) {
        if let Stage::Comparing { in_time, .. } = &mut self.stage {
            in_time[index] += 1;
        }
    }

    /// The commit LSN has grown; `uncommitted` bytes are still not committed.
    pub(super) fn on_commit(&mut self, uncommitted: u64, now: Time) {
        self.progress = true;
        self.all_committed = (uncommitted == 0).then_some(now);
    }

    /// Whether this safekeeper gets nothing new yet.
    pub(super) fn holds(&self, index: usize) -> bool {
        match &self.stage {
            Stage::Preferring { preferred, .. } => self.since.is_some() && !preferred[index],
            Stage::Comparing { .. } => false,
        }
    }

    /// When what is held back must go to everyone.
    pub(super) fn due(&self) -> Option<Time> {
        let since = self.since?;
        let latest = since.after(self.config.delay);
        let told = self.all_committed.map(|at| at.after(self.config.after_commit));
        let soonest = told.map(|at| at.max(since.after(self.config.delay / 2)));
        Some(soonest.map_or(latest, |at| at.min(latest)))
    }

    /// A connection is lost. Without one of the preferred the others are needed.
    pub(super) fn on_lost(&mut self, index: usize) {
        if let Stage::Preferring { preferred, .. } = &self.stage
            && preferred[index]
        {
            self.give_up();
        }
    }

    /// Time has passed: what was held back for long enough goes to everyone.
    pub(super) fn on_tick(&mut self, now: Time) {
        if self.due().is_some_and(|due| due <= now) && !is_active(Mutation::HoldForEver) {
            // Without progress the others may be what is missing: who is soonest has changed.
            match self.progress {
                true => self.since = None,
                false => self.give_up(),
            }
        }
    }

    /// Holds nothing back until it is known again who is soonest.
    fn give_up(&mut self) {
        self.since = None;
        self.stage = COMPARING;
    }
}

/// The `quorum` safekeepers with the highest counts; among equals those first in the list.
fn best(counts: &[u32; SAFEKEEPERS_MAX], safekeepers: usize, quorum: usize) -> [bool; SAFEKEEPERS_MAX] {
    let mut order: Vec<usize> = (0..safekeepers).collect();
    order.sort_by_key(|index| std::cmp::Reverse(counts[*index]));
    let mut preferred = [false; SAFEKEEPERS_MAX];
    for index in &order[..quorum] {
        preferred[*index] = true;
    }
    preferred
}
