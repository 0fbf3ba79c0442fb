//! Which timelines this safekeeper has: loading, creating, deleting.
//!
//! Invariants
//! * A timeline's directory appears under its name with a control file in it, or not at all; what a
//!   crash left in between is removed on start.
//! * A timeline that cannot be loaded keeps its name and its files, and refuses by naming what is
//!   wrong; the others are served.
//! * A deleted timeline's name cannot be used again before a restart.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use safekeeper_api::models::TimelineDeleteStatus;
use tracing::{error, info};
use utils::crashsafe::{self, CrashsafeError, TEMP_SUFFIX};
use utils::id::{TenantId, TenantTimelineId};
use utils::lsn::Lsn;

use crate::acceptor::{ControlState, ServerInfo};
use crate::config::Config;
use crate::control_file::{self, CONTROL_FILE_NAME, ControlFileError};
use crate::timeline::Timeline;
use crate::wal_storage::is_valid_segment_size;

/// A timeline cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GetTimelineError {
    /// There is none of this name.
    #[error("Timeline {0} was not found in global map")]
    NotFound(TenantTimelineId),
    /// It was deleted since the start.
    #[error("Timeline {0} was cancelled and cannot be used anymore")]
    Cancelled(TenantTimelineId),
    /// It is not here yet.
    #[error("Timeline {0} is being copied from another safekeeper")]
    Arriving(TenantTimelineId),
    /// It could not be loaded.
    #[error("Timeline {id} could not be loaded: {reason}")]
    Broken {
        /// The timeline.
        id: TenantTimelineId,
        /// The whole chain of causes.
        reason: String,
    },
}

