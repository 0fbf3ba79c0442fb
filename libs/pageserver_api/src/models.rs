//! Bodies of the HTTP management API (its document, section 2).
//!
//! Unknown fields of requests are ignored; fields that may be `null` are `Option`s.

use serde::{Deserialize, Serialize};
use utils::id::{NodeId, TenantId, TimelineId};
use utils::lsn::Lsn;

use crate::tenant_config::{TenantConfig, TenantConfigOverrides};

/// `GET /v1/status`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct StatusResponse {
    /// This pageserver.
    pub id: NodeId,
}

/// Life of a tenant.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash, Serialize, Deserialize)]
pub enum TenantState {
    /// Being read from the local disk.
    Loading,
    /// Being fetched from remote storage.
    Attaching,
    /// Usable.
    Active,
    /// On its way out.
    Stopping,
    /// Unusable until somebody looks.
    Broken,
}

impl TenantState {
    /// All states.
    pub const ALL: [TenantState; 5] = [
        TenantState::Loading,
        TenantState::Attaching,
        TenantState::Active,
        TenantState::Stopping,
        TenantState::Broken,
    ];

    /// Name as it stands in JSON and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            TenantState::Loading => "Loading",
            TenantState::Attaching => "Attaching",
            TenantState::Active => "Active",
            TenantState::Stopping => "Stopping",
            TenantState::Broken => "Broken",
        }
    }
}

impl std::fmt::Display for TenantState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Life of a timeline.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum TimelineState {
    /// Not usable yet.
    Loading,
    /// Usable.
    Active,
    /// On its way out.
    Stopping,
    /// Unusable until somebody looks.
    Broken,
}

impl std::fmt::Display for TimelineState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TimelineState::Loading => "Loading",
            TimelineState::Active => "Active",
            TimelineState::Stopping => "Stopping",
            TimelineState::Broken => "Broken",
        })
    }
}

/// `POST /v1/tenant`. Without an id one is generated.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TenantCreateRequest {
    /// The new tenant.
    #[serde(default)]
    pub new_tenant_id: Option<TenantId>,
    /// Settings made for it.
    #[serde(flatten)]
    pub config: TenantConfigOverrides,
}

/// `PUT /v1/tenant/config`: replaces all settings made for the tenant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TenantConfigRequest {
    /// The tenant.
    pub tenant_id: TenantId,
    /// All of its settings.
    #[serde(flatten)]
    pub config: TenantConfigOverrides,
}

/// `GET /v1/tenant/:tenant_id/config`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct TenantConfigResponse {
    /// What was set for the tenant.
    pub tenant_specific_overrides: TenantConfigOverrides,
    /// What holds.
    pub effective_config: TenantConfig,
}

/// One tenant.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct TenantInfo {
    /// Its id.
    pub id: TenantId,
    /// Its state.
    pub state: TenantState,
    /// Size of its layers in bytes; `None` in lists.
    pub current_physical_size: Option<u64>,
    /// Whether something is being fetched before it can be used.
    pub has_in_progress_downloads: bool,
}

/// `POST /v1/tenant/:tenant_id/timeline`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimelineCreateRequest {
    /// The new timeline; generated if absent.
    pub new_timeline_id: Option<TimelineId>,
    /// The timeline to branch from; a new cluster if absent.
    pub ancestor_timeline_id: Option<TimelineId>,
    /// Where to branch; the ancestor's last record if absent.
    pub ancestor_start_lsn: Option<Lsn>,
    /// Major version of PostgreSQL, for a new cluster.
    pub pg_version: Option<u32>,
}

