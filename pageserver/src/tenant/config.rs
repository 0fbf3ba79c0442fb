//! `tenants/<id>/config`: the settings made for one tenant (storage formats, section 1).

use std::path::{Path, PathBuf};

use pageserver_api::tenant_config::TenantConfigOverrides;
use serde::{Deserialize, Serialize};
use utils::crashsafe::{self, CrashsafeError};

/// Name of the file in the tenant's directory.
pub const FILE_NAME: &str = "config";

const HEADER: &str = "# This file holds the settings made for this tenant.\n\
                      # It is replaced whenever they are changed through the API.\n\n";

/// Why the settings of a tenant cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadConfigError {
    /// The operating system refused.
    #[error("cannot read tenant config {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It is not TOML, or has keys that mean nothing.
    #[error("tenant config {path} is malformed")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What and where.
        source: toml::de::Error,
    },
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ConfigFile {
    tenant_config: TenantConfigOverrides,
}

/// Reads the file in the tenant directory `dir`; without one nothing is overridden. Blocking.
pub fn read(dir: &Path) -> Result<TenantConfigOverrides, ReadConfigError> {
    let path = dir.join(FILE_NAME);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(source) => return Err(ReadConfigError::Io { path, source }),
    };
    match toml::from_str::<ConfigFile>(&text) {
        Ok(file) => Ok(file.tenant_config),
        Err(source) => Err(ReadConfigError::Malformed { path, source }),
    }
}

/// Replaces the file in the tenant directory `dir`, durably. Blocking.
pub fn write(dir: &Path, overrides: &TenantConfigOverrides) -> Result<(), CrashsafeError> {
    let file = ConfigFile {
        tenant_config: overrides.clone(),
    };
    let body = toml::to_string(&file).expect("all settings have a form in TOML");
    let path = dir.join(FILE_NAME);
    let temp = crashsafe::with_suffix(&path, crashsafe::TEMP_SUFFIX);
    crashsafe::write_atomically(&path, &temp, format!("{HEADER}{body}").as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pageserver_api::tenant_config::EvictionPolicy;

    use super::*;

    #[test]
    fn only_what_is_set_is_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), TenantConfigOverrides::default());
        let overrides = TenantConfigOverrides {
            gc_period: Some(Duration::from_secs(3600)),
            eviction_policy: Some(EvictionPolicy::NoEviction),
            ..Default::default()
        };
        write(dir.path(), &overrides).unwrap();
        assert_eq!(read(dir.path()).unwrap(), overrides);
        let text = std::fs::read_to_string(dir.path().join(FILE_NAME)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with('#') && lines[1].starts_with('#') && lines[2].is_empty());
        assert_eq!(lines[3..5], ["[tenant_config]", "gc_period = \"1h\""]);
    }

    #[test]
    fn both_forms_of_the_lag_are_read_and_strangers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let check = |text: &str| {
            std::fs::write(dir.path().join(FILE_NAME), text).unwrap();
            read(dir.path()).map(|overrides| overrides.max_lsn_wal_lag.map(u64::from))
        };
        assert_eq!(check("[tenant_config]\nmax_lsn_wal_lag = 5").unwrap(), Some(5));
        assert_eq!(check("[tenant_config]\nmax_lsn_wal_lag = '5'").unwrap(), Some(5));
        assert_eq!(check("").unwrap(), None);
        assert!(check("[other]").is_err());
        assert!(check("[tenant_config").is_err());
    }
}
