//! Settings of the server: `pageserver.toml` with the overrides of the command line on top.
//!
//! An override is a TOML document whose top-level keys replace those of the file as a whole. Every
//! error names the key. Keys of features that are not there yet are accepted and checked, so that a
//! configuration keeps working when they come.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use broker::BrokerConfig;
use pageserver_api::tenant_config::{TenantConfig, TenantConfigOverrides};
use postgres_backend::AuthMethod;
use remote_storage::RemoteStorageConfig;
use utils::crashsafe;
use utils::id::NodeId;
use utils::logging::LogFormat;

mod value;

use crate::tenant::disk_usage::DiskUsageConfig;

use self::value::{Setting, ValueError};

/// Name of the file in the working directory.
pub const FILE_NAME: &str = "pageserver.toml";
/// Public key used under `NeonJWT` unless configured otherwise.
const DEFAULT_PUBLIC_KEY: &str = "auth_public_key.pem";
const DEFAULT_BROKER: &str = "http://127.0.0.1:50051";

/// What `--init` writes above the settings given.
const TEMPLATE: &str = "\
# Settings of this pageserver. Lines that start with '#' show defaults.

#listen_pg_addr = '127.0.0.1:64000'
#listen_http_addr = '127.0.0.1:9898'
#wait_lsn_timeout = '60 s'
#initial_superuser_name = 'cloud_admin'
#page_cache_size = 8192
#max_file_descriptors = 100
#pg_distrib_dir = 'pg_install'
#auth_type = 'Trust'
#broker_endpoints = ['http://127.0.0.1:50051']
#broker_etcd_prefix = 'neon'
#log_format = 'plain'
#disk_usage_based_eviction = { max_usage_pct = 80, min_avail_bytes = 2000000000, period = '60s' }

#[tenant_config]
#checkpoint_distance = 268435456
#checkpoint_timeout = '10m'
#compaction_target_size = 134217728
#compaction_period = '20s'
#compaction_threshold = 10
#gc_horizon = 67108864
#gc_period = '1h'
#image_creation_threshold = 3
#pitr_interval = '7days'

";

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read or written.
    #[error("cannot {action} '{path}'")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The file, or an override, is not TOML.
    #[error("{origin} is not a TOML document")]
    Toml {
        /// Where it came from.
        origin: String,
        /// What is wrong with it.
        source: toml_edit::TomlError,
    },
    /// There is no such setting.
    #[error("unrecognized pageserver option '{0}'")]
    UnknownKey(String),
    /// A setting that must be there is missing.
    #[error("pageserver option '{0}' is missing")]
    Missing(&'static str),
    /// A setting has a value it cannot have.
    #[error("pageserver option '{key}': {error}")]
    Value {
        /// The setting.
        key: String,
        /// What is wrong with its value.
        error: ValueError,
    },
    /// `--init` where there is a configuration.
    #[error("Config file '{0}' already exists, cannot init it, use --update-config to update it")]
    Exists(PathBuf),
    /// The file says who this is already.
    #[error("pageserver option 'id' is {old} in the configuration file and cannot be changed to {new}")]
    IdChange {
        /// In the file.
        old: String,
        /// In an override.
        new: String,
    },
    /// The new file cannot be written.
    #[error(transparent)]
    Write(#[from] crashsafe::CrashsafeError),
}

/// Settings that hold for this process.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of everything the server keeps. Absolute.
    pub workdir: PathBuf,
    /// This server's number.
    pub id: NodeId,
    /// `host:port` of the libpq services.
    pub listen_pg_addr: String,
    /// `host:port` of the management API.
    pub listen_http_addr: String,
    /// How long a request waits for WAL.
    pub wait_lsn_timeout: Duration,
    /// Superuser of new clusters.
    pub superuser: String,
    /// Where PostgreSQL is installed, if not where the distribution puts it.
    pub pg_distrib_dir: Option<PathBuf>,
    /// How clients of the libpq services show who they are.
    pub auth: AuthMethod,
    /// Key that verifies tokens; set if and only if they are asked for.
    pub auth_public_key: Option<PathBuf>,
    /// Object storage.
    pub remote_storage: Option<RemoteStorageConfig>,
    /// How often each remote operation fails before it succeeds; more than 0 in tests only.
    pub test_remote_failures: u32,
    /// When layers leave the disk for want of room; `None` is never.
    pub disk_usage_based_eviction: Option<DiskUsageConfig>,
    /// Settings of tenants that do not say otherwise.
    pub tenant_config: TenantConfig,
    /// Where safekeepers are found.
    pub broker: BrokerConfig,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Pages kept in memory.
    pub page_cache_pages: u64,
    /// Layer files that may be open at once.
    pub max_file_descriptors: u64,
}

