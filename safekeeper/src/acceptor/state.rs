//! What an acceptor keeps in its control file.

use safekeeper_api::protocol::{ProposerId, Term, TermHistory};
use utils::id::{NodeId, TenantTimelineId};
use utils::lsn::Lsn;

use super::Positions;

/// What is known of the PostgreSQL cluster whose WAL this is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ServerInfo {
    /// PostgreSQL's version number, such as 150004; 0 if not known yet.
    pub pg_version: u32,
    /// System identifier of the cluster; 0 if not known yet.
    pub system_id: u64,
    /// Size of a WAL segment in bytes.
    pub wal_seg_size: u32,
}

/// What the control file has room for about another safekeeper of the timeline.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PeerState {
    /// WAL before this is in object storage.
    pub backup_lsn: Lsn,
    /// Term of the peer.
    pub term: Term,
    /// End of the peer's durable WAL.
    pub flush_lsn: Lsn,
    /// The peer's commit LSN.
    pub commit_lsn: Lsn,
}

/// The durable state of an acceptor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ControlState {
    /// The timeline.
    pub id: TenantTimelineId,
    /// Highest term this acceptor has voted in or heard an elected proposer of.
    pub term: Term,
    /// Which term wrote which part of the WAL.
    pub term_history: TermHistory,
    /// The PostgreSQL cluster.
    pub server: ServerInfo,
    /// The proposer that wrote last.
    pub proposer_id: ProposerId,
    /// Where the timeline's WAL begins; 0 if not known yet.
    pub timeline_start_lsn: Lsn,
    /// Where the WAL that this safekeeper was given begins; 0 if it was given none.
    pub local_start_lsn: Lsn,
    /// WAL before this is on a quorum of safekeepers, and thus final.
    pub commit_lsn: Lsn,
    /// WAL before this is in object storage.
    pub backup_lsn: Lsn,
    /// WAL before this is on all safekeepers.
    pub peer_horizon_lsn: Lsn,
    /// WAL before this is not needed by the pageserver even if it loses its disk.
    pub remote_consistent_lsn: Lsn,
    /// Other safekeepers; normally empty.
    pub peers: Vec<(NodeId, PeerState)>,
}

impl ControlState {
    /// The state of a timeline that nothing is known about but its name.
    pub fn empty(id: TenantTimelineId) -> Self {
        ControlState {
            id,
            term: Term::ZERO,
            term_history: TermHistory::default(),
            server: ServerInfo::default(),
            proposer_id: ProposerId::default(),
            timeline_start_lsn: Lsn::INVALID,
            local_start_lsn: Lsn::INVALID,
            commit_lsn: Lsn::INVALID,
            backup_lsn: Lsn::INVALID,
            peer_horizon_lsn: Lsn::INVALID,
            remote_consistent_lsn: Lsn::INVALID,
            peers: Vec::new(),
        }
    }

    /// Where a search for the end of the local WAL begins: a record boundary all WAL up to which is
    /// final. 0 if there is no WAL.
    pub fn known_end(&self) -> Lsn {
        self.commit_lsn.max(self.local_start_lsn)
    }

    /// The positions in it.
    pub fn positions(&self) -> Positions {
        Positions {
            commit_lsn: self.commit_lsn,
            backup_lsn: self.backup_lsn,
            peer_horizon_lsn: self.peer_horizon_lsn,
            remote_consistent_lsn: self.remote_consistent_lsn,
        }
    }

    /// Raises each position to that in `positions`, if that is further.
    pub fn raise_positions(&mut self, positions: Positions) {
        let raised = self.positions().max(positions);
        self.commit_lsn = raised.commit_lsn;
        self.backup_lsn = raised.backup_lsn;
        self.peer_horizon_lsn = raised.peer_horizon_lsn;
        self.remote_consistent_lsn = raised.remote_consistent_lsn;
    }

    /// Where the newest term's WAL begins.
    pub fn epoch_start_lsn(&self) -> Lsn {
        self.term_history.last().map_or(Lsn::INVALID, |entry| entry.lsn)
    }
}
