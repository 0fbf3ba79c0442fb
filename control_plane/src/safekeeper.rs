//! A safekeeper's process.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;
use utils::auth::Scope;
use utils::id::NodeId;

use crate::broker;
use crate::env::{LocalEnv, SafekeeperConfig};
use crate::http::ApiClient;
use crate::process::{Daemon, PidFileOwner, StopMode};

const HOST: &str = "127.0.0.1";

/// A safekeeper of a repository directory.
pub struct Safekeeper<'a> {
    env: &'a LocalEnv,
    config: &'a SafekeeperConfig,
}

impl<'a> Safekeeper<'a> {
    /// All safekeepers that `env` describes.
    pub fn all(env: &'a LocalEnv) -> impl Iterator<Item = Safekeeper<'a>> {
        env.config
            .safekeepers
            .iter()
            .map(move |config| Safekeeper { env, config })
    }

    /// The safekeeper with this id.
    pub fn find(env: &'a LocalEnv, id: NodeId) -> Result<Self> {
        Self::all(env)
            .find(|node| node.id() == id)
            .with_context(|| format!("could not find safekeeper {id}"))
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.config.id
    }

    /// Its data directory.
    pub fn dir(&self) -> PathBuf {
        self.env
            .repo
            .join("safekeepers")
            .join(format!("sk{}", self.config.id))
    }

    fn daemon(&self) -> Daemon {
        Daemon {
            name: format!("safekeeper {}", self.config.id),
            dir: self.dir(),
            pid_file: self.dir().join("safekeeper.pid"),
            pid_file_owner: PidFileOwner::Daemon,
        }
    }

    fn arguments(&self) -> Vec<OsString> {
        let config = self.config;
        let mut arguments: Vec<OsString> = vec!["-D".into(), self.dir().into()];
        let mut flag = |name: &str, value: String| arguments.extend([name.into(), value.into()]);
        flag("--id", config.id.to_string());
        flag("--listen-pg", format!("{HOST}:{}", config.pg_port));
        flag("--listen-http", format!("{HOST}:{}", config.http_port));
        flag("--broker-endpoints", broker::endpoints(self.env).join(","));
        if let Some(prefix) = broker::prefix(self.env) {
            flag("--broker-etcd-prefix", prefix.to_owned());
        }
        if let Some(threads) = config.backup_threads {
            flag("--wal-backup-threads", threads.to_string());
        }
        if let Some(storage) = &config.remote_storage {
            flag("--remote-storage", storage.clone());
        }
        if config.auth_enabled {
            let key = self.env.repo.join("auth_public_key.pem");
            flag("--auth-validation-public-key-path", key.display().to_string());
        }
        if !config.sync {
            arguments.push("--no-sync".into());
        }
        arguments
    }

    /// Starts the daemon and waits until it serves.
    pub async fn start(&self) -> Result<()> {
        let config = self.config;
        print!(
            "Starting safekeeper at '{HOST}:{}' in '{}'",
            config.pg_port,
            self.dir().display()
        );
        let token = match config.auth_enabled {
            true => Some(self.env.token(None, Scope::SafekeeperData)?),
            false => None,
        };
        let api = ApiClient::new(&format!("{HOST}:{}", config.http_port), token);
        let ready = async || api.get::<Value>("/v1/status").await.map(drop);
        self.daemon()
            .start(&self.env.binary("safekeeper"), &self.arguments(), &[], ready)
            .await
    }

    /// Stops the daemon.
    pub async fn stop(&self, mode: StopMode) -> Result<()> {
        self.daemon().stop(mode).await
    }
}
