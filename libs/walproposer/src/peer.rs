//! What the proposer knows of one safekeeper.

use safekeeper_api::protocol::{HotStandbyFeedback, Term, VoteResponse};
use utils::lsn::Lsn;

use crate::event::{Fetch, Time};

/// Where the conversation with a safekeeper stands.
#[derive(Debug)]
pub(crate) enum Stage {
    /// No connection; the next attempt is due at this moment.
    Offline { retry_at: Time },
    /// Asked for a connection.
    Connecting,
    /// Greeting sent.
    Greeting,
    /// Greeted; votes are not asked for yet.
    Greeted,
    /// Vote request sent.
    Voting,
    /// Answered; the election is not decided yet.
    Voted(VoteResponse),
    /// Told that the election is won.
    Streaming,
}

/// One safekeeper.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) stage: Stage,
    /// When it last sent something, or was asked for the first thing it owes.
    pub(crate) heard_at: Time,
    /// When a connection was last asked for.
    pub(crate) asked_at: Time,
    /// When the last append request of this connection was sent.
    pub(crate) appended_at: Option<Time>,
    /// Bytes that wait to be written to its connection.
    pub(crate) outbox_bytes: u64,
    /// Its term when it greeted in this run.
    pub(crate) greeted: Option<Term>,
    /// The vote it gave to this proposer. Holds even when the connection is lost.
    pub(crate) vote: Option<VoteResponse>,
    /// Whether it has refused to vote for this proposer.
    pub(crate) refused: bool,
    /// Streaming: position of the next byte to be sent.
    pub(crate) next: Lsn,
    /// Streaming: the highest commit LSN it was sent.
    pub(crate) commit_sent: Lsn,
    /// End of the WAL it has reported as durable since it was last told of the election; 0 before.
    pub(crate) flushed: Lsn,
    /// The persisted commit LSN it has reported last.
    pub(crate) commit_persisted: Lsn,
    /// WAL before this is durable there and the same as the proposer's: it can be a donor.
    pub(crate) agreed: Lsn,
    /// What it has last reported of its hot standbys.
    pub(crate) standby: HotStandbyFeedback,
    /// WAL being read for it from another safekeeper.
    pub(crate) fetch: Option<Fetch>,
    /// No fetch before this moment.
    pub(crate) fetch_at: Time,
    /// The donor that failed last.
    pub(crate) bad_donor: Option<usize>,
}

impl Peer {
    pub(crate) fn new(now: Time) -> Peer {
        Peer {
            stage: Stage::Offline { retry_at: now },
            heard_at: now,
            asked_at: now,
            appended_at: None,
            outbox_bytes: 0,
            greeted: None,
            vote: None,
            refused: false,
            next: Lsn::INVALID,
            commit_sent: Lsn::INVALID,
            flushed: Lsn::INVALID,
            commit_persisted: Lsn::INVALID,
            agreed: Lsn::INVALID,
            standby: HotStandbyFeedback::NONE,
            fetch: None,
            fetch_at: now,
            bad_donor: None,
        }
    }

    pub(crate) fn is_streaming(&self) -> bool {
        matches!(self.stage, Stage::Streaming)
    }

    /// Whether there is a connection, though perhaps only being made.
    pub(crate) fn is_online(&self) -> bool {
        !matches!(self.stage, Stage::Offline { .. })
    }

    /// Whether it has to say something next. In the other stages silence is in order.
    pub(crate) fn owes_answer(&self) -> bool {
        match self.stage {
            Stage::Connecting | Stage::Greeting | Stage::Voting | Stage::Streaming => true,
            Stage::Offline { .. } | Stage::Greeted | Stage::Voted(_) => false,
        }
    }
}
