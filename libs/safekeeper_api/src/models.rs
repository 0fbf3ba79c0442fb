//! Bodies of the safekeeper's HTTP management API, except the debug dump.
//!
//! LSNs are text unless a field is a plain integer, which the interface then demands.

use serde::{Deserialize, Serialize};
use utils::id::{NodeId, TenantId, TimelineId};
use utils::lsn::Lsn;

/// Answer of `GET /v1/status`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Number of the safekeeper.
    pub id: NodeId,
}

/// Body of `POST /v1/tenant/timeline`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TimelineCreateRequest {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The timeline to be created.
    pub timeline_id: TimelineId,
    /// Other safekeepers of the timeline; ignored.
    #[serde(default)]
    pub peer_ids: Option<Vec<NodeId>>,
    /// PostgreSQL's version number, such as 150004.
    pub pg_version: u32,
    /// System identifier of the cluster; 0 if absent.
    #[serde(default)]
    pub system_id: Option<u64>,
    /// Size of a WAL segment in bytes; 16 MiB if absent.
    #[serde(default)]
    pub wal_seg_size: Option<u32>,
    /// WAL before this is final.
    pub commit_lsn: Lsn,
    /// Where WAL on this safekeeper begins; by default the start of the segment of `commit_lsn`.
    #[serde(default)]
    pub local_start_lsn: Option<u64>,
}

/// Answer of `GET /v1/tenant/:tenant_id/timeline/:timeline_id`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TimelineStatus {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The timeline.
    pub timeline_id: TimelineId,
    /// State of the consensus.
    pub acceptor_state: AcceptorStateStatus,
    /// The PostgreSQL cluster.
    pub pg_info: ServerInfo,
    /// End of the durable WAL.
    pub flush_lsn: Lsn,
    /// Where the timeline's WAL begins.
    pub timeline_start_lsn: Lsn,
    /// Where WAL on this safekeeper begins.
    pub local_start_lsn: Lsn,
    /// WAL before this is final.
    pub commit_lsn: Lsn,
    /// WAL before this is in object storage.
    pub backup_lsn: Lsn,
    /// WAL before this is on all safekeepers.
    pub peer_horizon_lsn: Lsn,
    /// WAL before this is of no more use to the pageserver.
    pub remote_consistent_lsn: Lsn,
}

/// State of the consensus.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AcceptorStateStatus {
    /// Highest term voted in or followed.
    pub term: u64,
    /// Term of the last WAL record.
    pub epoch: u64,
    /// Which term wrote which part of the WAL.
    pub term_history: Vec<TermSwitch>,
}

/// The start of a term in the WAL.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct TermSwitch {
    /// The term.
    pub term: u64,
    /// Where its WAL begins.
    pub lsn: Lsn,
}

/// What is known of the PostgreSQL cluster.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ServerInfo {
    /// PostgreSQL's version number, such as 150004.
    pub pg_version: u32,
    /// System identifier.
    pub system_id: u64,
    /// Size of a WAL segment in bytes.
    pub wal_seg_size: u32,
}

/// Answer of the deletion of a timeline.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct TimelineDeleteStatus {
    /// Whether there were files.
    pub dir_existed: bool,
    /// Whether the timeline was active.
    pub was_active: bool,
}

/// Body of `POST /v1/pull_timeline`: which timeline to copy from which of its safekeepers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PullTimelineRequest {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The timeline.
    pub timeline_id: TimelineId,
    /// Base URLs of the HTTP services of safekeepers that may have it.
    pub http_hosts: Vec<String>,
}

/// Answer of `POST /v1/pull_timeline`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PullTimelineResponse {
    /// Which safekeeper it was copied from.
    pub safekeeper_host: String,
}