/// One timeline.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct TimelineInfo {
    /// Owner.
    pub tenant_id: TenantId,
    /// Its id.
    pub timeline_id: TimelineId,
    /// What it branched from.
    pub ancestor_timeline_id: Option<TimelineId>,
    /// Where it branched.
    pub ancestor_lsn: Option<Lsn>,
    /// End of the last record received and ingested.
    pub last_record_lsn: Lsn,
    /// Start of that record, 0/0 if not known.
    pub prev_record_lsn: Lsn,
    /// Lowest LSN that can be read.
    pub latest_gc_cutoff_lsn: Lsn,
    /// Everything before this is in layer files on disk.
    pub disk_consistent_lsn: Lsn,
    /// Everything before this is in remote storage; 0/0 without one.
    pub remote_consistent_lsn: Lsn,
    /// Size of all relations in bytes, if known.
    pub current_logical_size: Option<u64>,
    /// Size of all layers in bytes.
    pub current_physical_size: Option<u64>,
    /// The logical size calculated afresh, if asked for.
    pub current_logical_size_non_incremental: Option<u64>,
    /// Always `None`; kept for older clients.
    pub timeline_dir_layer_file_size_sum: Option<u64>,
    /// Where WAL is received from.
    pub wal_source_connstr: Option<String>,
    /// How far WAL was received.
    pub last_received_msg_lsn: Option<Lsn>,
    /// When WAL was last heard of, microseconds since the Unix epoch.
    pub last_received_msg_ts: Option<u64>,
    /// Major version of PostgreSQL.
    pub pg_version: u32,
    /// Its state.
    pub state: TimelineState,
}

/// `PUT .../do_gc`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimelineGcRequest {
    /// Bytes of WAL to keep readable in place of the tenant's `gc_horizon`.
    pub gc_horizon: Option<u64>,
}

/// What a garbage collection did, as numbers of layers.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct GcResult {
    /// Looked at.
    pub layers_total: u64,
    /// Kept for the horizon.
    pub layers_needed_by_cutoff: u64,
    /// Kept for point-in-time recovery.
    pub layers_needed_by_pitr: u64,
    /// Kept for branches.
    pub layers_needed_by_branches: u64,
    /// Kept because nothing newer covers them.
    pub layers_not_updated: u64,
    /// Removed.
    pub layers_removed: u64,
    /// Time it took, in milliseconds.
    pub elapsed: u64,
}

/// `GET .../layer`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct LayerMapInfo {
    /// Layers that are not files yet, oldest first.
    pub in_memory_layers: Vec<InMemoryLayerInfo>,
    /// Layer files.
    pub historic_layers: Vec<HistoricLayerInfo>,
}

/// A layer in memory.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum InMemoryLayerInfo {
    /// The one being written.
    Open {
        /// First LSN.
        lsn_start: Lsn,
    },
    /// One being flushed.
    Frozen {
        /// First LSN.
        lsn_start: Lsn,
        /// End, exclusive.
        lsn_end: Lsn,
    },
}

/// A layer file.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum HistoricLayerInfo {
    /// Changes of a range of keys in a range of LSNs.
    Delta {
        /// Name.
        layer_file_name: String,
        /// Bytes, if known.
        layer_file_size: Option<u64>,
        /// First LSN.
        lsn_start: Lsn,
        /// End, exclusive.
        lsn_end: Lsn,
        /// Whether it is in remote storage only.
        remote: bool,
        /// Who read it.
        access_stats: LayerAccessStats,
    },
    /// A range of keys at one LSN.
    Image {
        /// Name.
        layer_file_name: String,
        /// Bytes, if known.
        layer_file_size: Option<u64>,
        /// The LSN.
        lsn_start: Lsn,
        /// Whether it is in remote storage only.
        remote: bool,
        /// Who read it.
        access_stats: LayerAccessStats,
    },
}

/// Who read a layer and when it was here.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct LayerAccessStats {
    /// Number of accesses of each kind.
    pub access_count_by_access_kind: AccessCounts,
    /// Kinds of tasks that read it.
    pub task_kind_access_flag: Vec<String>,
    /// The first access.
    pub first: Option<LayerAccess>,
    /// The last ones.
    pub accesses_history: History<LayerAccess>,
    /// When it came and went.
    pub residence_events_history: History<LayerResidenceEvent>,
}

