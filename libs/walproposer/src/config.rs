//! What a proposer is told at its start, and the limits of its buffers.

use std::time::Duration;

use safekeeper_api::protocol::{ProposerGreeting, Term};
use utils::lsn::Lsn;

/// Limits of what a proposer keeps in memory, in bytes.
///
/// WAL that is not on a quorum yet must stay in memory: no safekeeper can be relied on to have it. WAL
/// that is committed may go, because a quorum has it: a safekeeper that lags behind the window is fed
/// from another one ([`crate::Fetch`]). So the local server need not keep WAL for the sake of a
/// safekeeper that is away, and nothing grows with the time it is away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// While more WAL than this is not committed, no more is taken from the local server, unless all of
    /// it has been sent to a quorum already: then the rest of a long record may be what is missing.
    pub uncommitted_wal_bytes_soft: u64,
    /// Most WAL kept under any circumstances: more than the longest WAL record, which is below 1 GiB.
    pub wal_bytes_max: u64,
    /// Committed WAL kept for safekeepers that were away for a moment or are slow.
    pub committed_wal_bytes_kept: u64,
    /// Once this many bytes wait to be written to one safekeeper's connection, WAL for it is held back.
    pub outbox_bytes_max: u64,
}

impl Limits {
    /// What the program runs with.
    pub const PRODUCTION: Limits = Limits {
        uncommitted_wal_bytes_soft: 16 << 20,
        wal_bytes_max: (1 << 30) + (64 << 20),
        committed_wal_bytes_kept: 16 << 20,
        outbox_bytes_max: 4 << 20,
    };
}

/// How WAL is given first to as many safekeepers as make a quorum, and to the others a moment later. Under a light
/// load that spares those a commit waits for the company of the others on disk and CPUs, and the others many flushes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HoldBack {
    /// Longest time for which WAL is held back; zero: never. It goes out after half of that if no commit is under way.
    pub delay: Duration,
    /// A commit is still under way for so long after it is known: it is being told to its client.
    pub after_commit: Duration,
    /// While more WAL than this is not committed, in bytes, it goes to everyone at once.
    pub uncommitted_bytes_max: u64,
    /// So many pieces go to everyone at once, to see who has them soonest.
    pub compared_pieces: u32,
    /// So many pieces go first to those who were soonest, before that is found out again.
    pub preferred_pieces: u32,
}

impl HoldBack {
    /// What the program runs with.
    pub const PRODUCTION: HoldBack = HoldBack {
        delay: Duration::from_millis(4),
        after_commit: Duration::from_micros(100),
        uncommitted_bytes_max: 64 << 10,
        compared_pieces: 32,
        preferred_pieces: 2048,
    };
}

/// Most elections remembered. WAL of older ones has long been followed by WAL of newer ones.
pub const ELECTED_TERMS_MAX: usize = 1024;

/// What this run of the proposer is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Stream the WAL of the local server, whose base backup was taken at this LSN.
    Stream {
        /// Where the local server's own WAL begins: behind the page header if on a page boundary.
        start_lsn: Lsn,
    },
    /// Make the safekeepers agree, say where their WAL ends, and stop.
    Sync,
}

/// The elections that earlier runs for the same data directory took part in.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PastTerms {
    /// The highest term votes were asked for; 0 if never.
    pub campaign: Term,
    /// The terms that were won, ascending. WAL of these terms is the local server's own.
    pub elected: Vec<Term>,
    /// The term in which synchronising found the timeline empty; 0 if it did not. A majority had no WAL
    /// when it voted in that term, so WAL of lower terms was never committed and never will be.
    pub empty_at: Term,
}

impl PastTerms {
    pub(crate) fn add_elected(&mut self, term: Term) {
        assert!(
            self.elected.last().is_none_or(|last| *last < term),
            "term {term} won twice"
        );
        if self.elected.len() >= ELECTED_TERMS_MAX {
            self.elected.remove(0);
        }
        self.elected.push(term);
    }
}

/// Everything a proposer must know.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the run is for.
    pub mode: Mode,
    /// The first message on each connection. Its id is random and of this run only.
    pub greeting: ProposerGreeting,
    /// Number of safekeepers, 1 to `SAFEKEEPERS_MAX`.
    pub safekeepers: usize,
    /// Pause between attempts to connect, and period of heartbeats.
    pub reconnect_timeout: Duration,
    /// A safekeeper that owes an answer for this long is taken for dead.
    pub connect_timeout: Duration,
    /// How long a new commit LSN may wait for WAL to travel with, before it is sent to safekeepers by itself. The local
    /// server is told at once. Under a steady load this halves the messages.
    pub commit_pause: Duration,
    /// Who gets new WAL first.
    pub hold_back: HoldBack,
    /// Limits of memory.
    pub limits: Limits,
    /// What earlier runs did.
    pub past: PastTerms,
}

impl Config {
    /// How many safekeepers are a majority.
    pub fn quorum(&self) -> usize {
        self.safekeepers / 2 + 1
    }
}
