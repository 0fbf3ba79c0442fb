//! Which safekeeper to receive a timeline's WAL from. Sans-IO: facts and the time in, a decision out.
//!
//! Rules (libpq services, section 4.2)
//! * The safekeeper with the highest commit LSN among those heard of, unless it failed lately: then
//!   its turn comes again after a pause that grows with each failure.
//! * A connection is kept until it ends by itself, is silent for `lagging_wal_timeout`, another
//!   safekeeper is ahead by `max_lsn_wal_lag`, or WAL is known to exist elsewhere and nothing new
//!   came for `lagging_wal_timeout`.
//! * A safekeeper not heard of for a while is forgotten; its key in the broker is gone then too.

use std::collections::BTreeMap;
use std::time::Duration;

use safekeeper_api::timeline_info::SkTimelineInfo;
use tokio::time::Instant;
use utils::id::NodeId;
use utils::lsn::Lsn;

const BACKOFF_BASE: Duration = Duration::from_millis(100);
const BACKOFF_GROWTH: f64 = 1.5;
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// A safekeeper publishes each second; the key lives ten.
const FORGET_AFTER: Duration = Duration::from_secs(10);

/// The tenant's settings for this.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Silence of a safekeeper after which another one is tried.
    pub lagging_wal_timeout: Duration,
    /// Bytes of WAL another safekeeper must be ahead to be preferred.
    pub max_lsn_wal_lag: u64,
}

/// How the present connection does.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// How far WAL was received.
    pub received: Lsn,
    /// When WAL was received last, or the connection was started.
    pub wal_at: Instant,
    /// Since when the connection has been waiting for the safekeeper to say anything; `None` while
    /// it is busy with what it got.
    pub silent_since: Option<Instant>,
}

/// What to do now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Nothing, and look again then; `None`: when there is news.
    Wait(Option<Instant>),
    /// Give up the connection there is, if any, and make this one.
    Connect {
        /// The safekeeper.
        node: NodeId,
        /// Its `host:port`.
        address: String,
        /// Why, for the log.
        reason: &'static str,
    },
    /// Give up the connection there is.
    Disconnect {
        /// Why, for the log.
        reason: &'static str,
    },
}

#[derive(Debug)]
struct Candidate {
    commit_lsn: Lsn,
    address: String,
    heard_at: Instant,
}

#[derive(Debug, Default)]
struct Failures {
    in_a_row: u32,
    retry_at: Option<Instant>,
}

/// What is known of a timeline's safekeepers.
#[derive(Debug, Default)]
pub struct Selection {
    candidates: BTreeMap<NodeId, Candidate>,
    failures: BTreeMap<NodeId, Failures>,
    current: Option<NodeId>,
}

impl Selection {
    /// A safekeeper has published its state. One without committed WAL has nothing to send yet.
    pub fn heard(&mut self, node: NodeId, info: &SkTimelineInfo, now: Instant) {
        let Some(address) = info.safekeeper_connstr.clone() else {
            return;
        };
        if !info.commit_lsn.is_valid() {
            return;
        }
        let candidate = Candidate {
            commit_lsn: info.commit_lsn,
            address,
            heard_at: now,
        };
        self.candidates.insert(node, candidate);
    }

    /// The connection asked for is being made.
    pub fn connecting(&mut self, node: NodeId) {
        assert!(self.current.is_none(), "the old connection is given up first");
        self.current = Some(node);
    }

    /// The connection has ended, or was given up. `worked` says whether WAL was received.
    pub fn ended(&mut self, now: Instant, worked: Worked) {
        let node = self
            .current
            .take()
            .expect("only a connection that was made can end");
        let failures = self.failures.entry(node).or_default();
        if worked == Worked::Yes {
            failures.in_a_row = 0;
        }
        let factor = BACKOFF_GROWTH.powi(failures.in_a_row.min(30) as i32);
        let pause = BACKOFF_BASE.mul_f64(factor).min(BACKOFF_MAX);
        failures.in_a_row += 1;
        failures.retry_at = Some(now + pause);
    }

    /// What to do. `progress` is there exactly while a connection is.
    pub fn decide(&mut self, now: Instant, limits: Limits, progress: Option<Progress>) -> Decision {
        assert_eq!(
            self.current.is_some(),
            progress.is_some(),
            "progress belongs to a connection"
        );
        self.candidates
            .retain(|_, candidate| candidate.heard_at + FORGET_AFTER > now);
        match (self.current, progress) {
            (Some(current), Some(progress)) => self.judge(now, limits, current, progress),
            _ => self.choose(now),
        }
    }

    /// The best candidate but `except` that may be tried now.
    fn best(&self, now: Instant, except: Option<NodeId>) -> Option<(NodeId, &Candidate)> {
        let ready = |node: &NodeId| self.retry_at(*node).is_none_or(|at| at <= now);
        self.candidates
            .iter()
            .filter(|(node, _)| Some(**node) != except && ready(node))
            .map(|(node, candidate)| (*node, candidate))
            .max_by_key(|(_, candidate)| candidate.commit_lsn)
    }

    fn retry_at(&self, node: NodeId) -> Option<Instant> {
        self.failures.get(&node).and_then(|failures| failures.retry_at)
    }

    fn choose(&self, now: Instant) -> Decision {
        if let Some((node, candidate)) = self.best(now, None) {
            return Decision::Connect {
                node,
                address: candidate.address.clone(),
                reason: "it has the most committed WAL",
            };
        }
        let retries = self.candidates.keys().filter_map(|node| self.retry_at(*node));
        Decision::Wait(retries.min())
    }

    fn judge(&self, now: Instant, limits: Limits, current: NodeId, progress: Progress) -> Decision {
        let timeout = limits.lagging_wal_timeout;
        let silence_ends = progress.silent_since.map(|since| since + timeout);
        if silence_ends.is_some_and(|at| at <= now) {
            return self.switch(now, current, "the safekeeper is silent");
        }
        let Some((node, best)) = self.best(now, Some(current)) else {
            return Decision::Wait(silence_ends);
        };
        // Lag is the present safekeeper's, not ours: while we catch up with it, all have far more than we.
        let present = self.candidates.get(&current);
        let present = present.map_or(progress.received, |own| own.commit_lsn.max(progress.received));
        if best.commit_lsn.saturating_sub(present) >= limits.max_lsn_wal_lag {
            return Decision::Connect {
                node,
                address: best.address.clone(),
                reason: "it has much more WAL than the present one",
            };
        }
        if best.commit_lsn <= progress.received {
            return Decision::Wait(silence_ends);
        }
        let stuck_at = progress.wal_at + timeout;
        if stuck_at <= now && progress.silent_since.is_some() {
            return self.switch(
                now,
                current,
                "there is WAL that the present safekeeper does not send",
            );
        }
        Decision::Wait(Some(
            silence_ends.map_or(stuck_at, |at| at.min(stuck_at)).max(now),
        ))
    }

    /// To another safekeeper if there is one, or just away from this one.
    fn switch(&self, now: Instant, current: NodeId, reason: &'static str) -> Decision {
        match self.best(now, Some(current)) {
            Some((node, candidate)) => Decision::Connect {
                node,
                address: candidate.address.clone(),
                reason,
            },
            None => Decision::Disconnect { reason },
        }
    }
}

/// Whether a connection did what it is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Worked {
    /// WAL was received.
    Yes,
    /// It was not.
    No,
}

#[cfg(test)]
mod tests;