/// Number of accesses by kind.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AccessCounts {
    /// For reads of pages.
    pub get_value_reconstruct_data: u64,
    /// For compaction.
    pub iter: u64,
    /// For compaction, keys only.
    pub key_iter: u64,
    /// For people.
    pub dump: u64,
}

/// The newest of a series of events.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct History<T> {
    /// Oldest first.
    pub buffer: Vec<T>,
    /// Number of older events that are forgotten.
    pub drop_count: u64,
}

impl<T> Default for History<T> {
    fn default() -> Self {
        History {
            buffer: Vec::new(),
            drop_count: 0,
        }
    }
}

/// An access to a layer.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct LayerAccess {
    /// When, milliseconds since the Unix epoch.
    pub when_millis_since_epoch: u64,
    /// By what kind of task.
    pub task_kind: String,
    /// What kind of access.
    pub access_kind: String,
}

/// A layer came or went.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct LayerResidenceEvent {
    /// When, milliseconds since the Unix epoch.
    pub timestamp_millis_since_epoch: u64,
    /// `Resident` or `Evicted`.
    pub status: String,
    /// Why.
    pub reason: String,
}

/// `POST .../download_remote_layers`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct DownloadLayersRequest {
    /// Layers downloaded at the same time.
    pub max_concurrent_downloads: std::num::NonZeroUsize,
}

/// How a task that downloads all layers is getting on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum DownloadLayersState {
    /// At work.
    Running,
    /// All layers were tried.
    Completed,
    /// Ended by the timeline's end.
    ShutDown,
}

/// A task that downloads all layers of a timeline.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct DownloadLayersInfo {
    /// Name of the task.
    pub task_id: String,
    /// How it is getting on.
    pub state: DownloadLayersState,
    /// Layers that were not here when it started.
    pub total_layer_count: u64,
    /// Of those, how many came.
    pub successful_download_count: u64,
    /// Of those, how many did not.
    pub failed_download_count: u64,
}

/// One entry of `PUT /v1/failpoints`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct FailpointConfig {
    /// Which failpoint.
    pub name: String,
    /// What it does.
    pub actions: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_requests_take_settings_beside_the_id() {
        let text = r#"{"new_tenant_id": null, "gc_period": "1h", "unknown": 1}"#;
        let request: TenantCreateRequest = serde_json::from_str(text).unwrap();
        assert_eq!(request.new_tenant_id, None);
        assert_eq!(
            request.config.gc_period,
            Some(std::time::Duration::from_secs(3600))
        );
        assert!(serde_json::from_str::<TenantCreateRequest>("{}").is_ok());
        assert!(serde_json::from_str::<TenantConfigRequest>("{}").is_err());
    }

    #[test]
    fn timeline_requests_may_be_empty() {
        assert_eq!(
            serde_json::from_str::<TimelineCreateRequest>("{}").unwrap(),
            TimelineCreateRequest::default()
        );
        assert!(serde_json::from_str::<TimelineCreateRequest>(r#"{"new_timeline_id": "x"}"#).is_err());
    }

    #[test]
    fn layer_maps_have_the_documented_form() {
        let info = LayerMapInfo {
            in_memory_layers: vec![InMemoryLayerInfo::Open { lsn_start: Lsn(16) }],
            historic_layers: vec![HistoricLayerInfo::Image {
                layer_file_name: "name".into(),
                layer_file_size: Some(1),
                lsn_start: Lsn(8),
                remote: false,
                access_stats: LayerAccessStats::default(),
            }],
        };
        let json = serde_json::to_value(&info).unwrap();
        assert_eq!(json["in_memory_layers"][0]["kind"], "Open");
        assert_eq!(json["in_memory_layers"][0]["lsn_start"], "0/10");
        let stats = &json["historic_layers"][0]["access_stats"];
        assert_eq!(stats["access_count_by_access_kind"]["GetValueReconstructData"], 0);
        assert_eq!(stats["accesses_history"]["drop_count"], 0);
        assert_eq!(serde_json::from_value::<LayerMapInfo>(json).unwrap(), info);
    }
}
