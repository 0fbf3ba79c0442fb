//! A safekeeper's process.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use safekeeper_api::models::TimelineStatus;
use serde_json::Value;
use utils::auth::Scope;
use utils::id::{NodeId, TenantId, TimelineId};
use utils::lsn::Lsn;

use crate::broker;
use crate::env::{LocalEnv, SafekeeperConfig};
use crate::http::ApiClient;
use crate::output::say_part;
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

    fn api(&self) -> Result<ApiClient> {
        let token = match self.config.auth_enabled {
            true => Some(self.env.token(None, Scope::SafekeeperData)?),
            false => None,
        };
        Ok(ApiClient::new(
            &format!("{HOST}:{}", self.config.http_port),
            token,
        ))
    }

    /// Starts the daemon and waits until it serves.
    pub async fn start(&self) -> Result<()> {
        let config = self.config;
        say_part!(
            "Starting safekeeper at '{HOST}:{}' in '{}'",
            config.pg_port,
            self.dir().display()
        );
        let api = self.api()?;
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

/// End of a timeline's WAL that is certainly committed, as the safekeepers that answer know it: all that any
/// compute has acknowledged so far, if a majority answers. `None` if they know of no WAL.
pub async fn committed_lsn(env: &LocalEnv, tenant: TenantId, timeline: TimelineId) -> Result<Option<Lsn>> {
    let mut known: Vec<TimelineStatus> = Vec::new();
    for node in Safekeeper::all(env) {
        // One that is down, or has no such timeline, has nothing to say.
        let path = format!("/v1/tenant/{tenant}/timeline/{timeline}");
        known.extend(node.api()?.get::<TimelineStatus>(&path).await.ok());
    }
    let lsn = known_committed(&known, env.config.safekeepers.len());
    Ok(lsn.is_valid().then_some(lsn))
}

/// What a majority of `count` safekeepers has flushed in the latest epoch is committed, though they may not
/// have been told yet.
fn known_committed(known: &[TimelineStatus], count: usize) -> Lsn {
    let told = known
        .iter()
        .map(|status| status.commit_lsn)
        .max()
        .unwrap_or_default();
    let epoch = known.iter().map(|status| status.acceptor_state.epoch).max();
    let latest = known
        .iter()
        .filter(|status| Some(status.acceptor_state.epoch) == epoch);
    let mut flushed: Vec<Lsn> = latest.map(|status| status.flush_lsn).collect();
    flushed.sort_by_key(|lsn| std::cmp::Reverse(*lsn));
    let quorum = count / 2 + 1;
    let by_majority = flushed.get(quorum - 1).copied().unwrap_or_default();
    told.max(by_majority)
}

#[cfg(test)]
mod tests {
    use safekeeper_api::models::{AcceptorStateStatus, ServerInfo};

    use super::*;

    fn status(epoch: u64, flush: u64, commit: u64) -> TimelineStatus {
        TimelineStatus {
            tenant_id: TenantId::default(),
            timeline_id: TimelineId::default(),
            acceptor_state: AcceptorStateStatus {
                term: epoch,
                epoch,
                term_history: Vec::new(),
            },
            pg_info: ServerInfo {
                pg_version: 150000,
                system_id: 1,
                wal_seg_size: 1 << 24,
            },
            flush_lsn: Lsn(flush),
            timeline_start_lsn: Lsn(0),
            local_start_lsn: Lsn(0),
            commit_lsn: Lsn(commit),
            backup_lsn: Lsn(0),
            peer_horizon_lsn: Lsn(0),
            remote_consistent_lsn: Lsn(0),
        }
    }

    #[test]
    fn a_majority_in_one_epoch_commits() {
        let check = |known: &[TimelineStatus], expected| assert_eq!(known_committed(known, 3), Lsn(expected));
        check(&[], 0);
        check(&[status(2, 90, 40)], 40);
        check(&[status(2, 90, 40), status(2, 80, 50)], 80);
        check(&[status(2, 90, 40), status(2, 80, 50), status(2, 70, 50)], 80);
        check(&[status(2, 90, 40), status(1, 95, 50), status(1, 95, 50)], 50);
    }
}
