//! What all services of the process share, and how they find a tenant or timeline.

use std::sync::Arc;
use std::time::Duration;

use utils::auth::JwtAuth;
use utils::id::{TenantId, TenantTimelineId, TimelineId};

use crate::config::Config;
use crate::import::{ClusterTemplate, ImportError};
use crate::tenant::{CreateTimelineError, Tenant, TenantManager, TenantState};
use crate::timeline::{Timeline, TimelineState};
use crate::walreceiver::WalReceivers;

/// How long a request waits for a tenant that is being loaded.
const ACTIVE_TENANT_TIMEOUT: Duration = Duration::from_secs(30);

/// The shared parts. Made once, at start.
pub struct Server {
    /// Settings.
    pub config: Config,
    /// All tenants.
    pub tenants: Arc<TenantManager>,
    /// All WAL receivers.
    pub receivers: Arc<WalReceivers>,
    /// What new clusters are copies of.
    pub template: ClusterTemplate,
    /// Verifies tokens; `None` under trust.
    pub auth: Option<Arc<JwtAuth>>,
}

/// A new cluster cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NewClusterError {
    /// The timeline cannot be made.
    #[error(transparent)]
    Timeline(#[from] CreateTimelineError),
    /// It cannot be filled.
    #[error("cannot import the new cluster")]
    Import(#[from] ImportError),
}

/// The only major version of PostgreSQL there is code for.
pub const PG_VERSION: u32 = 15;

/// PostgreSQL of that version is not supported.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
#[error("PostgreSQL {0} is not supported, only {PG_VERSION} is")]
pub struct UnsupportedVersion(pub u32);

/// Checks a major version that a client asks for.
pub fn check_pg_version(version: u32) -> Result<(), UnsupportedVersion> {
    match version {
        PG_VERSION => Ok(()),
        other => Err(UnsupportedVersion(other)),
    }
}

/// What was asked for is not here, or not now. The texts are part of the interface.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum LookupError {
    /// No such tenant.
    #[error("Tenant {0} not found in the local state")]
    NoTenant(TenantId),
    /// It will not come up by itself.
    #[error("Tenant {0} will not become active. Current state: {1}")]
    TenantUnusable(TenantId, TenantState),
    /// It did not come up in time.
    #[error("Timed out waiting {0:?} for tenant active state. Latest state: {1}")]
    TenantTimeout(Duration, TenantState),
    /// No such timeline.
    #[error("Timeline {0} was not found")]
    NoTimeline(TenantTimelineId),
    /// It is being stopped or broken.
    #[error("Timeline {0} is not active, state: {1:?}")]
    TimelineUnusable(TenantTimelineId, TimelineState),
}

impl Server {
    /// The tenant, once it is active.
    pub async fn active_tenant(&self, id: TenantId) -> Result<Arc<Tenant>, LookupError> {
        let tenant = self.tenants.get(id).map_err(|_| LookupError::NoTenant(id))?;
        let mut states = tenant.watch_state();
        let settled =
            states.wait_for(|state| !matches!(state, TenantState::Loading | TenantState::Attaching));
        let state = match tokio::time::timeout(ACTIVE_TENANT_TIMEOUT, settled).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) => return Err(LookupError::NoTenant(id)),
            Err(_) => return Err(LookupError::TenantTimeout(ACTIVE_TENANT_TIMEOUT, tenant.state())),
        };
        match state {
            TenantState::Active => Ok(tenant),
            other => Err(LookupError::TenantUnusable(id, other)),
        }
    }

    /// The timeline, once its tenant is active.
    pub async fn active_timeline(&self, id: TenantTimelineId) -> Result<Arc<Timeline>, LookupError> {
        let tenant = self.active_tenant(id.tenant_id).await?;
        let timeline = tenant
            .get_timeline(id.timeline_id)
            .map_err(|_| LookupError::NoTimeline(id))?;
        match timeline.state() {
            TimelineState::Active => Ok(timeline),
            other => Err(LookupError::TimelineUnusable(id, other)),
        }
    }

    /// Makes a timeline that holds a new cluster.
    pub async fn new_cluster(
        &self,
        tenant: &Arc<Tenant>,
        id: TimelineId,
    ) -> Result<Arc<Timeline>, NewClusterError> {
        let unfinished = tenant.create_timeline(id, PG_VERSION).await?;
        let writer = unfinished.timeline().writer().await;
        self.template.import(writer).await?;
        Ok(unfinished.finish().await?)
    }
}

#[cfg(test)]
pub(crate) mod testing;
