//! What goes into the proposer and what comes out.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use safekeeper_api::protocol::{
    AcceptorMessage, HotStandbyFeedback, PageserverFeedback, ProposerMessage, Term,
};
use utils::lsn::Lsn;

use crate::config::PastTerms;

/// A moment, in microseconds since some moment the driver has chosen. It need not be exact, and safety
/// does not depend on it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd)]
pub struct Time(pub u64);

impl Time {
    /// The moment `duration` later.
    pub fn after(self, duration: Duration) -> Time {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(micros))
    }
}

/// A safekeeper, by its place in the list of the settings.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct SkIndex(pub usize);

impl fmt::Display for SkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "safekeeper #{}", self.0)
    }
}

/// Something that has happened.
///
/// After [`Action::Disconnect`] the driver gives no more events of that connection, and after
/// [`Action::StopFetch`] none of that fetch.
#[derive(Clone, Debug)]
pub enum Event {
    /// The connection asked for is there.
    Connected(SkIndex),
    /// The connection could not be made, or has ended.
    Disconnected(SkIndex),
    /// A safekeeper has sent a message.
    Message(SkIndex, AcceptorMessage),
    /// Messages of this many bytes, as counted by [`Proposer::message_len`](crate::Proposer::message_len),
    /// have left the outbox of the connection.
    Drained(SkIndex, u64),
    /// The local server has sent WAL, which begins at [`Proposer::wal_end`](crate::Proposer::wal_end).
    Wal(Bytes),
    /// The donor has sent WAL for the safekeeper. It begins where the fetch has got to.
    Fetched(SkIndex, Bytes),
    /// The donor has no more, or cannot be reached.
    FetchEnded(SkIndex),
    /// Time has passed.
    Tick,
}

/// WAL to be read from a safekeeper that has it, for one that lags behind the window in memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fetch {
    /// Who needs the WAL.
    pub receiver: SkIndex,
    /// Who has it.
    pub donor: SkIndex,
    /// First byte needed.
    pub begin: Lsn,
    /// End of what the donor certainly has right.
    pub end: Lsn,
}

/// Something to be done, in the order given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Connect to the safekeeper and start to push WAL.
    Connect(SkIndex),
    /// Close the connection, or give up making it; drop what waits in its outbox.
    Disconnect(SkIndex, DisconnectReason),
    /// Send the message.
    Send(SkIndex, ProposerMessage),
    /// Keep this for later runs; done before the next action.
    Remember(PastTerms),
    /// The election is won: receive the local server's WAL from here.
    StreamFrom(Lsn),
    /// Read WAL from a donor with `application_name=wal_proposer_recovery`.
    StartFetch(Fetch),
    /// Close the connection to the donor that serves this receiver.
    StopFetch(SkIndex),
    /// A quorum has made all WAL before this LSN durable: tell the local server.
    Commit(Lsn),
    /// A pageserver has got further.
    PageserverFeedback(PageserverFeedback),
    /// What hot standbys need has changed.
    HotStandbyFeedback(HotStandbyFeedback),
    /// The run is over. Nothing follows.
    Stop(Stop),
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DisconnectReason {
    /// No answer for `connect_timeout`.
    #[error("no answer for {0:?}")]
    Timeout(Duration),
    /// The answer is not one to what was sent.
    #[error("unexpected {0}")]
    Unexpected(&'static str),
    /// The safekeeper answers in a term below the one it has been told.
    #[error("answer in term {got}, below {expected}")]
    TermBelow {
        /// In the answer.
        got: Term,
        /// What it was told.
        expected: Term,
    },
    /// It reports to have flushed what it was never sent.
    #[error("flush LSN {flush_lsn} is past what was sent, {sent}")]
    FlushPastSent {
        /// In the answer.
        flush_lsn: Lsn,
        /// End of what was sent.
        sent: Lsn,
    },
}

/// How the run ends.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Stop {
    /// Not a failure: the safekeepers agree.
    #[error("safekeepers agree up to {lsn}")]
    Synced {
        /// Where their WAL ends; 0 for an empty timeline.
        lsn: Lsn,
        /// The term in which they were asked, for [`crate::PastTerms::empty_at`].
        term: Term,
    },
    /// Another proposer asked for votes in a higher term. The local server must never again acknowledge.
    #[error("fenced off: {by} has term {newer}, this proposer's term is {own}")]
    Fenced {
        /// Who has the higher term.
        by: SkIndex,
        /// Its term.
        newer: Term,
        /// The term of this proposer.
        own: Term,
    },
    /// Not enough votes can be had in this term. Another attempt may succeed.
    #[error("lost the election in term {0}")]
    LostElection(Term),
    /// The safekeepers have WAL that the local server does not know: its base backup is too old.
    #[error("the safekeepers' WAL ends at {safekeepers} in term {term}, the base backup is of {local}")]
    Diverged {
        /// End of the WAL of the most advanced safekeeper.
        safekeepers: Lsn,
        /// Term of that WAL.
        term: Term,
        /// Where the local server's WAL begins.
        local: Lsn,
    },
    /// The safekeepers contradict each other or leave no room for another term.
    #[error("the safekeepers' answers cannot be true: {0}")]
    Inconsistent(&'static str),
}

impl Stop {
    /// Whether no later attempt for the same data directory can succeed.
    pub fn is_final(&self) -> bool {
        match self {
            Stop::Fenced { .. } | Stop::Diverged { .. } => true,
            Stop::Synced { .. } | Stop::LostElection(_) | Stop::Inconsistent(_) => false,
        }
    }
}
