//! Why an acceptor refuses a message.

use postgres_ffi::v15::stream::StreamError;
use safekeeper_api::protocol::Term;
use utils::lsn::Lsn;

/// A message that the acceptor refuses. Its state is as before; the connection is of no more use.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Another major version of PostgreSQL.
    #[error("incompatible server version {got}, expected {expected}")]
    ServerVersion {
        /// Version of the proposer's server.
        got: u32,
        /// Version the timeline was made with.
        expected: u32,
    },
    /// The connection was opened for one tenant, the greeting names another.
    #[error("invalid tenant ID, got {got}, expected {expected}")]
    Tenant {
        /// In the greeting.
        got: utils::id::TenantId,
        /// Of this timeline.
        expected: utils::id::TenantId,
    },
    /// The same for the timeline.
    #[error("invalid timeline ID, got {got}, expected {expected}")]
    Timeline {
        /// In the greeting.
        got: utils::id::TimelineId,
        /// Of this timeline.
        expected: utils::id::TimelineId,
    },
    /// Segments of another size.
    #[error("invalid wal_seg_size, got {got}, expected {expected}")]
    WalSegSize {
        /// In the greeting.
        got: u32,
        /// Of this timeline.
        expected: u32,
    },
    /// The election is not as it must be.
    #[error("cannot follow the proposer of term {term} from {start}: {reason}")]
    Elected {
        /// Term of the proposer.
        term: Term,
        /// Where it wants to start.
        start: Lsn,
        /// What contradicts it.
        reason: ElectedProblem,
    },
    /// WAL of a term this acceptor does not follow.
    #[error("got AppendRequest before ProposerElected in term {0}")]
    AppendBeforeElected(Term),
    /// The WAL begins before the write position.
    #[error("write_wal rewrites WAL written before: write position {write_lsn}, begin {begin}")]
    Rewrites {
        /// End of what was written.
        write_lsn: Lsn,
        /// Begin of the request.
        begin: Lsn,
    },
    /// The WAL begins behind the write position.
    #[error("write_wal creates gap in written WAL: write position {write_lsn}, begin {begin}")]
    Gap {
        /// End of what was written.
        write_lsn: Lsn,
        /// Begin of the request.
        begin: Lsn,
    },
    /// The bytes are not WAL.
    #[error("AppendRequest from {begin} holds malformed WAL")]
    Malformed {
        /// Begin of the request.
        begin: Lsn,
        /// What is wrong.
        source: StreamError,
    },
}

/// Why an election cannot be followed.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
pub enum ElectedProblem {
    /// The history does not end with the proposer's term.
    #[error("its term history does not end with this term")]
    History,
    /// The same proposer's WAL reaches further here.
    #[error("WAL of this term is here up to {0}")]
    SameTermAhead(Lsn),
    /// Committed WAL would be lost.
    #[error("WAL is committed up to {0}")]
    Committed(Lsn),
    /// The WAL would have a hole.
    #[error("WAL here ends at {0}")]
    Gap(Lsn),
    /// A record cannot start there, or the timeline does not reach that far back.
    #[error("no record can start there")]
    NoBoundary,
}
