//! etcd, the broker.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::env::LocalEnv;
use crate::http::ApiClient;
use crate::output::say_part;
use crate::process::{Daemon, PidFileOwner, StopMode};

const QUOTA_BYTES: &str = "--quota-backend-bytes=100000000";

fn daemon(env: &LocalEnv) -> Daemon {
    Daemon {
        name: "etcd".to_owned(),
        dir: env.repo.join("etcd"),
        pid_file: env.repo.join("etcd.pid"),
        pid_file_owner: PidFileOwner::Starter,
    }
}

/// Client URLs, without a trailing slash.
pub fn endpoints(env: &LocalEnv) -> Vec<String> {
    match (&env.config.etcd_broker, &env.config.broker) {
        (Some(etcd), _) => etcd
            .broker_endpoints
            .iter()
            .map(|url| url.trim_end_matches('/').to_owned())
            .collect(),
        (None, Some(broker)) => vec![format!("http://{}", broker.listen_addr)],
        (None, None) => Vec::new(),
    }
}

/// Prefix of all keys, if it is not the default.
pub fn prefix(env: &LocalEnv) -> Option<&str> {
    env.config.etcd_broker.as_ref()?.broker_etcd_prefix.as_deref()
}

/// The etcd program; `None` if the endpoints are somebody else's.
fn program(env: &LocalEnv) -> Result<Option<PathBuf>> {
    if let Some(etcd) = &env.config.etcd_broker {
        let path = &etcd.etcd_binary_path;
        return Ok((!path.as_os_str().is_empty()).then(|| path.clone()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("etcd"))
        .find(|file| file.is_file());
    match found {
        Some(file) => Ok(Some(file)),
        None => bail!("etcd is not installed (no 'etcd' in PATH): install the package etcd-server"),
    }
}

/// Starts etcd, unless the configured endpoints are somebody else's.
pub async fn start(env: &LocalEnv) -> Result<()> {
    let Some(program) = program(env)? else {
        return Ok(());
    };
    let daemon = daemon(env);
    std::fs::create_dir_all(&daemon.dir)
        .with_context(|| format!("cannot create {}", daemon.dir.display()))?;
    let endpoints = endpoints(env);
    let urls = endpoints.join(",");
    let arguments: Vec<OsString> = [
        format!("--data-dir={}", daemon.dir.display()),
        format!("--listen-client-urls={urls}"),
        format!("--advertise-client-urls={urls}"),
        // A single member has no peers; any free port will do.
        "--listen-peer-urls=http://127.0.0.1:0".to_owned(),
        QUOTA_BYTES.to_owned(),
        "--auto-compaction-mode=revision".to_owned(),
        "--auto-compaction-retention=1".to_owned(),
    ]
    .map(OsString::from)
    .into();
    say_part!("Starting neon broker at {urls}");
    let address = endpoints.first().context("no broker endpoint is configured")?;
    let address = address.trim_start_matches("http://");
    let api = ApiClient::new(address, None);
    let ready = async || api.get::<serde_json::Value>("/health").await.map(drop);
    daemon.start(&program, &arguments, &[], ready).await
}

/// Stops the etcd that [`start`] started.
pub async fn stop(env: &LocalEnv) -> Result<()> {
    match program(env) {
        Ok(None) => Ok(()),
        // SIGTERM: etcd knows no quicker way that would leave its files whole.
        Ok(Some(_)) | Err(_) => daemon(env).stop(StopMode::Fast).await,
    }
}
