//! The repository directory and its `config` file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use utils::auth::{Claims, Scope};
use utils::id::{NodeId, TenantId, TimelineId};

/// The only major version of PostgreSQL there is support for.
pub const PG_VERSION: u32 = 15;

/// Where Debian's packages put a major version's programs.
const DEBIAN_PG_ROOT: &str = "/usr/lib/postgresql";

const CONFIG_HEADER: &str =
    "# Written by neon_local. Changes to daemons' settings take effect at their next start.\n\n";

/// Contents of the `config` file. Keys that are not known are ignored.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Config {
    /// Root of PostgreSQL installations, with `v15/bin` and so on. Empty: the distribution's.
    #[serde(default)]
    pub pg_distrib_dir: PathBuf,
    /// Where the daemons' binaries are.
    #[serde(default)]
    pub neon_distrib_dir: PathBuf,
    /// Tenant of commands that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_tenant_id: Option<TenantId>,
    /// RSA private key, PEM. Relative to the repository directory.
    #[serde(default)]
    pub private_key_path: PathBuf,
    /// The etcd that neon_local runs, in the current spelling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerConfig>,
    /// etcd in its native spelling: any number of endpoints, and a prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd_broker: Option<EtcdBrokerConfig>,
    /// The pageserver.
    pub pageserver: PageserverConfig,
    /// The safekeepers.
    #[serde(default)]
    pub safekeepers: Vec<SafekeeperConfig>,
    /// Branch name to (tenant, timeline).
    #[serde(default)]
    pub branch_name_mappings: BTreeMap<String, Vec<(TenantId, TimelineId)>>,
}

/// `[broker]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BrokerConfig {
    /// Client address of the etcd that neon_local starts, `ip:port`.
    #[serde(default = "BrokerConfig::any_address")]
    pub listen_addr: String,
}

impl BrokerConfig {
    fn any_address() -> String {
        "0.0.0.0:0".to_owned()
    }
}

/// `[etcd_broker]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct EtcdBrokerConfig {
    /// Prefix of all keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_etcd_prefix: Option<String>,
    /// Client URLs.
    pub broker_endpoints: Vec<String>,
    /// The etcd program; empty means that the endpoints are somebody else's and none is started.
    #[serde(default)]
    pub etcd_binary_path: PathBuf,
}

/// `auth_type` of the pageserver.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub enum AuthType {
    /// Whoever connects is trusted.
    #[default]
    Trust,
    /// Whoever connects shows a signed token.
    NeonJWT,
}

/// `[pageserver]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct PageserverConfig {
    /// Node id.
    pub id: NodeId,
    /// `host[:port]` of the page service.
    pub listen_pg_addr: String,
    /// `host:port` of the management API.
    pub listen_http_addr: String,
    /// Authentication.
    pub auth_type: AuthType,
    /// Token for the management API; made by `init`.
    pub auth_token: String,
}

impl Default for PageserverConfig {
    fn default() -> Self {
        PageserverConfig {
            id: NodeId(0),
            listen_pg_addr: String::new(),
            listen_http_addr: String::new(),
            auth_type: AuthType::Trust,
            auth_token: String::new(),
        }
    }
}

/// `[[safekeepers]]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct SafekeeperConfig {
    /// Node id.
    pub id: NodeId,
    /// Port of the libpq service on 127.0.0.1.
    pub pg_port: u16,
    /// Port of the management API on 127.0.0.1.
    pub http_port: u16,
    /// Whether WAL is fsynced.
    pub sync: bool,
    /// Inline TOML table for `--remote-storage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_storage: Option<String>,
    /// Value of `--wal-backup-threads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_threads: Option<u32>,
    /// Whether clients must show a token.
    pub auth_enabled: bool,
}

impl Default for SafekeeperConfig {
    fn default() -> Self {
        SafekeeperConfig {
            id: NodeId(0),
            pg_port: 0,
            http_port: 0,
            sync: true,
            remote_storage: None,
            backup_threads: None,
            auth_enabled: false,
        }
    }
}

