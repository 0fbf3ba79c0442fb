//! All tenants of the server, and their life from creation to shutdown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pageserver_api::tenant_config::{TenantConfig, TenantConfigOverrides};
use parking_lot::RwLock;
use utils::blocking;
use utils::crashsafe::{self, CrashsafeError, TEMP_SUFFIX};
use utils::id::TenantId;

use super::load::{LoadError, list_dir};
use super::{Tenant, TenantParts, TenantState, TimelineListener, config, paths};
use crate::context::StoreContext;
use crate::remote::retry::error_chain;

/// What the manager is made from.
pub struct TenantManagerConfig {
    /// Directory of the server; tenants are in `tenants/` below it.
    pub workdir: PathBuf,
    /// Settings of tenants that do not say otherwise.
    pub default_tenant_config: TenantConfig,
    /// What all tenants share.
    pub context: Arc<StoreContext>,
    /// Told when timelines become active.
    pub listener: Arc<dyn TimelineListener>,
}

/// A tenant cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateTenantError {
    /// It exists.
    #[error("tenant {id} already exists, state: {state}")]
    AlreadyExists {
        /// The tenant.
        id: TenantId,
        /// What it is doing.
        state: TenantState,
    },
    /// Files could not be written.
    #[error("cannot create the files of the tenant")]
    Files(#[from] CrashsafeError),
    /// A test asked for it.
    #[error("failpoint {0}")]
    Failpoint(&'static str),
}

/// There is no such tenant, or not in the state needed.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum GetTenantError {
    /// No such tenant.
    #[error("Tenant {0} not found")]
    NotFound(TenantId),
    /// It is not at work.
    #[error("Tenant {id} is not active. Current state: {state}")]
    NotActive {
        /// The tenant.
        id: TenantId,
        /// What it is instead.
        state: TenantState,
    },
}

/// See the module head.
pub struct TenantManager {
    config: TenantManagerConfig,
    tenants: RwLock<BTreeMap<TenantId, Arc<Tenant>>>,
    /// Held while a tenant is created, so that two creations of one id do not meet on disk.
    creation: tokio::sync::Mutex<()>,
}

impl TenantManager {
    /// Knows no tenants yet: call [`TenantManager::load_all`].
    pub fn new(config: TenantManagerConfig) -> Self {
        TenantManager {
            config,
            tenants: RwLock::default(),
            creation: tokio::sync::Mutex::default(),
        }
    }

    /// All tenants, in any state.
    pub fn list(&self) -> Vec<Arc<Tenant>> {
        self.tenants.read().values().cloned().collect()
    }

    /// The tenant, in any state.
    pub fn get(&self, id: TenantId) -> Result<Arc<Tenant>, GetTenantError> {
        let found = self.tenants.read().get(&id).cloned();
        found.ok_or(GetTenantError::NotFound(id))
    }

    /// The tenant, if it is active.
    pub fn get_active(&self, id: TenantId) -> Result<Arc<Tenant>, GetTenantError> {
        let tenant = self.get(id)?;
        match tenant.state() {
            TenantState::Active => Ok(tenant),
            state => Err(GetTenantError::NotActive { id, state }),
        }
    }

    /// Creates a tenant without timelines; it is active on return.
    pub async fn create_tenant(
        &self,
        id: TenantId,
        overrides: TenantConfigOverrides,
    ) -> Result<Arc<Tenant>, CreateTenantError> {
        let _creation = self.creation.lock().await;
        if let Ok(tenant) = self.get(id) {
            let state = tenant.state();
            return Err(CreateTenantError::AlreadyExists { id, state });
        }
        let dir = paths::tenant_dir(&self.config.workdir, id);
        let (made, settings) = (dir.clone(), overrides.clone());
        blocking::run(move || create_files(&made, &settings)).await?;
        let tenant = self.make(id, dir, overrides);
        self.insert(&tenant);
        tenant.activate();
        Ok(tenant)
    }

