//! Settings of a safekeeper, as the command line gives them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use broker::BrokerConfig;
use remote_storage::GenericRemoteStorage;
use utils::auth::JwtAuth;
use utils::crashsafe::{TEMP_SUFFIX, with_suffix};
use utils::id::NodeId;

use crate::Sync;

/// Settings that hold for the life of the process.
#[derive(Clone, Debug)]
pub struct Config {
    /// Number of this safekeeper.
    pub id: NodeId,
    /// Data directory.
    pub workdir: PathBuf,
    /// `host:port` of the libpq service, as it is told to others.
    pub listen_pg_addr: String,
    /// `host:port` of the HTTP service.
    pub listen_http_addr: String,
    /// Whether what is written is forced to disk.
    pub sync: Sync,
    /// The broker; without one, this safekeeper neither publishes nor hears of others.
    pub broker: Option<BrokerConfig>,
    /// A peer that was silent for this long is taken for dead.
    pub heartbeat_timeout: Duration,
    /// Whether WAL is kept until it is in object storage.
    pub wal_backup: WalBackup,
    /// Object storage that full segments go to, and that older WAL is read back from.
    pub remote_storage: Option<GenericRemoteStorage>,
    /// A peer that is this many bytes behind does not offload.
    pub max_offloader_lag_bytes: u64,
    /// Verifies tokens; `None` lets everybody in.
    pub auth: Option<Arc<JwtAuth>>,
}

/// Whether WAL is kept until it is in object storage.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WalBackup {
    /// It is kept.
    Enabled,
    /// The backup horizon is ignored.
    Disabled,
}

impl Config {
    /// Directory of a timeline.
    pub fn timeline_dir(&self, id: utils::id::TenantTimelineId) -> PathBuf {
        self.tenant_dir(id.tenant_id).join(id.timeline_id.to_string())
    }

    /// Where a timeline's directory is made before it gets its name.
    pub fn timeline_temp_dir(&self, id: utils::id::TenantTimelineId) -> PathBuf {
        with_suffix(&self.timeline_dir(id), TEMP_SUFFIX)
    }

    /// Directory of a tenant.
    pub fn tenant_dir(&self, tenant: utils::id::TenantId) -> PathBuf {
        self.workdir.join(tenant.to_string())
    }
}
