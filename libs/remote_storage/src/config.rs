//! Where object storage is: the `remote_storage` table of the daemons' configuration.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Requests under way at once, unless configured otherwise.
const CONCURRENCY_LIMIT_DEFAULT: NonZeroUsize = NonZeroUsize::new(100).expect("100 is not 0");
/// How long one request may take, unless configured otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(120);

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
    /// A bucket of a service that speaks S3.
    S3(S3Config),
}

/// A bucket and how to use it. Credentials are not part of it: they come from the environment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct S3Config {
    /// The bucket.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// What all keys begin with, without `/` at either end. Without one, keys begin with `/`.
    pub prefix: Option<String>,
    /// Base URL of a service that is not AWS; the bucket is then part of the path.
    pub endpoint: Option<String>,
    /// Requests under way at once, each with a few MiB of buffers at most.
    pub concurrency_limit: NonZeroUsize,
    /// How long one request, or the wait for the next piece of a download, may take.
    pub timeout: Duration,
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
    /// Half of what S3 needs.
    #[error("'{missing}' option is mandatory if '{given}' is given")]
    Incomplete {
        /// The key that is there.
        given: &'static str,
        /// The key that is not.
        missing: &'static str,
    },
    /// A limit under which nothing could ever be done.
    #[error("'{0}' must be more than 0")]
    Zero(&'static str),
    /// Not a duration.
    #[error("'timeout' is no duration")]
    Timeout(#[from] humantime::DurationError),
}

#[derive(Deserialize)]
struct Table {
    local_path: Option<PathBuf>,
    bucket_name: Option<String>,
    bucket_region: Option<String>,
    prefix_in_bucket: Option<String>,
    endpoint: Option<String>,
    concurrency_limit: Option<usize>,
    timeout: Option<String>,
    max_concurrent_syncs: Option<usize>,
    max_sync_errors: Option<usize>,
}

impl Table {
    fn check_limits(&self) -> Result<(), ConfigError> {
        let limits = [
            ("concurrency_limit", self.concurrency_limit),
            ("max_concurrent_syncs", self.max_concurrent_syncs),
            ("max_sync_errors", self.max_sync_errors),
        ];
        match limits.iter().find(|(_, limit)| *limit == Some(0)) {
            Some((name, _)) => Err(ConfigError::Zero(name)),
            None => Ok(()),
        }
    }

    /// The rest of the table, given the two keys that S3 needs.
    fn s3(self, bucket: String, region: String) -> Result<S3Config, ConfigError> {
        let prefix = self
            .prefix_in_bucket
            .map(|prefix| prefix.trim_matches('/').to_owned());
        let limit = self.concurrency_limit.and_then(NonZeroUsize::new);
        let timeout = self.timeout.as_deref().map(humantime::parse_duration);
        let timeout = timeout.transpose()?.unwrap_or(TIMEOUT_DEFAULT);
        if timeout.is_zero() {
            return Err(ConfigError::Zero("timeout"));
        }
        Ok(S3Config {
            bucket,
            region,
            prefix: prefix.filter(|prefix| !prefix.is_empty()),
            endpoint: self.endpoint,
            concurrency_limit: limit.unwrap_or(CONCURRENCY_LIMIT_DEFAULT),
            timeout,
        })
    }
}

impl RemoteStorageConfig {
    /// Reads the table; `None` if it names no storage.
    pub fn from_toml(table: toml::Table) -> Result<Option<Self>, ConfigError> {
        let mut table: Table = table.try_into()?;
        table.check_limits()?;
        let kind = match (
            table.local_path.take(),
            table.bucket_name.take(),
            table.bucket_region.take(),
        ) {
            (None, None, None) => return Ok(None),
            (Some(path), None, None) => RemoteStorageKind::LocalFs { path },
            (Some(_), _, _) => return Err(ConfigError::TwoKinds),
            (None, Some(bucket), Some(region)) => RemoteStorageKind::S3(table.s3(bucket, region)?),
            (None, Some(_), None) => {
                return Err(ConfigError::Incomplete {
                    given: "bucket_name",
                    missing: "bucket_region",
                });
            }
            (None, None, Some(_)) => {
                return Err(ConfigError::Incomplete {
                    given: "bucket_region",
                    missing: "bucket_name",
                });
            }
        };
        Ok(Some(RemoteStorageConfig { kind }))
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

    fn parse(text: &str) -> Result<Option<RemoteStorageKind>, String> {
        match RemoteStorageConfig::from_inline(text) {
            Ok(config) => Ok(config.map(|config| config.kind)),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn kinds() {
        let local = RemoteStorageKind::LocalFs { path: "/x".into() };
        assert_eq!(parse("{local_path='/x'}"), Ok(Some(local)));
        assert_eq!(parse("{}"), Ok(None));
        let s3 = S3Config {
            bucket: "b".to_owned(),
            region: "r".to_owned(),
            prefix: None,
            endpoint: None,
            concurrency_limit: CONCURRENCY_LIMIT_DEFAULT,
            timeout: TIMEOUT_DEFAULT,
        };
        assert_eq!(
            parse("{bucket_name='b', bucket_region='r', prefix_in_bucket='/'}"),
            Ok(Some(RemoteStorageKind::S3(s3.clone())))
        );
        let full = S3Config {
            prefix: Some("p/q".to_owned()),
            endpoint: Some("http://e".to_owned()),
            concurrency_limit: NonZeroUsize::new(7).unwrap(),
            timeout: Duration::from_secs(3),
            ..s3
        };
        assert_eq!(
            parse(
                "{bucket_name='b', bucket_region='r', prefix_in_bucket='/p/q/', endpoint='http://e', \
                 concurrency_limit=7, timeout='3s', max_sync_errors=1}"
            ),
            Ok(Some(RemoteStorageKind::S3(full)))
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let check = |text: &str, expected: &str| {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("{local_path='/x', bucket_name='b'}", "mutually exclusive");
        check("{bucket_name='b'}", "'bucket_region' option is mandatory");
        check("{bucket_region='b'}", "'bucket_name' option is mandatory");
        check(
            "{bucket_name='b', bucket_region='r', concurrency_limit=0}",
            "more than 0",
        );
        check("{local_path='/x', max_sync_errors=0}", "more than 0");
        check("{bucket_name='b', bucket_region='r', timeout='x'}", "no duration");
        check("{local_path=", "malformed");
    }
}