/// A timeline cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateTimelineError {
    /// There is something of this name that cannot be used.
    #[error(transparent)]
    Existing(#[from] GetTimelineError),
    /// The request says too little of the cluster.
    #[error("Timeline {0} is not initialized, pg_version is unknown")]
    NoVersion(TenantTimelineId),
    /// The same.
    #[error("Timeline {0} is not initialized, wal_seg_size is zero")]
    NoSegmentSize(TenantTimelineId),
    /// PostgreSQL has no such segments.
    #[error("invalid wal_seg_size {0}")]
    SegmentSize(u32),
    /// The positions contradict each other.
    #[error("commit_lsn {commit_lsn} is higher than local_start_lsn {local_start_lsn}")]
    Positions {
        /// Asked for.
        commit_lsn: Lsn,
        /// Asked for.
        local_start_lsn: Lsn,
    },
    /// There is one of this name.
    #[error("Timeline {0} already exists")]
    Exists(TenantTimelineId),
    /// Its directory is there, though nothing was loaded from it.
    #[error("Timeline {0} exists on disk, but wasn't loaded on startup")]
    OnDisk(TenantTimelineId),
    /// The disk failed.
    #[error(transparent)]
    Crashsafe(#[from] CrashsafeError),
    /// The control file could not be written.
    #[error(transparent)]
    ControlFile(#[from] ControlFileError),
}

/// A timeline cannot be deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteTimelineError {
    /// It is not here yet.
    #[error("Timeline {0} is being copied from another safekeeper")]
    Arriving(TenantTimelineId),
    /// Its files cannot be removed.
    #[error(transparent)]
    Crashsafe(#[from] CrashsafeError),
}

/// What a new timeline is made with.
#[derive(Clone, Copy, Debug)]
pub struct NewTimeline {
    /// Its name.
    pub id: TenantTimelineId,
    /// The cluster.
    pub server: ServerInfo,
    /// WAL before this is final. 0 if a proposer makes the timeline and will tell.
    pub commit_lsn: Lsn,
    /// Where WAL on this safekeeper begins.
    pub local_start_lsn: Lsn,
}

#[derive(Debug, Clone)]
enum Entry {
    Live(Arc<Timeline>),
    Broken {
        reason: String,
    },
    Deleted,
    /// It is being copied from another safekeeper.
    Arriving,
}

/// See the module's head.
#[derive(Debug)]
pub struct TimelineMap {
    conf: Arc<Config>,
    entries: RwLock<HashMap<TenantTimelineId, Entry>>,
    /// Held while directories are made and removed.
    changes: tokio::sync::Mutex<()>,
}

impl TimelineMap {
    /// The timelines found in the data directory. Blocking.
    ///
    /// # Errors
    /// The data directory cannot be listed. What is wrong with single timelines is logged.
    pub fn load(conf: Arc<Config>) -> std::io::Result<Self> {
        let mut entries = HashMap::new();
        for tenant_dir in std::fs::read_dir(&conf.workdir)? {
            let tenant_dir = tenant_dir?;
            let Some(tenant_id) = tenant_dir.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if let Err(error) = load_tenant(&conf, tenant_id, &mut entries) {
                error!("timelines of tenant {tenant_id} are not served: {error}");
            }
        }
        info!("loaded {} timelines", entries.len());
        Ok(TimelineMap {
            conf,
            entries: RwLock::new(entries),
            changes: tokio::sync::Mutex::default(),
        })
    }

    /// Settings of the process.
    pub fn conf(&self) -> &Arc<Config> {
        &self.conf
    }

    /// The timeline `id`.
    pub fn get(&self, id: TenantTimelineId) -> Result<Arc<Timeline>, GetTimelineError> {
        match self.entries.read().get(&id) {
            None => Err(GetTimelineError::NotFound(id)),
            Some(Entry::Live(timeline)) => Ok(Arc::clone(timeline)),
            Some(Entry::Arriving) => Err(GetTimelineError::Arriving(id)),
            Some(Entry::Deleted) => Err(GetTimelineError::Cancelled(id)),
            Some(Entry::Broken { reason }) => Err(GetTimelineError::Broken {
                id,
                reason: reason.clone(),
            }),
        }
    }

    /// All timelines that can be used, by name.
    pub fn all(&self) -> Vec<Arc<Timeline>> {
        let entries = self.entries.read();
        let mut all: Vec<_> = entries
            .values()
            .filter_map(|entry| match entry {
                Entry::Live(timeline) => Some(Arc::clone(timeline)),
                _ => None,
            })
            .collect();
        all.sort_by_key(|timeline| timeline.id());
        all
    }

    /// The timeline `new.id`, made if it is not there.
    pub async fn get_or_create(&self, new: NewTimeline) -> Result<Arc<Timeline>, CreateTimelineError> {
        let _changes = self.changes.lock().await;
        match self.get(new.id) {
            Err(GetTimelineError::NotFound(_)) => {}
            found => return Ok(found?),
        }
        let NewTimeline { id, server, .. } = new;
        if server.pg_version == 0 {
            return Err(CreateTimelineError::NoVersion(id));
        }
        if server.wal_seg_size == 0 {
            return Err(CreateTimelineError::NoSegmentSize(id));
        }
        if !is_valid_segment_size(server.wal_seg_size) {
            return Err(CreateTimelineError::SegmentSize(server.wal_seg_size));
        }
        if new.commit_lsn < new.local_start_lsn {
            return Err(CreateTimelineError::Positions {
                commit_lsn: new.commit_lsn,
                local_start_lsn: new.local_start_lsn,
            });
        }
        let mut control = ControlState::empty(id);
        control.server = server;
        control.commit_lsn = new.commit_lsn;
        control.local_start_lsn = new.local_start_lsn;
        control.backup_lsn = new.local_start_lsn;
        control.peer_horizon_lsn = new.local_start_lsn;
        tokio::task::block_in_place(|| create_dir(&self.conf, &control))?;
        let timeline = Arc::new(Timeline::new(Arc::clone(&self.conf), &control));
        self.entries
            .write()
            .insert(id, Entry::Live(Arc::clone(&timeline)));
        info!("created timeline {id}");
        Ok(timeline)
    }

    /// Keeps the name `id` for a timeline that is being copied to its temporary directory.
    ///
    /// # Errors
    /// There is, or was, a timeline of this name.
    pub async fn reserve(&self, id: TenantTimelineId) -> Result<Reservation<'_>, CreateTimelineError> {
        let _changes = self.changes.lock().await;
        match self.get(id) {
            Err(GetTimelineError::NotFound(_)) if self.conf.timeline_dir(id).exists() => {
                Err(CreateTimelineError::OnDisk(id))
            }
            Err(GetTimelineError::NotFound(_)) => {
                self.entries.write().insert(id, Entry::Arriving);
                Ok(Reservation { map: self, id })
            }
            Ok(_) => Err(CreateTimelineError::Exists(id)),
            Err(unusable) => Err(unusable.into()),
        }
    }

    /// Deletes the timeline `id`, if it is there.
    pub async fn delete(&self, id: TenantTimelineId) -> Result<TimelineDeleteStatus, DeleteTimelineError> {
        let _changes = self.changes.lock().await;
        self.delete_locked(id).await
    }

    async fn delete_locked(&self, id: TenantTimelineId) -> Result<TimelineDeleteStatus, DeleteTimelineError> {
        let known = self.entries.read().get(&id).cloned();
        if matches!(known, Some(Entry::Arriving)) {
            return Err(DeleteTimelineError::Arriving(id));
        }
        let was_active = match &known {
            Some(Entry::Live(timeline)) => {
                let was_active = timeline.is_active();
                timeline.cancel().await;
                was_active
            }
            _ => false,
        };
        let dir = self.conf.timeline_dir(id);
        let dir_existed = dir.exists();
        if known.is_some() {
            self.entries.write().insert(id, Entry::Deleted);
        }
        if dir_existed {
            tokio::task::block_in_place(|| remove_dir(&dir))?;
            info!("deleted timeline {id}");
        }
        Ok(TimelineDeleteStatus {
            dir_existed,
            was_active,
        })
    }

    /// Deletes all timelines of `tenant`, also those of which only the name is left.
    pub async fn delete_tenant(
        &self,
        tenant: TenantId,
    ) -> Result<Vec<(TenantTimelineId, TimelineDeleteStatus)>, DeleteTimelineError> {
        let _changes = self.changes.lock().await;
        let known: Vec<_> = {
            let entries = self.entries.read();
            entries
                .keys()
                .filter(|id| id.tenant_id == tenant)
                .copied()
                .collect()
        };
        let mut deleted = Vec::new();
        for id in known {
            deleted.push((id, self.delete_locked(id).await?));
        }
        let dir = self.conf.tenant_dir(tenant);
        tokio::task::block_in_place(|| crashsafe::remove_dir_all(&dir))?;
        Ok(deleted)
    }
}

/// A name kept for a timeline whose directory is being filled; given up when dropped.
pub struct Reservation<'a> {
    map: &'a TimelineMap,
    id: TenantTimelineId,
}

