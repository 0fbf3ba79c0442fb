//! The pageserver: its process, and the management API that the commands use.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use hyper::Method;
use pageserver_api::models::{TenantInfo, TenantState, TimelineCreateRequest, TimelineInfo};
use postgres_client::Host;
use serde_json::{Map, Value};
use tokio::io::AsyncReadExt;
use utils::auth::Scope;
use utils::id::{TenantId, TimelineId};

use crate::broker;
use crate::env::{AuthType, LocalEnv};
use crate::http::ApiClient;
use crate::output::{say, say_part};
use crate::process::{Daemon, PidFileOwner, StopMode};

/// The pageserver of a repository directory.
pub struct Pageserver<'a> {
    env: &'a LocalEnv,
    api: ApiClient,
}

impl<'a> Pageserver<'a> {
    /// The pageserver that `env` describes, running or not.
    pub fn new(env: &'a LocalEnv) -> Self {
        let config = &env.config.pageserver;
        let token = env.uses_tokens().then(|| config.auth_token.clone());
        Pageserver {
            env,
            api: ApiClient::new(&config.listen_http_addr, token),
        }
    }

    fn daemon(&self) -> Daemon {
        Daemon {
            name: "pageserver".to_owned(),
            dir: self.env.repo.clone(),
            pid_file: self.env.repo.join("pageserver.pid"),
            pid_file_owner: PidFileOwner::Daemon,
        }
    }

    /// Host and port of the page service.
    pub fn pg_address(&self) -> (String, u16) {
        const DEFAULT_PORT: u16 = 5432;
        let address = &self.env.config.pageserver.listen_pg_addr;
        match address.rsplit_once(':') {
            Some((host, port)) => (host.to_owned(), port.parse().unwrap_or(DEFAULT_PORT)),
            None => (address.clone(), DEFAULT_PORT),
        }
    }

    /// The name it was told to give the superuser of new clusters, if it was told one.
    pub fn initial_superuser(&self) -> Result<Option<String>> {
        let path = self.env.repo.join("pageserver.toml");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let settings: toml::Table =
            toml::from_str(&text).with_context(|| format!("malformed {}", path.display()))?;
        let name = settings
            .get("initial_superuser_name")
            .and_then(toml::Value::as_str);
        Ok(name.map(str::to_owned))
    }

    fn description(&self) -> String {
        let config = &self.env.config.pageserver;
        format!(
            "pageserver node {} at '{}' in {:?}",
            config.id, config.listen_pg_addr, self.env.repo
        )
    }

    /// `-c` arguments; the operator's own come last and win.
    fn arguments(&self, overrides: &[String]) -> Vec<OsString> {
        let config = &self.env.config.pageserver;
        let quoted: Vec<String> = broker::endpoints(self.env)
            .iter()
            .map(|url| format!("'{url}'"))
            .collect();
        let mut settings = vec![
            format!("id={}", config.id),
            format!(
                "auth_type='{}'",
                if self.env.uses_tokens() {
                    "NeonJWT"
                } else {
                    "Trust"
                }
            ),
            format!("listen_http_addr='{}'", config.listen_http_addr),
            format!("listen_pg_addr='{}'", config.listen_pg_addr),
            format!("broker_endpoints=[{}]", quoted.join(",")),
        ];
        if !self.env.config.pg_distrib_dir.as_os_str().is_empty() {
            settings.push(format!(
                "pg_distrib_dir='{}'",
                self.env.config.pg_distrib_dir.display()
            ));
        }
        if let Some(prefix) = broker::prefix(self.env) {
            settings.push(format!("broker_etcd_prefix='{prefix}'"));
        }
        if config.auth_type == AuthType::NeonJWT {
            settings.push("auth_validation_public_key_path='auth_public_key.pem'".to_owned());
        }
        settings.extend(overrides.iter().cloned());
        let mut arguments: Vec<OsString> = vec!["-D".into(), self.env.repo.clone().into()];
        arguments.extend(
            settings
                .into_iter()
                .flat_map(|setting| ["-c".into(), setting.into()]),
        );
        arguments
    }