/// A configuration file with overrides applied.
#[derive(Debug)]
pub struct ConfigDocument {
    document: toml_edit::DocumentMut,
    path: PathBuf,
}

impl ConfigDocument {
    /// The document that `--init` writes for these overrides in `workdir`.
    pub fn initial(workdir: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let path = workdir.join(FILE_NAME);
        if path.exists() {
            return Err(ConfigError::Exists(path));
        }
        let mut document = ConfigDocument {
            document: parse_document(TEMPLATE, "the built-in template")?,
            path,
        };
        document.apply(overrides)?;
        Ok(document)
    }

    /// The configuration file in `workdir` with these overrides.
    pub fn load(workdir: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let path = workdir.join(FILE_NAME);
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let mut document = ConfigDocument {
            document: parse_document(&text, &path.display().to_string())?,
            path,
        };
        document.apply(overrides)?;
        Ok(document)
    }

    fn apply(&mut self, overrides: &[String]) -> Result<(), ConfigError> {
        for text in overrides {
            let document = parse_document(text, &format!("override \"{text}\""))?;
            for (key, item) in document.as_table() {
                if let ("id", Some(old)) = (key, self.document.get("id"))
                    && old.as_integer() != item.as_integer()
                {
                    return Err(ConfigError::IdChange {
                        old: old.to_string().trim().to_owned(),
                        new: item.to_string().trim().to_owned(),
                    });
                }
                self.document.insert(key, item.clone());
            }
        }
        Ok(())
    }

    /// Replaces the configuration file with this document.
    pub fn save(&self) -> Result<(), ConfigError> {
        let temp = crashsafe::with_suffix(&self.path, crashsafe::TEMP_SUFFIX);
        crashsafe::write_atomically(&self.path, &temp, self.document.to_string().as_bytes())?;
        Ok(())
    }

    /// The settings. Relative paths are taken from the working directory.
    pub fn settings(&self) -> Result<Config, ConfigError> {
        let workdir = self.path.parent().expect("the file has a directory").to_owned();
        let mut settings = Settings::new(&self.document);
        let auth_type: AuthType = settings.take_or("auth_type", AuthType::Trust)?;
        let key: Option<PathBuf> = settings.take("auth_validation_public_key_path")?;
        let auth_public_key = match auth_type {
            AuthType::Trust => None,
            AuthType::NeonJwt => {
                let path = workdir.join(key.unwrap_or_else(|| DEFAULT_PUBLIC_KEY.into()));
                check_readable("auth_validation_public_key_path", &path)?;
                Some(path)
            }
        };
        let config = Config {
            id: NodeId(settings.take("id")?.ok_or(ConfigError::Missing("id"))?),
            listen_pg_addr: settings.take_or("listen_pg_addr", "127.0.0.1:64000".to_owned())?,
            listen_http_addr: settings.take_or("listen_http_addr", "127.0.0.1:9898".to_owned())?,
            wait_lsn_timeout: settings.take_or("wait_lsn_timeout", Duration::from_secs(60))?,
            superuser: settings.take_or("initial_superuser_name", "cloud_admin".to_owned())?,
            pg_distrib_dir: settings
                .take::<PathBuf>("pg_distrib_dir")?
                .filter(|path| !path.as_os_str().is_empty())
                .map(|path| workdir.join(path)),
            auth: match auth_type {
                AuthType::Trust => AuthMethod::Trust,
                AuthType::NeonJwt => AuthMethod::Jwt,
            },
            auth_public_key,
            remote_storage: settings.take_remote_storage()?,
            test_remote_failures: settings.take_remote_failures()?,
            disk_usage_based_eviction: settings.take("disk_usage_based_eviction")?,
            tenant_config: settings
                .take_or("tenant_config", TenantConfigOverrides::default())?
                .over(&TenantConfig::default()),
            broker: settings.take_broker()?,
            log_format: settings.take_or("log_format", LogFormat::Plain)?,
            page_cache_pages: settings.take_or("page_cache_size", 8192)?,
            max_file_descriptors: settings.take_or("max_file_descriptors", 100)?,
            workdir,
        };
        settings.check_keys_without_effect()?;
        settings.check_no_others()?;
        Ok(config)
    }
}

