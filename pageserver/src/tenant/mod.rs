//! A tenant: a set of timelines with one configuration, and the directory they live in.
//!
//! Invariants
//! * A timeline directory with an uninit mark beside it does not count: it was not finished, and is
//!   removed when the tenant is loaded. Removing the mark is what makes a timeline exist.
//! * A timeline is in the map before anybody can ask for it, and leaves the map before its files go.
//! * A branch keeps its ancestor from being deleted.
//! * With object storage, what it has counts: a timeline is there if it has an index that is not marked as
//!   deleted. The directory here is a cache of it, and holds what is not uploaded yet.
//! * The timelines of a tenant become visible together.

mod attach;
pub mod config;
mod create;
mod delete;
pub mod disk_usage;
mod load;
mod manager;
mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use pageserver_api::tenant_config::{TenantConfig, TenantConfigOverrides};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utils::crashsafe::CrashsafeError;
use utils::id::{TenantId, TenantTimelineId, TimelineId};

pub use self::attach::{AttachError, DetachError, LoadTenantError};
pub use self::create::{BranchSpec, CreateTimelineError, UninitTimeline};
pub use self::delete::DeleteTimelineError;
pub use self::load::LoadError;
pub use self::manager::{CreateTenantError, GetTenantError, TenantManager, TenantManagerConfig};
use crate::context::StoreContext;
use crate::timeline::{Timeline, TimelineState};

/// What a tenant is able to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TenantState {
    /// Its timelines are being read from disk.
    Loading,
    /// Its timelines are being fetched from object storage.
    Attaching,
    /// At work.
    Active,
    /// On its way out.
    Stopping,
    /// Unusable.
    Broken {
        /// Why, for people.
        reason: String,
    },
}

impl fmt::Display for TenantState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TenantState::Loading => "Loading",
            TenantState::Attaching => "Attaching",
            TenantState::Active => "Active",
            TenantState::Stopping => "Stopping",
            TenantState::Broken { .. } => "Broken",
        })
    }
}

/// Told about timelines: this is where what feeds them is started.
pub trait TimelineListener: Send + Sync {
    /// A timeline became active. What is started for it belongs into [`Timeline::spawn`].
    fn timeline_active(&self, timeline: &Arc<Timeline>);
}

/// No timeline of this name.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
#[error("Timeline {0} was not found")]
pub struct TimelineNotFound(pub TenantTimelineId);

/// See the module head.
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    dir: PathBuf,
    context: Arc<StoreContext>,
    listener: Arc<dyn TimelineListener>,
    defaults: TenantConfig,
    overrides: Mutex<TenantConfigOverrides>,
    config: Arc<ArcSwap<TenantConfig>>,
    state: watch::Sender<TenantState>,
    timelines: RwLock<BTreeMap<TimelineId, Arc<Timeline>>>,
    /// Ids of timelines being created, so that nobody else creates them.
    creating: Mutex<BTreeSet<TimelineId>>,
    /// Fires when the tenant stops.
    cancel: CancellationToken,
    /// Loading, attaching, and removing what is in object storage.
    tasks: TaskTracker,
}

/// What a tenant is made from.
struct TenantParts {
    id: TenantId,
    dir: PathBuf,
    context: Arc<StoreContext>,
    listener: Arc<dyn TimelineListener>,
    defaults: TenantConfig,
    overrides: TenantConfigOverrides,
}

impl Tenant {
    /// A tenant in state Loading, without timelines.
    fn new(parts: TenantParts) -> Arc<Self> {
        let TenantParts {
            id,
            dir,
            context,
            listener,
            defaults,
            overrides,
        } = parts;
        let config = overrides.over(&defaults);
        Arc::new(Tenant {
            id,
            dir,
            context,
            listener,
            defaults,
            overrides: Mutex::new(overrides),
            config: Arc::new(ArcSwap::from_pointee(config)),
            state: watch::Sender::new(TenantState::Loading),
            timelines: RwLock::default(),
            creating: Mutex::default(),
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is able to do now.
    pub fn state(&self) -> TenantState {
        self.state.borrow().clone()
    }

    /// Follows the state.
    pub fn watch_state(&self) -> watch::Receiver<TenantState> {
        self.state.subscribe()
    }

    /// Settings made for this tenant.
    pub fn overrides(&self) -> TenantConfigOverrides {
        self.overrides.lock().clone()
    }

    /// Settings that hold.
    pub fn config(&self) -> Arc<TenantConfig> {
        self.config.load_full()
    }

    /// Replaces all settings made for this tenant, durably.
    pub async fn set_overrides(&self, overrides: TenantConfigOverrides) -> Result<(), CrashsafeError> {
        let (dir, written) = (self.dir.clone(), overrides.clone());
        utils::blocking::run(move || config::write(&dir, &written)).await?;
        self.config.store(Arc::new(overrides.over(&self.defaults)));
        *self.overrides.lock() = overrides;
        Ok(())
    }

    /// Its timelines, finished ones only.
    pub fn timelines(&self) -> Vec<Arc<Timeline>> {
        self.timelines.read().values().cloned().collect()
    }

    /// The timeline `id`.
    pub fn get_timeline(&self, id: TimelineId) -> Result<Arc<Timeline>, TimelineNotFound> {
        let found = self.timelines.read().get(&id).cloned();
        found.ok_or(TimelineNotFound(TenantTimelineId::new(self.id, id)))
    }

    /// Stops all timelines: ends their tasks, then writes out what they have in memory.
    pub async fn shutdown(&self) {
        self.state.send_replace(TenantState::Stopping);
        self.end_tasks().await;
        let stopping = self.timelines().into_iter().map(|timeline| async move {
            timeline.shutdown().await;
        });
        futures::future::join_all(stopping).await;
    }

    /// Stops all timelines. Versions in memory are not written out, nor layers uploaded.
    async fn stop(&self) {
        self.state.send_replace(TenantState::Stopping);
        self.end_tasks().await;
        let stopping = self.timelines().into_iter().map(|timeline| async move {
            timeline.stop().await;
        });
        futures::future::join_all(stopping).await;
    }

    async fn end_tasks(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Marks the tenant as unusable.
    fn set_broken(&self, reason: String) {
        tracing::error!(tenant = %self.id, "Setting tenant as Broken state, reason: {reason}");
        self.state.send_replace(TenantState::Broken { reason });
    }

    /// Starts the tenant and its timelines.
    fn activate(&self) {
        self.state.send_replace(TenantState::Active);
        for timeline in self.timelines() {
            timeline.start();
            self.activate_timeline(&timeline);
        }
    }

    fn activate_timeline(&self, timeline: &Arc<Timeline>) {
        assert_eq!(
            timeline.state(),
            TimelineState::Loading,
            "{timeline:?} is activated once"
        );
        timeline.activate();
        self.listener.timeline_active(timeline);
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tenant({})", self.id)
    }
}

#[cfg(test)]
mod tests;