    /// Makes the pageserver's configuration file; leaves it stopped.
    pub fn init(&self, overrides: &[String]) -> Result<()> {
        say!("Initializing {}", self.description());
        let program = self.env.binary("pageserver");
        let output = Command::new(&program)
            .args(self.arguments(overrides))
            .arg("--init")
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        if !output.status.success() {
            bail!(
                "pageserver init failed: {}, {}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Starts the daemon and waits until it serves.
    pub async fn start(&self, overrides: &[String]) -> Result<()> {
        say_part!("Starting {}", self.description());
        let mut environment = Vec::new();
        if self.env.uses_tokens() {
            environment.push(("NEON_AUTH_TOKEN", self.env.token(None, Scope::SafekeeperData)?));
        }
        let program = self.env.binary("pageserver");
        let ready = async || self.loaded().await;
        self.daemon()
            .start(&program, &self.arguments(overrides), &environment, ready)
            .await
    }

    /// Stops the daemon.
    pub async fn stop(&self, mode: StopMode) -> Result<()> {
        self.daemon().stop(mode).await
    }

    /// Asks whether it serves.
    pub async fn status(&self) -> Result<()> {
        self.api.get::<Value>("/v1/status").await.map(drop)
    }

    /// Fails while a tenant is still being loaded: commands that follow a start want its timelines.
    async fn loaded(&self) -> Result<()> {
        let busy = |tenant: &TenantInfo| tenant.state == TenantState::Loading;
        match self.tenants().await?.iter().find(|tenant| busy(tenant)) {
            Some(tenant) => bail!("tenant {} is being loaded", tenant.id),
            None => Ok(()),
        }
    }

    /// All tenants.
    pub async fn tenants(&self) -> Result<Vec<TenantInfo>> {
        self.api.get("/v1/tenant").await
    }

    /// Creates a tenant with the given `key:value` settings.
    pub async fn create_tenant(&self, id: TenantId, settings: Map<String, Value>) -> Result<TenantId> {
        let mut body = settings;
        body.insert("new_tenant_id".to_owned(), Value::String(id.to_string()));
        self.api.send(Method::POST, "/v1/tenant", &body).await
    }

    /// Replaces the settings of a tenant.
    pub async fn configure_tenant(&self, id: TenantId, settings: Map<String, Value>) -> Result<()> {
        let mut body = settings;
        body.insert("tenant_id".to_owned(), Value::String(id.to_string()));
        self.api.send(Method::PUT, "/v1/tenant/config", &body).await
    }

    /// All timelines of a tenant.
    pub async fn timelines(&self, tenant: TenantId) -> Result<Vec<TimelineInfo>> {
        self.api.get(&format!("/v1/tenant/{tenant}/timeline")).await
    }

    /// One timeline.
    pub async fn timeline(&self, tenant: TenantId, timeline: TimelineId) -> Result<TimelineInfo> {
        self.api
            .get(&format!("/v1/tenant/{tenant}/timeline/{timeline}"))
            .await
    }

    /// Creates a timeline: a new cluster, or a branch.
    pub async fn create_timeline(
        &self,
        tenant: TenantId,
        request: &TimelineCreateRequest,
    ) -> Result<TimelineInfo> {
        self.api
            .send(Method::POST, &format!("/v1/tenant/{tenant}/timeline"), request)
            .await
    }

    /// A connection to the page service; `tenant` is whose data it is about.
    pub async fn connect(&self, tenant: TenantId) -> Result<postgres_client::Client> {
        let (host, port) = self.pg_address();
        let mut config = postgres_client::Config::new(Host::Tcp(host), port, "neon_local");
        if self.env.uses_tokens() {
            config.password = Some(self.env.token(Some(tenant), Scope::Tenant)?.into());
        }
        config.connect().await.context("cannot connect to the pageserver")
    }

    /// Runs a command that takes a file, such as an import.
    pub async fn copy_in(&self, tenant: TenantId, command: &str, path: &Path) -> Result<()> {
        const CHUNK_BYTES: usize = 128 * 1024;
        let reading = || format!("cannot read {}", path.display());
        let mut file = tokio::fs::File::open(path).await.with_context(reading)?;
        let mut client = self.connect(tenant).await?;
        let mut copy = client.copy_in(command).await?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match file.read(&mut chunk).await.with_context(reading)? {
                0 => return Ok(copy.finish().await?),
                length => copy.send(&chunk[..length]).await?,
            }
        }
    }
}