    /// Reads all tenants from disk and starts them; what is wrong with one leaves it Broken.
    ///
    /// # Errors
    /// The directory of all tenants cannot be read.
    pub async fn load_all(&self) -> Result<(), LoadError> {
        let workdir = self.config.workdir.clone();
        let found = blocking::run(move || find_tenants(&workdir)).await?;
        let mut loading = Vec::new();
        for id in found {
            let dir = paths::tenant_dir(&self.config.workdir, id);
            let (overrides, broken) = match config::read(&dir) {
                Ok(overrides) => (overrides, None),
                Err(error) => (TenantConfigOverrides::default(), Some(error_chain(&error))),
            };
            let tenant = self.make(id, dir, overrides);
            tenant.note_attaching();
            self.insert(&tenant);
            match broken {
                Some(reason) => tenant.set_broken(reason),
                None => tenant.start_loading(),
            }
            loading.push(tenant.watch_state());
        }
        for mut state in loading {
            let is_settled =
                |state: &TenantState| !matches!(state, TenantState::Loading | TenantState::Attaching);
            // An error means that the tenant is gone, which settles it, too.
            let _ = state.wait_for(is_settled).await;
        }
        Ok(())
    }

    pub(super) fn make(&self, id: TenantId, dir: PathBuf, overrides: TenantConfigOverrides) -> Arc<Tenant> {
        Tenant::new(TenantParts {
            id,
            dir,
            context: Arc::clone(&self.config.context),
            listener: Arc::clone(&self.config.listener),
            defaults: self.config.default_tenant_config.clone(),
            overrides,
        })
    }

    /// What all tenants share.
    pub fn context(&self) -> &Arc<StoreContext> {
        &self.config.context
    }

    /// Directory of the server.
    pub(super) fn workdir(&self) -> &Path {
        &self.config.workdir
    }

    /// Where the tenant's files are, if there are any.
    pub(super) fn tenant_dir(&self, id: TenantId) -> PathBuf {
        paths::tenant_dir(&self.config.workdir, id)
    }

    /// While it is held, no tenant appears.
    pub(super) async fn lock_changes(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.creation.lock().await
    }

    /// Makes the tenant known.
    pub(super) fn insert(&self, tenant: &Arc<Tenant>) {
        let before = self.tenants.write().insert(tenant.id, Arc::clone(tenant));
        assert!(before.is_none(), "{tenant:?} was made twice");
    }

    /// Forgets a tenant that was stopped.
    pub(super) fn forget(&self, id: TenantId) {
        self.tenants.write().remove(&id);
    }

    /// Stops all tenants, all at once, and waits for them.
    pub async fn shutdown(&self) {
        let mut stopping = tokio::task::JoinSet::new();
        for tenant in self.list() {
            stopping.spawn(async move { tenant.shutdown().await });
        }
        while let Some(stopped) = stopping.join_next().await {
            stopped.expect("stopping a tenant does not panic");
        }
    }
}

/// Ids of all tenants on disk, after removing what a crash left behind.
fn find_tenants(workdir: &Path) -> Result<Vec<TenantId>, LoadError> {
    let dir = paths::tenants_dir(workdir);
    let mut found = Vec::new();
    for name in list_dir(&dir)? {
        let path = dir.join(&name);
        if name.ends_with(TEMP_SUFFIX) {
            crashsafe::remove_dir_all(&path)?;
        } else if let Ok(id) = name.parse() {
            if !paths::ignored_mark(&path).exists() {
                found.push(id);
            }
        } else {
            tracing::warn!(dir = %dir.display(), "unrecognized name {name:?}");
        }
    }
    Ok(found)
}

/// Makes the tenant's directory under a temporary name and renames it.
fn create_files(dir: &Path, overrides: &TenantConfigOverrides) -> Result<(), CreateTenantError> {
    let temp = crashsafe::with_suffix(dir, TEMP_SUFFIX);
    crashsafe::remove_dir_all(&temp)?;
    crashsafe::create_dir_all(&paths::timelines_dir(&temp))?;
    config::write(&temp, overrides)?;
    fail::fail_point!("tenant-creation-before-tmp-rename", |_| {
        Err(CreateTenantError::Failpoint("tenant-creation-before-tmp-rename"))
    });
    crashsafe::rename(&temp, dir)?;
    Ok(())
}