impl Reservation<'_> {
    /// Gives the temporary directory, in which everything is durable, its name, and serves the timeline.
    pub fn install(self, control: &ControlState) -> Result<(), CrashsafeError> {
        let conf = &self.map.conf;
        tokio::task::block_in_place(|| {
            crashsafe::fsync_dir(&conf.timeline_temp_dir(self.id))?;
            crashsafe::rename(&conf.timeline_temp_dir(self.id), &conf.timeline_dir(self.id))
        })?;
        let timeline = Arc::new(Timeline::new(Arc::clone(conf), control));
        self.map.entries.write().insert(self.id, Entry::Live(timeline));
        Ok(())
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut entries = self.map.entries.write();
        if matches!(entries.get(&self.id), Some(Entry::Arriving)) {
            entries.remove(&self.id);
        }
    }
}

fn load_tenant(
    conf: &Arc<Config>,
    tenant_id: TenantId,
    entries: &mut HashMap<TenantTimelineId, Entry>,
) -> std::io::Result<()> {
    for timeline_dir in std::fs::read_dir(conf.tenant_dir(tenant_id))? {
        let path = timeline_dir?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if name.ends_with(TEMP_SUFFIX) {
            info!("removing {}, left by a crash", path.display());
            std::fs::remove_dir_all(&path)?;
        } else if let Ok(timeline_id) = name.parse() {
            let id = TenantTimelineId::new(tenant_id, timeline_id);
            entries.insert(id, load_timeline(conf, id, &path));
        }
    }
    Ok(())
}

fn load_timeline(conf: &Arc<Config>, id: TenantTimelineId, dir: &Path) -> Entry {
    remove_temporary_files(dir);
    let loaded = control_file::load(&dir.join(CONTROL_FILE_NAME));
    let reason = match loaded {
        Ok(control) if control.id == id => {
            return Entry::Live(Arc::new(Timeline::new(Arc::clone(conf), &control)));
        }
        Ok(control) => format!("its control file is that of timeline {}", control.id),
        Err(error) => format!("{:#}", anyhow::Error::new(error)),
    };
    error!("timeline {id} is not served: {reason}");
    Entry::Broken { reason }
}

fn remove_temporary_files(dir: &Path) {
    let Ok(files) = std::fs::read_dir(dir) else { return };
    for file in files.flatten() {
        if file.file_name().to_string_lossy().ends_with(TEMP_SUFFIX) {
            // It only takes space; the next start tries again.
            let _ = std::fs::remove_file(file.path());
        }
    }
}

fn create_dir(conf: &Config, control: &ControlState) -> Result<(), CreateTimelineError> {
    let dir = conf.timeline_dir(control.id);
    if dir.exists() {
        return Err(CreateTimelineError::OnDisk(control.id));
    }
    let temp = conf.timeline_temp_dir(control.id);
    crashsafe::remove_dir_all(&temp)?;
    crashsafe::create_dir_all(&temp)?;
    fail::fail_point!("sk-timeline-create-in-temp", |_| Err(
        ControlFileError::Failpoint("sk-timeline-create-in-temp").into()
    ));
    control_file::store(&temp, control, conf.sync)?;
    crashsafe::rename(&temp, &dir)?;
    fail::fail_point!("sk-timeline-created", |_| Err(ControlFileError::Failpoint(
        "sk-timeline-created"
    )
    .into()));
    Ok(())
}

/// Removes a timeline's directory: a crash leaves all of it or something that start-up removes.
fn remove_dir(dir: &Path) -> Result<(), CrashsafeError> {
    let temp = crashsafe::with_suffix(dir, TEMP_SUFFIX);
    crashsafe::remove_dir_all(&temp)?;
    crashsafe::rename(dir, &temp)?;
    crashsafe::remove_dir_all(&temp)
}
