//! Messages of the consensus protocol between a proposer (walproposer) and an acceptor (safekeeper).
//!
//! Each message is the payload of one CopyData of the CopyBoth that `START_WAL_PUSH` opens. The first
//! eight bytes are the tag letter as a little-endian `u64`; all other integers are little-endian too,
//! except inside [`PageserverFeedback`], which is big-endian. The format is that of `libpq.md`,
//! sections 4.4 and 5.
//!
//! Invariants
//! * Decoding never panics, allocates no more than a constant times the bytes received, and accepts
//!   a message only if its length is exactly right.
//! * `decode(encode(m)) == m` for every message that keeps to the limits named here.
//!
//! Not here: who may send what when (`walproposer`, `safekeeper::acceptor`), CopyData framing.

mod acceptor;
mod feedback;
mod proposer;
mod term_history;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;

use serde::{Deserialize, Serialize};
use utils::lsn::Lsn;

pub use acceptor::{AcceptorGreeting, AcceptorMessage, AppendResponse, VoteResponse};
pub use feedback::{HotStandbyFeedback, PageserverFeedback};
pub use proposer::{AppendRequest, ProposerElected, ProposerGreeting, ProposerMessage, VoteRequest};
pub use term_history::{TermHistory, TermHistoryError, TermLsn};

/// Version of the protocol, first field of [`ProposerGreeting`].
pub const PROTOCOL_VERSION: u32 = 2;

/// Most WAL one [`AppendRequest`] carries, in bytes.
pub const APPEND_WAL_BYTES_MAX: usize = 128 * 1024;

/// Most entries of a [`TermHistory`]: one is added per start of a compute.
pub const TERM_HISTORY_ENTRIES_MAX: usize = 1 << 20;

/// Most safekeepers a timeline can have.
pub const SAFEKEEPERS_MAX: usize = 31;

/// Longest message in bytes: one with a term history of the greatest length.
pub const MESSAGE_BYTES_MAX: usize = TERM_HISTORY_ENTRIES_MAX * TermLsn::LEN + 128;

/// Number of an election. At most one proposer is elected in a term; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

impl Term {
    /// The term before the first election.
    pub const ZERO: Term = Term(0);

    /// The term after this one, `None` past the end of the number range.
    pub fn next(self) -> Option<Term> {
        self.0.checked_add(1).map(Term)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Random name of one run of a proposer, 16 bytes.
#[derive(Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct ProposerId(pub [u8; 16]);

impl fmt::Display for ProposerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ProposerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The bytes of a peer are not a message of this protocol.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// The tag names no message of this direction.
    #[error("unknown message tag {0:#x}")]
    UnknownTag(u64),
    /// The message ends before its last field, or goes on behind it.
    #[error("{message} has {got} bytes, expected {want}")]
    Length {
        /// Name of the message.
        message: &'static str,
        /// Bytes the message must have, as far as known when the error was found.
        want: usize,
        /// Bytes received.
        got: usize,
    },
    /// The proposer speaks another version of the protocol.
    #[error("incompatible protocol version {0}, expected {PROTOCOL_VERSION}")]
    ProtocolVersion(u32),
    /// A field holds a value that it must not hold.
    #[error("{message}: {field} has the invalid value {value}")]
    Value {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// What was found there.
        value: u64,
    },
    /// The range of WAL of an append request is turned round or longer than allowed.
    #[error("AppendRequest from {begin} to {end}: not a range of at most {APPEND_WAL_BYTES_MAX} bytes")]
    AppendRange {
        /// Begin of the range.
        begin: Lsn,
        /// End of the range.
        end: Lsn,
    },
    /// The term history is not one.
    #[error("{message}: invalid term history")]
    History {
        /// Name of the message.
        message: &'static str,
        /// What is wrong with it.
        source: TermHistoryError,
    },
}
