//! Endpoints: computes, each a data directory below `pgdatadirs/tenants/<tenant>/<name>`.
//!
//! The data directory holds nothing that cannot be made again. What an endpoint *is* stands in its
//! `postgresql.conf`; each start wipes the rest and fills it from a base backup.

mod conf;
mod data_dir;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use utils::auth::Scope;
use utils::id::{TenantId, TimelineId};
use utils::lsn::Lsn;

use crate::account::Account;
use crate::env::{LocalEnv, PG_VERSION};
use crate::output::say;
use crate::pageserver::Pageserver;
use crate::process::StopMode;
use crate::safekeeper;

pub use conf::{EndpointConf, EndpointMode};

/// Port of the first endpoint.
const FIRST_PORT: u16 = 55432;

/// Superuser of a cluster whose pageserver was not told another name.
pub const SUPERUSER: &str = "cloud_admin";

/// One compute, running or not.
pub struct Endpoint<'a> {
    env: &'a LocalEnv,
    /// Name, unique within the tenant.
    pub name: String,
    /// What its `postgresql.conf` says.
    pub conf: EndpointConf,
}

/// What to make an endpoint of.
pub struct NewEndpoint {
    /// Name, unique within the tenant.
    pub name: String,
    /// Its tenant.
    pub tenant_id: TenantId,
    /// Its timeline.
    pub timeline_id: TimelineId,
    /// What it is for.
    pub mode: EndpointMode,
    /// Port; `None` for the next free one.
    pub port: Option<u16>,
    /// Major version.
    pub pg_version: u32,
}

/// State of a compute as `pg_ctl` and the port see it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// It serves.
    Running,
    /// It does not run, as it should be.
    Stopped,
    /// It does not run, but left its pid file.
    Crashed,
    /// Something listens on its port, but there is no pid file.
    RunningWithoutPidFile,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Status::Running => "running",
            Status::Stopped => "stopped",
            Status::Crashed => "crashed",
            Status::RunningWithoutPidFile => "running, no pidfile",
        })
    }
}

/// All endpoints that the repository directory holds, ordered by tenant and name.
pub fn all(env: &LocalEnv) -> Result<Vec<Endpoint<'_>>> {
    let root = env.compute_root().join("tenants");
    let mut endpoints = Vec::new();
    let list = |dir: &PathBuf| -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
        let mut paths = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    };
    for dir in list(&root)?
        .iter()
        .map(&list)
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
    {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match EndpointConf::read(&dir) {
            Ok(conf) => endpoints.push(Endpoint { env, conf, name }),
            // One that somebody spoilt must not keep the others from being listed and stopped.
            Err(error) => eprintln!("leaving out endpoint '{name}': {error:#}"),
        }
    }
    Ok(endpoints)
}

/// The endpoint of this name, if there is one.
pub fn find<'a>(env: &'a LocalEnv, tenant: TenantId, name: &str) -> Result<Option<Endpoint<'a>>> {
    let dir = dir_of(env, tenant, name);
    if !dir.join("postgresql.conf").exists() {
        return Ok(None);
    }
    let conf = EndpointConf::read(&dir)?;
    Ok(Some(Endpoint {
        env,
        conf,
        name: name.to_owned(),
    }))
}

fn dir_of(env: &LocalEnv, tenant: TenantId, name: &str) -> PathBuf {
    env.compute_root()
        .join("tenants")
        .join(tenant.to_string())
        .join(name)
}