/// How clients show who they are, as the configuration spells it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum AuthType {
    Trust,
    NeonJwt,
}

impl FromStr for AuthType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "Trust" => Ok(AuthType::Trust),
            "NeonJWT" => Ok(AuthType::NeonJwt),
            _ => Err(format!("'{text}' is neither Trust nor NeonJWT")),
        }
    }
}

/// Settings not taken yet.
struct Settings<'a> {
    rest: BTreeMap<&'a str, &'a toml_edit::Item>,
}

impl<'a> Settings<'a> {
    fn new(document: &'a toml_edit::DocumentMut) -> Self {
        Settings {
            rest: document.iter().collect(),
        }
    }

    fn take<T: Setting>(&mut self, key: &'static str) -> Result<Option<T>, ConfigError> {
        let item = self.rest.remove(key);
        let value = item.map(|item| T::from_item(item)).transpose();
        value.map_err(|error| ConfigError::Value {
            key: key.to_owned(),
            error,
        })
    }

    fn take_or<T: Setting>(&mut self, key: &'static str, default: T) -> Result<T, ConfigError> {
        Ok(self.take(key)?.unwrap_or(default))
    }

    fn take_remote_storage(&mut self) -> Result<Option<RemoteStorageConfig>, ConfigError> {
        let Some(table) = self.take::<toml::Table>("remote_storage")? else {
            return Ok(None);
        };
        RemoteStorageConfig::from_toml(table).map_err(|error| ConfigError::Value {
            key: "remote_storage".to_owned(),
            error: ValueError::new(error),
        })
    }

    fn take_remote_failures(&mut self) -> Result<u32, ConfigError> {
        let failures: u64 = self.take_or("test_remote_failures", 0)?;
        let wrong = |reason: &str| ConfigError::Value {
            key: "test_remote_failures".to_owned(),
            error: ValueError::new(reason),
        };
        if failures > 0 && !cfg!(feature = "testing") {
            return Err(wrong("this server was built without testing APIs"));
        }
        u32::try_from(failures).map_err(|_| wrong("the number is too large"))
    }

    /// One endpoint or several; the several win, as they are the older form and the more explicit one.
    fn take_broker(&mut self) -> Result<BrokerConfig, ConfigError> {
        let one: Option<String> = self.take("broker_endpoint")?;
        let several: Vec<String> = self.take_or("broker_endpoints", Vec::new())?;
        let endpoints = match several.is_empty() {
            true => vec![one.unwrap_or_else(|| DEFAULT_BROKER.to_owned())],
            false => several,
        };
        Ok(BrokerConfig {
            endpoints,
            prefix: self.take_or("broker_etcd_prefix", broker::DEFAULT_PREFIX.to_owned())?,
        })
    }

    /// Settings whose values are checked and then not used.
    fn check_keys_without_effect(&mut self) -> Result<(), ConfigError> {
        for key in [
            "wal_redo_timeout",
            "broker_keepalive_interval",
            "metric_collection_interval",
            "cached_metric_collection_interval",
            "synthetic_size_calculation_interval",
        ] {
            self.take::<Duration>(key)?;
        }
        self.take::<String>("metric_collection_endpoint")?;
        self.take::<String>("concurrent_tenant_size_logical_size_queries")?;
        self.take::<bool>("ondemand_download_behavior_treat_error_as_warn")?;
        Ok(())
    }

    fn check_no_others(&self) -> Result<(), ConfigError> {
        match self.rest.keys().next() {
            None => Ok(()),
            Some(key) => Err(ConfigError::UnknownKey((*key).to_owned())),
        }
    }
}

fn parse_document(text: &str, origin: &str) -> Result<toml_edit::DocumentMut, ConfigError> {
    text.parse().map_err(|source| ConfigError::Toml {
        origin: origin.to_owned(),
        source,
    })
}

fn check_readable(key: &str, path: &Path) -> Result<(), ConfigError> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(source) => Err(ConfigError::Value {
            key: key.to_owned(),
            error: ValueError::new(format!("cannot read '{}': {source}", path.display())),
        }),
    }
}

#[cfg(test)]
mod tests;
