//! Tenants that come and go while the server runs: attached from object storage, detached, ignored and loaded.
//!
//! A tenant's directory appears and vanishes whole. The mark `attaching` in it says that what object storage has
//! is not all here yet, so that a restart goes on; the mark `___ignored_tenant` that the directory is to
//! be left alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use remote_storage::pause_after;
use utils::blocking;
use utils::crashsafe::{self, CrashsafeError, TEMP_SUFFIX};
use utils::id::TenantId;

use super::config::{self, ReadConfigError};
use super::load::LoadError;
use super::manager::TenantManager;
use super::{Tenant, TenantState, paths};
use crate::disk_space::is_out_of_space;
use crate::remote::WaitUploadedError;
use crate::remote::retry::{self, error_chain};
use crate::timeline::FlushError;

/// How long a detach waits until everything is in object storage.
const DETACH_UPLOADS_MAX: Duration = Duration::from_secs(60);

/// A tenant cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no object storage.
    #[error("attach_tenant is not possible because pageserver was configured without remote storage")]
    NoRemoteStorage,
    /// It is here.
    #[error("tenant {0} already exists, state: {1}")]
    Exists(TenantId, TenantState),
    /// There are files of it.
    #[error("Cannot attach tenant {0}, local tenant directory already exists")]
    DirectoryExists(TenantId),
    /// Its directory cannot be made.
    #[error("cannot create the directory of the tenant")]
    Files(#[from] CrashsafeError),
}

