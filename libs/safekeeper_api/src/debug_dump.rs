//! Answer of the safekeeper's `GET /v1/debug_dump`, of which `--dump-control-file` prints a part.
//!
//! All LSNs here are integers.

use serde::{Deserialize, Serialize};
use utils::id::{NodeId, TenantId, TimelineId};

use crate::models::ServerInfo;

/// The whole dump.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dump {
    /// When the dump was begun, RFC 3339.
    pub start_time: String,
    /// When it was finished.
    pub finish_time: String,
    /// The timelines asked for.
    pub timelines: Vec<DumpTimeline>,
    /// Number of all timelines, asked for or not.
    pub timelines_count: usize,
    /// Settings of the process.
    pub config: DumpConfig,
}

/// Settings of the process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpConfig {
    /// Number of the safekeeper.
    pub id: NodeId,
    /// Data directory.
    pub workdir: String,
    /// Address of the libpq service.
    pub listen_pg_addr: String,
    /// Address of the HTTP service.
    pub listen_http_addr: String,
    /// Whether fsync is off.
    pub no_sync: bool,
    /// Bytes behind others from which a safekeeper does not offload.
    pub max_offloader_lag_bytes: u64,
    /// Whether WAL is kept until it is in object storage.
    pub wal_backup_enabled: bool,
}

/// One timeline; what was not asked for is null.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpTimeline {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The timeline.
    pub timeline_id: TimelineId,
    /// The persisted state.
    pub control_file: Option<DumpControl>,
    /// The state in memory.
    pub memory: Option<DumpMemory>,
    /// The files.
    pub disk_content: Option<DumpDisk>,
}

/// The persisted state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpControl {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The timeline.
    pub timeline_id: TimelineId,
    /// State of the consensus.
    pub acceptor_state: DumpAcceptor,
    /// The PostgreSQL cluster.
    pub server: ServerInfo,
    /// The proposer that wrote last, 32 hexadecimal digits.
    pub proposer_uuid: String,
    /// Where the timeline's WAL begins.
    pub timeline_start_lsn: u64,
    /// Where WAL on this safekeeper begins.
    pub local_start_lsn: u64,
    /// WAL before this is final.
    pub commit_lsn: u64,
    /// WAL before this is in object storage.
    pub backup_lsn: u64,
    /// WAL before this is on all safekeepers.
    pub peer_horizon_lsn: u64,
    /// WAL before this is of no more use to the pageserver.
    pub remote_consistent_lsn: u64,
    /// Other safekeepers; normally empty.
    pub peers: Vec<(NodeId, DumpPeer)>,
}

/// State of the consensus.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpAcceptor {
    /// Highest term voted in or followed.
    pub term: u64,
    /// Which term wrote which part of the WAL; empty if not asked for.
    pub term_history: Vec<DumpTermSwitch>,
}

/// The start of a term in the WAL.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DumpTermSwitch {
    /// The term.
    pub term: u64,
    /// Where its WAL begins.
    pub lsn: u64,
}

/// What the control file says of another safekeeper.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DumpPeer {
    /// WAL before this is in object storage.
    pub backup_lsn: u64,
    /// Its term.
    pub term: u64,
    /// End of its durable WAL.
    pub flush_lsn: u64,
    /// Its commit LSN.
    pub commit_lsn: u64,
}

/// The state in memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpMemory {
    /// Whether the timeline was deleted.
    pub is_cancelled: bool,
    /// Number of peers heard of.
    pub peers_info_len: usize,
    /// Readers of the WAL; null where one has gone.
    pub replicas: Vec<Option<DumpReplica>>,
    /// Whether this safekeeper offloads the timeline.
    pub wal_backup_active: bool,
    /// Whether anything is going on.
    pub active: bool,
    /// Computes connected.
    pub num_computes: usize,
    /// Newest segment that was removed.
    pub last_removed_segno: u64,
    /// Where the newest term begins.
    pub epoch_start_lsn: u64,
    /// Positions ahead of the control file.
    pub mem_state: DumpMemState,
    /// End of the bytes written.
    pub write_lsn: u64,
    /// End of the last whole record written.
    pub write_record_lsn: u64,
    /// End of the durable WAL.
    pub flush_lsn: u64,
    /// Whether a segment is held open.
    pub file_open: bool,
}

/// Positions ahead of the control file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpMemState {
    /// WAL before this is final.
    pub commit_lsn: u64,
    /// WAL before this is in object storage.
    pub backup_lsn: u64,
    /// WAL before this is on all safekeepers.
    pub peer_horizon_lsn: u64,
    /// WAL before this is of no more use to the pageserver.
    pub remote_consistent_lsn: u64,
    /// The proposer heard last, 32 hexadecimal digits.
    pub proposer_uuid: String,
}

/// A reader of the WAL.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpReplica {
    /// End of the WAL sent to it.
    pub last_received_lsn: u64,
    /// WAL before this it does not need again.
    pub remote_consistent_lsn: u64,
    /// What its queries need.
    pub hs_feedback: DumpStandbyFeedback,
    /// Its report, if it is a pageserver.
    pub pageserver_feedback: Option<DumpPageserverFeedback>,
}

/// What a standby's queries need.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DumpStandbyFeedback {
    /// When it said so, microseconds since 2000-01-01 UTC.
    pub ts: i64,
    /// Oldest transaction needed.
    pub xmin: u64,
    /// Oldest transaction needed for catalog rows.
    pub catalog_xmin: u64,
}

/// A pageserver's report.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DumpPageserverFeedback {
    /// Logical size of the timeline in bytes.
    pub current_timeline_size: u64,
    /// End of the WAL received.
    pub ps_writelsn: u64,
    /// End of the WAL in object storage.
    pub ps_applylsn: u64,
    /// End of the WAL in layer files.
    pub ps_flushlsn: u64,
    /// When it was sent.
    pub ps_replytime: DumpTime,
}

/// A point in time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DumpTime {
    /// Whole seconds since the Unix epoch.
    pub secs_since_epoch: u64,
    /// The rest in nanoseconds.
    pub nanos_since_epoch: u32,
}

/// The files of a timeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpDisk {
    /// Each of them.
    pub files: Vec<DumpFile>,
}

/// A file of a timeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpFile {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was created, RFC 3339.
    pub created: String,
    /// When it was last changed.
    pub modified: String,
    /// Zeros at its start, in bytes.
    pub start_zeroes: u64,
    /// Zeros at its end.
    pub end_zeroes: u64,
}