/// What `init` uses when it is given no file: one of each, on the documented ports.
pub fn default_config() -> Config {
    Config {
        pg_distrib_dir: PathBuf::new(),
        neon_distrib_dir: PathBuf::new(),
        default_tenant_id: None,
        private_key_path: PathBuf::new(),
        broker: Some(BrokerConfig {
            listen_addr: "127.0.0.1:50051".to_owned(),
        }),
        etcd_broker: None,
        pageserver: PageserverConfig {
            id: NodeId(1),
            listen_pg_addr: "127.0.0.1:64000".to_owned(),
            listen_http_addr: "127.0.0.1:9898".to_owned(),
            ..PageserverConfig::default()
        },
        safekeepers: vec![SafekeeperConfig {
            id: NodeId(1),
            pg_port: 5454,
            http_port: 7676,
            ..SafekeeperConfig::default()
        }],
        branch_name_mappings: BTreeMap::new(),
    }
}

/// The repository directory with its configuration.
#[derive(Clone, Debug)]
pub struct LocalEnv {
    /// Absolute path of the repository directory.
    pub repo: PathBuf,
    /// What the `config` file says.
    pub config: Config,
}

/// The repository directory as the environment names it; need not exist.
pub fn repo_path() -> Result<PathBuf> {
    let given = std::env::var_os("NEON_REPO_DIR").map_or_else(|| PathBuf::from(".neon"), PathBuf::from);
    std::path::absolute(&given).with_context(|| format!("cannot resolve {}", given.display()))
}

/// Parses a configuration; `source` names it in errors.
pub fn parse_config(text: &str, source: &str) -> Result<Config> {
    let config: Config =
        toml::from_str(text).with_context(|| format!("malformed configuration in {source}"))?;
    ensure!(
        config.broker.is_some() || config.etcd_broker.is_some(),
        "{source} has neither a [broker] nor an [etcd_broker] table"
    );
    Ok(config)
}

impl LocalEnv {
    /// Reads the repository directory that `init` made.
    pub fn load() -> Result<Self> {
        let repo = repo_path()?;
        let path = repo.join("config");
        if !path.exists() {
            bail!(
                "{} is not a repository directory (it has no file 'config'): run 'neon_local init' first",
                repo.display()
            );
        }
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let config = parse_config(&text, &path.display().to_string())?;
        Ok(LocalEnv { repo, config })
    }

    /// Writes the `config` file, whole or not at all.
    pub fn save(&self) -> Result<()> {
        let text = toml::to_string_pretty(&self.config).context("cannot write configuration as TOML")?;
        let path = self.repo.join("config");
        let temp = self.repo.join("config.___temp");
        let contents = format!("{CONFIG_HEADER}{text}");
        Ok(utils::crashsafe::write_atomically(
            &path,
            &temp,
            contents.as_bytes(),
        )?)
    }

    /// Directory of PostgreSQL's programs.
    pub fn pg_bin_dir(&self, version: u32) -> Result<PathBuf> {
        ensure!(
            version == PG_VERSION,
            "PostgreSQL {version} is not supported, only {PG_VERSION} is"
        );
        let root = &self.config.pg_distrib_dir;
        let bin = if root.as_os_str().is_empty() {
            Path::new(DEBIAN_PG_ROOT).join(version.to_string()).join("bin")
        } else {
            root.join(format!("v{version}")).join("bin")
        };
        Ok(bin)
    }