/// A tenant cannot be loaded from its directory.
#[derive(Debug, thiserror::Error)]
pub enum LoadTenantError {
    /// It is here.
    #[error("tenant {0} already exists, state: {1}")]
    Exists(TenantId, TenantState),
    /// It has no directory.
    #[error("Tenant {0} has no directory to load it from")]
    NoDirectory(TenantId),
    /// Its settings cannot be read.
    #[error(transparent)]
    Config(#[from] ReadConfigError),
    /// The mark cannot be removed.
    #[error("cannot remove the mark of an ignored tenant")]
    Files(#[from] CrashsafeError),
}

/// A tenant cannot be detached or ignored.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// It is not here.
    #[error("Tenant not found for id {0}")]
    NotFound(TenantId),
    /// Somebody else is at it.
    #[error("Tenant {0} is stopping already")]
    Stopping(TenantId),
    /// There is no object storage, so nothing would be left.
    #[error("detach is not possible because pageserver was configured without remote storage")]
    NoRemoteStorage,
    /// What is in memory cannot be written out. The tenant goes on.
    #[error("cannot write out what is in memory")]
    Flush(#[from] FlushError),
    /// Object storage does not have everything. The tenant goes on.
    #[error("object storage does not have everything yet, so the tenant stays")]
    NotUploaded(#[from] WaitUploadedError),
    /// Files cannot be removed.
    #[error("cannot change the directory of the tenant")]
    Files(#[from] CrashsafeError),
}

impl TenantManager {
    /// Begins to attach a tenant that object storage has. It becomes Active, or Broken, later.
    pub async fn attach_tenant(&self, id: TenantId) -> Result<(), AttachError> {
        if self.context().remote.is_none() {
            return Err(AttachError::NoRemoteStorage);
        }
        let _change = self.lock_changes().await;
        if let Ok(tenant) = self.get(id) {
            return Err(AttachError::Exists(id, tenant.state()));
        }
        let dir = self.tenant_dir(id);
        if dir.exists() {
            return Err(AttachError::DirectoryExists(id));
        }
        let made = dir.clone();
        let created = blocking::run(move || create_attaching_dir(&made)).await;
        self.context().disk.note(&created);
        created?;
        let tenant = self.make(id, dir, Default::default());
        tenant.state.send_replace(TenantState::Attaching);
        self.insert(&tenant);
        tenant.start_loading();
        Ok(())
    }

    /// Begins to load a tenant that was ignored, or whose directory was put there. It becomes Active, or Broken,
    /// later.
    pub async fn load_tenant(&self, id: TenantId) -> Result<(), LoadTenantError> {
        let _change = self.lock_changes().await;
        if let Ok(tenant) = self.get(id) {
            return Err(LoadTenantError::Exists(id, tenant.state()));
        }
        let dir = self.tenant_dir(id);
        if !dir.is_dir() {
            return Err(LoadTenantError::NoDirectory(id));
        }
        let overrides = config::read(&dir)?;
        let mark = paths::ignored_mark(&dir);
        if mark.exists() {
            blocking::run(move || crashsafe::remove_file(&mark)).await?;
        }
        let tenant = self.make(id, dir, overrides);
        tenant.note_attaching();
        self.insert(&tenant);
        tenant.start_loading();
        Ok(())
    }

    /// Forgets the tenant and removes its files, once object storage has everything.
    pub async fn detach_tenant(&self, id: TenantId) -> Result<(), DetachError> {
        let tenant = self.get(id).map_err(|_| DetachError::NotFound(id))?;
        if self.context().remote.is_none() {
            return Err(DetachError::NoRemoteStorage);
        }
        if tenant.state() == TenantState::Active {
            tenant.upload_all(DETACH_UPLOADS_MAX).await?;
        }
        tenant.begin_stopping()?;
        fail::fail_point!("detach-before-stop");
        tenant.stop().await;
        let dir = tenant.dir.clone();
        self.remove_after(&tenant, move || paths::remove_whole_dir(&dir))
            .await
    }

    /// Forgets the tenant and keeps its files, also over restarts, until it is loaded.
    pub async fn ignore_tenant(&self, id: TenantId) -> Result<(), DetachError> {
        let tenant = self.get(id).map_err(|_| DetachError::NotFound(id))?;
        tenant.begin_stopping()?;
        tenant.shutdown().await;
        let mark = paths::ignored_mark(&tenant.dir);
        self.remove_after(&tenant, move || paths::create_mark(&mark))
            .await
    }

    /// Forgets the tenant if `last_step` succeeds; otherwise it is Broken.
    async fn remove_after(
        &self,
        tenant: &Arc<Tenant>,
        last_step: impl FnOnce() -> Result<(), CrashsafeError> + Send + 'static,
    ) -> Result<(), DetachError> {
        match blocking::run(last_step).await {
            Ok(()) => {
                self.forget(tenant.id);
                Ok(())
            }
            Err(error) => {
                tenant.set_broken(error_chain(&error));
                Err(error.into())
            }
        }
    }
}

impl Tenant {
    /// Finds out from its directory whether attaching was begun and not ended.
    pub(super) fn note_attaching(&self) {
        if paths::attaching_mark(&self.dir).exists() {
            self.state.send_replace(TenantState::Attaching);
        }
    }

    /// Loads the timelines in the background, then activates the tenant.
    pub(super) fn start_loading(self: &Arc<Self>) {
        let tenant = Arc::clone(self);
        self.tasks.spawn(async move { tenant.load().await });
    }

    async fn load(self: Arc<Self>) {
        let was_attaching = self.state() == TenantState::Attaching;
        match self.try_load(was_attaching).await {
            // Whoever stops it has set the state.
            Err(LoadError::Stopping) => {}
            Ok(()) => self.activate(),
            Err(error) => {
                if was_attaching {
                    tracing::error!(tenant_id = %self.id, "error attaching tenant: {}", error_chain(&error));
                }
                self.set_broken(error_chain(&error));
            }
        }
    }

    /// A full disk is waited for: there will be room again.
    async fn load_when_there_is_room(self: &Arc<Self>) -> Result<(), LoadError> {
        let disk = &self.context.disk;
        let mut failures = 0_u32;
        loop {
            let loaded = self.load_timelines().await;
            disk.note(&loaded);
            let error = match loaded {
                Err(error) if is_out_of_space(&error) => error,
                loaded => return loaded,
            };
            failures = failures.saturating_add(1);
            retry::log_failure(&format!("tenant {}: cannot be loaded", self.id), failures, &error);
            tokio::select! {
                () = disk.pause(pause_after(failures)) => {}
                () = self.cancel.cancelled() => return Err(LoadError::Stopping),
            }
        }
    }

    async fn try_load(self: &Arc<Self>, was_attaching: bool) -> Result<(), LoadError> {
        self.load_when_there_is_room().await?;
        if was_attaching {
            fail::fail_point!("attach-before-remove-mark");
            let mark = paths::attaching_mark(&self.dir);
            blocking::run(move || crashsafe::remove_file(&mark)).await?;
        }
        Ok(())
    }

    /// Brings everything that is in memory or in files to object storage.
    async fn upload_all(&self, timeout: Duration) -> Result<(), DetachError> {
        let uploads = self.timelines().into_iter().map(|timeline| async move {
            timeline.flush().await?;
            timeline.wait_uploaded(timeout).await?;
            Ok::<_, DetachError>(())
        });
        try_join_all(uploads).await?;
        Ok(())
    }

    /// Makes sure that only one caller stops the tenant.
    fn begin_stopping(&self) -> Result<(), DetachError> {
        let begun = self.state.send_if_modified(|state| {
            let begun = *state != TenantState::Stopping;
            *state = TenantState::Stopping;
            begun
        });
        if begun {
            Ok(())
        } else {
            Err(DetachError::Stopping(self.id))
        }
    }
}

/// Makes a tenant's directory that says that the tenant is being attached. Blocking.
fn create_attaching_dir(dir: &Path) -> Result<(), CrashsafeError> {
    let temp: PathBuf = crashsafe::with_suffix(dir, TEMP_SUFFIX);
    crashsafe::remove_dir_all(&temp)?;
    crashsafe::create_dir_all(&paths::timelines_dir(&temp))?;
    config::write(&temp, &Default::default())?;
    paths::create_mark(&paths::attaching_mark(&temp))?;
    fail::fail_point!("attach-before-rename-dir");
    crashsafe::rename(&temp, dir)?;
    fail::fail_point!("attach-after-rename-dir");
    Ok(())
}
