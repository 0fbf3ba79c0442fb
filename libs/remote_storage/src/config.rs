//! Where object storage is: the `remote_storage` table of the daemons' configuration.

use std::path::PathBuf;

use serde::Deserialize;

/// Object storage as configured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RemoteStorageConfig {
    /// Which kind, and where.
    pub kind: RemoteStorageKind,
}

/// Kinds of object storage.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RemoteStorageKind {
    /// Files below a directory.
    LocalFs {
        /// The directory.
        path: PathBuf,
    },
}

/// The table does not describe object storage.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a table of the right form.
    #[error("malformed remote_storage")]
    Malformed(#[from] toml::de::Error),
    /// Two kinds at once.
    #[error("local_path and bucket_name are mutually exclusive")]
    TwoKinds,
    /// A kind this build does not have.
    #[error("remote_storage with bucket_name: S3 is not supported by this version")]
    NoS3,
}

#[derive(Deserialize)]
struct Table {
    local_path: Option<PathBuf>,
    bucket_name: Option<String>,
    bucket_region: Option<String>,
}

impl RemoteStorageConfig {
    /// Reads the table; `None` if it names no storage.
    pub fn from_toml(table: toml::Table) -> Result<Option<Self>, ConfigError> {
        let table: Table = table.try_into()?;
        let wants_s3 = table.bucket_name.is_some() || table.bucket_region.is_some();
        match table.local_path {
            Some(_) if wants_s3 => Err(ConfigError::TwoKinds),
            Some(path) => Ok(Some(RemoteStorageConfig {
                kind: RemoteStorageKind::LocalFs { path },
            })),
            None if wants_s3 => Err(ConfigError::NoS3),
            None => Ok(None),
        }
    }

    /// Reads an inline table, as on a command line.
    pub fn from_inline(text: &str) -> Result<Option<Self>, ConfigError> {
        #[derive(Deserialize)]
        struct Wrapper {
            table: toml::Table,
        }
        Self::from_toml(toml::from_str::<Wrapper>(&format!("table = {text}"))?.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let local = RemoteStorageConfig::from_inline("{local_path='/x'}")
            .unwrap()
            .unwrap();
        assert_eq!(local.kind, RemoteStorageKind::LocalFs { path: "/x".into() });
        assert_eq!(RemoteStorageConfig::from_inline("{}").unwrap(), None);
        let both = RemoteStorageConfig::from_inline("{local_path='/x', bucket_name='b'}").unwrap_err();
        assert!(matches!(both, ConfigError::TwoKinds));
        assert!(RemoteStorageConfig::from_inline("{local_path=").is_err());
    }
}