/// Makes an endpoint: a data directory with its configuration only.
pub fn create(env: &LocalEnv, new: NewEndpoint) -> Result<Endpoint<'_>> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if new.name.is_empty() || !new.name.chars().all(valid) || new.name.starts_with('.') {
        bail!(
            "'{}' cannot be an endpoint's name: use letters, digits, '_', '-' and '.'",
            new.name
        );
    }
    if find(env, new.tenant_id, &new.name)?.is_some() {
        bail!("endpoint '{}' already exists", new.name);
    }
    env.pg_bin_dir(new.pg_version)?;
    let existing = all(env)?;
    let port = match new.port {
        Some(port) => port,
        None => existing
            .iter()
            .map(|other| other.conf.port + 1)
            .max()
            .unwrap_or(FIRST_PORT),
    };
    let conf = EndpointConf {
        port,
        tenant_id: new.tenant_id,
        timeline_id: new.timeline_id,
        mode: new.mode,
        superuser: Pageserver::new(env)
            .initial_superuser()?
            .unwrap_or_else(|| SUPERUSER.to_owned()),
    };
    let dir = dir_of(env, new.tenant_id, &new.name);
    data_dir::create(&dir)?;
    let pageserver = Pageserver::new(env).pg_address();
    std::fs::write(dir.join("postgresql.conf"), conf.render(env, &pageserver))
        .with_context(|| format!("cannot write postgresql.conf in {}", dir.display()))?;
    std::fs::write(dir.join("PG_VERSION"), new.pg_version.to_string())
        .with_context(|| format!("cannot write PG_VERSION in {}", dir.display()))?;
    Account::find()?.own_all(&dir)?;
    Ok(Endpoint {
        env,
        name: new.name,
        conf,
    })
}

