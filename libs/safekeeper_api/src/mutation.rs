//! Deliberate violations of the consensus rules, which the simulator must find: this is what shows
//! that it can fail, and that each rule is needed. `docs/consensus.md` links rules and mutations.
//!
//! Without the feature `mutations`, which only the simulator's tests turn on, [`is_active`] is the
//! constant `false` and nothing of this is left in the program.

/// A rule that is broken. The doc comment says how.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mutation {
    /// The acceptor answers a vote request without having made the new term durable.
    VoteWithoutPersist,
    /// The acceptor votes again in a term it has voted in.
    VoteTwice,
    /// The acceptor acknowledges WAL that it has written but not flushed.
    AcknowledgeBeforeFlush,
    /// The acceptor takes and acknowledges WAL of a term below its own.
    AppendInOldTerm,
    /// The acceptor leaves the last but one entry out of the history of an elected proposer.
    ForgetHistoryEntry,
    /// The acceptor makes the new history durable before the old WAL is gone.
    HistoryBeforeTruncate,
    /// The acceptor follows an elected proposer without cutting off its own WAL.
    KeepDivergedWal,
    /// The acceptor believes a peer's commit LSN although their WAL ends in different terms.
    PeerCommitOfOtherTerm,
    /// The acceptor takes the proposer's commit LSN for its own before it has the WAL.
    CommitWithoutWal,
    /// The acceptor takes positions for persisted while they are still being saved.
    CountUnsavedPositions,
    /// The proposer counts WAL below the start of its term as committed by a quorum.
    CountStaleFlush,
    /// The proposer takes one safekeeper less than a majority for a quorum when it commits.
    CommitWithoutQuorum,
    /// The proposer takes one safekeeper less than a majority for a quorum when it is elected.
    ElectedWithoutQuorum,
    /// The proposer goes on from the longest WAL, not from that of the highest term.
    DonorByLength,
    /// The proposer starts to stream at the end of a safekeeper's WAL without comparing histories.
    StartAtFlush,
    /// The proposer takes the WAL it goes on from for committed.
    CommitAtElection,
    /// The proposer lets safekeepers remove WAL that is committed but not everywhere.
    TruncateAtCommit,
    /// The proposer lets safekeepers remove WAL that is everywhere but not committed.
    TruncateUncommitted,
    /// The proposer forgets WAL before it is committed.
    ForgetUncommitted,
    /// The proposer reads WAL for a safekeeper from the one with most of it, right or wrong.
    FetchFromLongest,
    /// The proposer goes on although the safekeepers have WAL that the local server does not know.
    IgnoreDivergence,
    /// The proposer takes WAL of any term for none once it was told that the timeline is empty.
    EmptyForEver,
    /// The proposer does not ask for votes in a term above those it was greeted with.
    ReuseTerm,
    /// The proposer never sends what it has held back from those that are not needed for a quorum.
    HoldForEver,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 24] = [
        Mutation::VoteWithoutPersist,
        Mutation::VoteTwice,
        Mutation::AcknowledgeBeforeFlush,
        Mutation::AppendInOldTerm,
        Mutation::ForgetHistoryEntry,
        Mutation::HistoryBeforeTruncate,
        Mutation::KeepDivergedWal,
        Mutation::PeerCommitOfOtherTerm,
        Mutation::CommitWithoutWal,
        Mutation::CountUnsavedPositions,
        Mutation::CountStaleFlush,
        Mutation::CommitWithoutQuorum,
        Mutation::ElectedWithoutQuorum,
        Mutation::DonorByLength,
        Mutation::StartAtFlush,
        Mutation::CommitAtElection,
        Mutation::TruncateAtCommit,
        Mutation::TruncateUncommitted,
        Mutation::ForgetUncommitted,
        Mutation::FetchFromLongest,
        Mutation::IgnoreDivergence,
        Mutation::EmptyForEver,
        Mutation::ReuseTerm,
        Mutation::HoldForEver,
    ];
}

#[cfg(feature = "mutations")]
mod switch {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static ACTIVE: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Breaks a rule, or none, in everything this thread does from now on.
    pub fn set(mutation: Option<Mutation>) {
        ACTIVE.set(mutation);
    }

    /// Whether this rule is broken.
    pub fn is_active(mutation: Mutation) -> bool {
        ACTIVE.get() == Some(mutation)
    }
}

#[cfg(not(feature = "mutations"))]
mod switch {
    use super::Mutation;

    /// Whether this rule is broken: never in this build.
    #[inline(always)]
    pub const fn is_active(_: Mutation) -> bool {
        false
    }
}

pub use switch::*;