    /// Path of one of our own binaries.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.config.neon_distrib_dir.join(name)
    }

    /// Where the computes' data directories are. A link, where the repository directory is private.
    pub fn compute_root(&self) -> PathBuf {
        let path = self.repo.join("pgdatadirs");
        path.canonicalize().unwrap_or(path)
    }

    /// `host:port` pairs of all safekeepers as computes name them.
    pub fn safekeeper_list(&self) -> String {
        let pairs: Vec<String> = self
            .config
            .safekeepers
            .iter()
            .map(|node| format!("localhost:{}", node.pg_port))
            .collect();
        pairs.join(",")
    }

    /// Signs a token with the repository's key.
    pub fn token(&self, tenant: Option<TenantId>, scope: Scope) -> Result<String> {
        let key = self.repo.join(&self.config.private_key_path);
        Ok(utils::auth::sign(&Claims::new(tenant, scope), &key)?)
    }

    /// Whether computes must show a token to the pageserver.
    pub fn uses_tokens(&self) -> bool {
        self.config.pageserver.auth_type == AuthType::NeonJWT
    }

    /// The tenant given, or the default.
    pub fn tenant_or_default(&self, given: Option<TenantId>) -> Result<TenantId> {
        given
            .or(self.config.default_tenant_id)
            .context("No tenant id. Use --tenant-id, or set a default tenant")
    }

    /// The timeline a branch of `tenant` is.
    pub fn timeline_of_branch(&self, branch: &str, tenant: TenantId) -> Option<TimelineId> {
        let of_tenant = |pair: &&(TenantId, TimelineId)| pair.0 == tenant;
        self.config
            .branch_name_mappings
            .get(branch)?
            .iter()
            .find(of_tenant)
            .map(|pair| pair.1)
    }

    /// The branch a timeline is, if it has a name.
    pub fn branch_of_timeline(&self, tenant: TenantId, timeline: TimelineId) -> Option<&str> {
        let mappings = self.config.branch_name_mappings.iter();
        mappings
            .filter(|(_, pairs)| pairs.contains(&(tenant, timeline)))
            .map(|(name, _)| name.as_str())
            .next()
    }

    /// Fails if `branch` is the name of a timeline already. Asked before a timeline is made.
    pub fn check_branch_is_free(&self, branch: &str, tenant: TenantId) -> Result<()> {
        match self.timeline_of_branch(branch, tenant) {
            None => Ok(()),
            Some(old) => bail!("branch '{branch}' is already mapped to timeline {old}"),
        }
    }

    /// Names a timeline. Naming it the same again changes nothing.
    pub fn map_branch(&mut self, branch: &str, tenant: TenantId, timeline: TimelineId) -> Result<()> {
        match self.timeline_of_branch(branch, tenant) {
            Some(old) if old == timeline => Ok(()),
            Some(old) => bail!(
                "branch '{branch}' is already mapped to timeline {old}, cannot map to another timeline {timeline}"
            ),
            None => {
                let pairs = self
                    .config
                    .branch_name_mappings
                    .entry(branch.to_owned())
                    .or_default();
                pairs.push((tenant, timeline));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> LocalEnv {
        LocalEnv {
            repo: PathBuf::from("/nowhere"),
            config: default_config(),
        }
    }

    #[test]
    fn configuration_survives_saving() {
        let mut env = env();
        let (tenant, timeline) = (TenantId::generate(), TimelineId::generate());
        env.map_branch("main", tenant, timeline).unwrap();
        let text = toml::to_string_pretty(&env.config).unwrap();
        let config = parse_config(&text, "test").unwrap();
        assert_eq!(config.branch_name_mappings["main"], [(tenant, timeline)]);
        assert_eq!(config.safekeepers[0].pg_port, 5454);
        assert!(config.safekeepers[0].sync);
    }

    #[test]
    fn both_spellings_of_the_broker_are_read() {
        let text = "[etcd_broker]\nbroker_endpoints = ['http://127.0.0.1:2379']\n[pageserver]\nid = 3\n";
        assert_eq!(parse_config(text, "test").unwrap().pageserver.id, NodeId(3));
        let error = parse_config("[pageserver]\n", "some file").unwrap_err();
        assert!(error.to_string().contains("some file"), "{error}");
    }

    #[test]
    fn a_branch_is_one_timeline() {
        let mut env = env();
        let tenant = TenantId::generate();
        let (one, two) = (TimelineId::generate(), TimelineId::generate());
        env.map_branch("b", tenant, one).unwrap();
        env.map_branch("b", tenant, one).unwrap();
        assert!(
            env.map_branch("b", tenant, two)
                .unwrap_err()
                .to_string()
                .contains("already mapped")
        );
        env.map_branch("b", TenantId::generate(), two).unwrap();
        assert_eq!(env.branch_of_timeline(tenant, one), Some("b"));
    }
}
