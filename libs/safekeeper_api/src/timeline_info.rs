//! What a safekeeper tells the others about one of its timelines.

use serde::{Deserialize, Serialize};
use utils::lsn::Lsn;

/// Value under a safekeeper's key in the broker, and body of `record_safekeeper_info`.
///
/// A receiver takes the maximum of each position; `commit_lsn` only from a sender whose
/// `last_log_term` equals its own epoch. Every field may be missing.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SkTimelineInfo {
    /// Term of the last WAL record: the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_log_term: Option<u64>,
    /// Durable end of WAL.
    pub flush_lsn: Lsn,
    /// End of what a quorum has, as known in memory.
    pub commit_lsn: Lsn,
    /// End of what object storage has.
    pub backup_lsn: Lsn,
    /// End of what pageservers have in object storage.
    pub remote_consistent_lsn: Lsn,
    /// Lowest flush position over all safekeepers.
    pub peer_horizon_lsn: Lsn,
    /// First position this safekeeper ever had.
    pub local_start_lsn: Lsn,
    /// `host:port` of the safekeeper's libpq service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safekeeper_connstr: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_json() {
        let info = SkTimelineInfo {
            last_log_term: Some(3),
            flush_lsn: Lsn(0x16960E8),
            safekeeper_connstr: Some("127.0.0.1:5454".to_owned()),
            ..Default::default()
        };
        let json = serde_json::to_value(&info).unwrap();
        assert_eq!(json["flush_lsn"], "0/16960E8");
        assert_eq!(json["commit_lsn"], "0/0");
        assert_eq!(serde_json::from_value::<SkTimelineInfo>(json).unwrap(), info);
        assert_eq!(
            serde_json::from_str::<SkTimelineInfo>("{}").unwrap(),
            SkTimelineInfo::default()
        );
    }
}
