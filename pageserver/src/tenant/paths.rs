//! Where the files of tenants and timelines are (storage formats, section 1).

use std::path::{Path, PathBuf};

use utils::crashsafe::{self, CrashsafeError, TEMP_SUFFIX};
use utils::id::{TenantId, TimelineId};

/// Suffix of the file that marks an unfinished timeline.
pub const UNINIT_SUFFIX: &str = ".___uninit";

/// Directory of all tenants.
pub fn tenants_dir(workdir: &Path) -> PathBuf {
    workdir.join("tenants")
}

/// Directory of a tenant.
pub fn tenant_dir(workdir: &Path, tenant: TenantId) -> PathBuf {
    tenants_dir(workdir).join(tenant.to_string())
}

/// Directory of all timelines of the tenant in `tenant_dir`.
pub fn timelines_dir(tenant_dir: &Path) -> PathBuf {
    tenant_dir.join("timelines")
}

/// Directory of a timeline of the tenant in `tenant_dir`.
pub fn timeline_dir(tenant_dir: &Path, timeline: TimelineId) -> PathBuf {
    timelines_dir(tenant_dir).join(timeline.to_string())
}

/// The file whose presence says that the timeline in `timeline_dir` is not finished.
pub fn uninit_mark(timeline_dir: &Path) -> PathBuf {
    crashsafe::with_suffix(timeline_dir, UNINIT_SUFFIX)
}

/// The file whose presence says that the tenant in `tenant_dir` is being fetched from object storage.
pub fn attaching_mark(tenant_dir: &Path) -> PathBuf {
    tenant_dir.join("attaching")
}

/// The file whose presence says that the tenant in `tenant_dir` is to be left alone.
pub fn ignored_mark(tenant_dir: &Path) -> PathBuf {
    tenant_dir.join("___ignored_tenant")
}

/// Makes an empty file, durably. Blocking.
pub fn create_mark(mark: &Path) -> Result<(), CrashsafeError> {
    std::fs::File::create(mark).map_err(|source| CrashsafeError {
        action: "create file",
        path: mark.to_owned(),
        source,
    })?;
    crashsafe::fsync_dir(mark.parent().expect("a mark is in a directory"))
}

/// Removes a directory with everything in it, so that after a crash it is there whole or not at all. Blocking.
pub fn remove_whole_dir(dir: &Path) -> Result<(), CrashsafeError> {
    let temp = crashsafe::with_suffix(dir, TEMP_SUFFIX);
    crashsafe::remove_dir_all(&temp)?;
    fail::fail_point!("before-remove-dir");
    crashsafe::rename(dir, &temp)?;
    fail::fail_point!("after-remove-dir");
    crashsafe::remove_dir_all(&temp)
}

/// Removes a timeline that was not finished, the mark last. Blocking.
pub fn remove_unfinished_timeline(timeline_dir: &Path) -> Result<(), CrashsafeError> {
    crashsafe::remove_dir_all(timeline_dir)?;
    crashsafe::remove_file(&uninit_mark(timeline_dir))
}