impl Endpoint<'_> {
    /// Its data directory.
    pub fn dir(&self) -> PathBuf {
        dir_of(self.env, self.conf.tenant_id, &self.name)
    }

    /// `host:port` it listens on.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.conf.port)
    }

    /// How a client connects to it.
    pub fn connection_string(&self) -> String {
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
        let mut user = self.conf.superuser.clone();
        if !user.chars().all(plain) {
            user = format!("'{}'", user.replace('\\', r"\\").replace('\'', r"\'"));
        }
        format!(
            "host=127.0.0.1 port={} user={user} dbname=postgres",
            self.conf.port
        )
    }

    /// Whether it runs.
    pub fn status(&self) -> Status {
        let timeout = std::time::Duration::from_millis(300);
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], self.conf.port));
        let listens = std::net::TcpStream::connect_timeout(&address, timeout).is_ok();
        match (self.dir().join("postmaster.pid").exists(), listens) {
            (true, true) => Status::Running,
            (false, false) => Status::Stopped,
            (true, false) => Status::Crashed,
            (false, true) => Status::RunningWithoutPidFile,
        }
    }

    /// What its processes find in their environment, and nothing else.
    fn environment(&self) -> Result<Vec<(&'static str, String)>> {
        let mut environment = vec![("PGDATA", self.dir().display().to_string())];
        for name in ["PATH", "LD_LIBRARY_PATH", "RUST_LOG"] {
            if let Ok(value) = std::env::var(name) {
                environment.push((name, value));
            }
        }
        if self.env.uses_tokens() {
            let token = self.env.token(Some(self.conf.tenant_id), Scope::Tenant)?;
            if self.conf.mode == EndpointMode::HotStandby {
                environment.push(("PGPASSWORD", token.clone()));
            }
            environment.push(("NEON_AUTH_TOKEN", token));
        }
        Ok(environment)
    }

    /// Starts it: agrees with the safekeepers on the end of WAL, fetches a base backup, runs PostgreSQL.
    pub async fn start(&self) -> Result<()> {
        match self.status() {
            Status::Running => bail!("The node is already running"),
            Status::RunningWithoutPidFile => {
                bail!(
                    "something else listens on port {} of endpoint '{}'",
                    self.conf.port,
                    self.name
                )
            }
            Status::Stopped | Status::Crashed => {}
        }
        let dir = self.dir();
        let account = Account::find()?;
        let program = data_dir::reachable_walproposer(self.env, &account)?;
        self.conf.set_walproposer(&dir, &program)?;
        let lsn = match self.conf.mode {
            EndpointMode::Static(lsn) => Some(lsn),
            EndpointMode::HotStandby => self.standby_start().await?,
            EndpointMode::Primary if self.env.config.safekeepers.is_empty() => None,
            EndpointMode::Primary => self.sync_safekeepers(&program)?,
        };
        say!(
            "Extracting base backup to create postgres instance: path={} port={}",
            dir.display(),
            self.conf.port
        );
        data_dir::wipe(&dir)?;
        data_dir::fetch_base_backup(self.env, &self.conf, lsn, &dir).await?;
        match (self.conf.mode, lsn) {
            (EndpointMode::Static(_) | EndpointMode::HotStandby, _) => {
                data_dir::remove_replication_slots(&dir)?
            }
            (EndpointMode::Primary, Some(end)) if data_dir::has_replication_slots(&dir)? => {
                self.fetch_slot_wal(&program, end)?
            }
            (EndpointMode::Primary, _) => {}
        }
        if self.conf.mode != EndpointMode::Primary {
            std::fs::write(dir.join("standby.signal"), "").context("cannot write standby.signal")?;
        }
        account.own_all(&dir)?;
        say!("Starting postgres node at '{}'", self.connection_string());
        self.pg_ctl(&account, &["-w", "start"])
    }

    /// Where a hot standby begins to follow: at what is committed by now. The primary is asked for a checkpoint,
    /// which logs what transactions run: a standby lets nobody in before it knows.
    async fn standby_start(&self) -> Result<Option<Lsn>> {
        let EndpointConf {
            tenant_id,
            timeline_id,
            ..
        } = self.conf;
        let committed = safekeeper::committed_lsn(self.env, tenant_id, timeline_id).await?;
        let others = all(self.env)?;
        let primary = others.iter().find(|other| {
            let conf = &other.conf;
            (conf.tenant_id, conf.timeline_id, conf.mode) == (tenant_id, timeline_id, EndpointMode::Primary)
                && other.status() == Status::Running
        });
        let Some(primary) = primary else {
            bail!("a hot standby needs a running primary on its timeline to start");
        };
        let output = Command::new(self.env.pg_bin_dir(PG_VERSION)?.join("psql"))
            .args(["-Xqc", "CHECKPOINT", "-d", &primary.connection_string()])
            .output()
            .context("cannot run psql")?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            bail!("cannot have the primary '{}' checkpoint: {reason}", primary.name);
        }
        Ok(committed)
    }

    /// Has the walproposer bring the safekeepers together. `None` if they have nothing.
    fn sync_safekeepers(&self, program: &std::path::Path) -> Result<Option<Lsn>> {
        let output = Command::new(program)
            .arg("--sync-safekeepers")
            .env_clear()
            .envs(self.environment()?)
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        if !output.status.success() {
            bail!(
                "cannot synchronize safekeepers: {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let lsn: Lsn = text
            .parse()
            .context("unexpected output of walproposer --sync-safekeepers")?;
        say!("Safekeepers synced on {lsn}");
        Ok(lsn.is_valid().then_some(lsn))
    }

    /// Has the walproposer fetch the WAL before `end` that replication slots need. Without it they fail when they are
    /// used, saying which WAL is missing; that must not keep everything else from starting.
    fn fetch_slot_wal(&self, program: &std::path::Path, end: Lsn) -> Result<()> {
        let output = Command::new(program)
            .args(["--fetch-slot-wal", &end.to_string()])
            .env_clear()
            .envs(self.environment()?)
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            eprintln!("the WAL that replication slots need is missing: {reason}");
        }
        Ok(())
    }

    fn pg_ctl(&self, account: &Account, arguments: &[&str]) -> Result<()> {
        let dir = self.dir();
        let log = dir.join("pg.log");
        let mut command = Command::new(self.env.pg_bin_dir(PG_VERSION)?.join("pg_ctl"));
        command.env_clear().envs(self.environment()?).current_dir(&dir);
        command.arg("-D").arg(&dir).arg("-l").arg(&log).args(arguments);
        account.apply(&mut command);
        let output = command.output().context("cannot run pg_ctl")?;
        if !output.status.success() {
            let words = arguments.join(" ");
            bail!(
                "pg_ctl {words} failed, {}: {}{}\nsee its log: {}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
                log.display()
            );
        }
        Ok(())
    }

    /// Stops it. One that does not run is left as it is.
    pub fn stop(&self, mode: StopMode) -> Result<()> {
        if !self.dir().join("postmaster.pid").exists() {
            say!("endpoint '{}' is already stopped", self.name);
            return Ok(());
        }
        let manner = match mode {
            StopMode::Fast => "fast",
            StopMode::Immediate => "immediate",
        };
        self.pg_ctl(&Account::find()?, &["-w", "-m", manner, "stop"])
    }

    /// Stops it at once and removes its data directory.
    pub fn destroy(&self) -> Result<()> {
        if self.status() != Status::Stopped {
            self.stop(StopMode::Immediate)?;
        }
        let dir = self.dir();
        say!("Destroying postgres data directory '{}'", dir.display());
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))
    }
}
