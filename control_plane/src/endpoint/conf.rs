//! An endpoint's `postgresql.conf`: written once, read at each command.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use utils::id::{TenantId, TimelineId};
use utils::lsn::Lsn;

use crate::env::LocalEnv;

/// What an endpoint's configuration says of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndpointConf {
    /// Port PostgreSQL listens on.
    pub port: u16,
    /// Its tenant.
    pub tenant_id: TenantId,
    /// Its timeline.
    pub timeline_id: TimelineId,
    /// What it is for.
    pub mode: EndpointMode,
    /// Superuser of the cluster, as which the compute's own parts and its owner connect.
    pub superuser: String,
}

/// What an endpoint is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EndpointMode {
    /// It writes.
    Primary,
    /// It shows the timeline as of this LSN for ever.
    Static(Lsn),
    /// It follows the timeline's primary, by streaming from the safekeepers.
    HotStandby,
}

const FILE: &str = "postgresql.conf";
/// Largest size of the local file cache. Costs 8 MB of shared memory.
const FILE_CACHE_SIZE: &str = "2GB";
const SUPERUSER_NAME: &str = "neon.superuser_name";
const WALPROPOSER_PATH: &str = "neon.walproposer_path";
const PRIMARY_CONNINFO: &str = "primary_conninfo";

/// A `key=value` line, the value quoted where PostgreSQL wants it quoted.
fn line(out: &mut String, key: &str, value: &str) {
    let digits = value.trim_start_matches(['-', '+']);
    let number = digits.starts_with(|c: char| c.is_ascii_digit())
        && digits
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .chars()
            .all(|c| c.is_ascii_alphabetic());
    let word = value.starts_with(|c: char| c.is_ascii_alphabetic())
        && value.chars().all(|c| c.is_ascii_alphanumeric());
    let result = if number || word {
        writeln!(out, "{key}={value}")
    } else {
        writeln!(out, "{key}='{}'", value.replace('\'', "''"))
    };
    result.expect("writing to a String cannot fail");
}

/// The value of `key`: its last line wins, as with PostgreSQL.
fn value_of(text: &str, key: &str) -> Option<String> {
    let mut lines = text.lines().filter_map(|line| line.split_once('='));
    lines.rfind(|(name, _)| name.trim() == key).map(|(_, value)| {
        let value = value.trim();
        match value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
            Some(inner) => inner.replace("''", "'"),
            None => value.to_owned(),
        }
    })
}

impl EndpointConf {
    /// Reads the configuration in the data directory `dir`.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{} is not an endpoint's directory", dir.display()))?;
        Self::parse(&text).with_context(|| format!("malformed {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let needed = |key: &str| value_of(text, key).with_context(|| format!("{key} is not set"));
        Ok(EndpointConf {
            port: needed("port")?.parse().context("port is not a number")?,
            tenant_id: needed("neon.tenant_id")?.parse()?,
            timeline_id: needed("neon.timeline_id")?.parse()?,
            mode: match value_of(text, "recovery_target_lsn") {
                Some(lsn) => EndpointMode::Static(lsn.parse()?),
                None if value_of(text, PRIMARY_CONNINFO).is_some() => EndpointMode::HotStandby,
                None => EndpointMode::Primary,
            },
            superuser: value_of(text, SUPERUSER_NAME).unwrap_or_else(|| super::SUPERUSER.to_owned()),
        })
    }

    /// How a hot standby reaches the safekeepers, any of which will do. The password is in the environment.
    fn primary_conninfo(&self, env: &LocalEnv) -> String {
        let ports: Vec<String> = env
            .config
            .safekeepers
            .iter()
            .map(|node| node.pg_port.to_string())
            .collect();
        let hosts = vec!["127.0.0.1"; ports.len()].join(",");
        let (tenant, timeline) = (self.tenant_id, self.timeline_id);
        format!(
            "host={hosts} port={} options='-c timeline_id={timeline} tenant_id={tenant}'",
            ports.join(",")
        )
    }

    /// The whole file. `pageserver` is host and port of the page service.
    pub fn render(&self, env: &LocalEnv, pageserver: &(String, u16)) -> String {
        let mut text = String::new();
        let mut set = |key: &str, value: &str| line(&mut text, key, value);
        for (key, value) in [
            ("max_wal_senders", "10"),
            ("wal_log_hints", "off"),
            ("max_replication_slots", "10"),
            ("hot_standby", "on"),
            ("shared_buffers", "128MB"),
            ("fsync", "off"),
            ("full_page_writes", "off"),
            // Zeros in a new segment make a later fsync cheap; there is none.
            ("wal_init_zero", "off"),
            // WAL is sent when it has been flushed, which a long statement leaves to the WAL writer: else it would go
            // out a segment at a time, and everybody behind would be idle in between. A server at rest wakes up 25
            // times less often.
            ("wal_writer_delay", "10ms"),
            // What the kernel's cache is to a stock server. The file grows with what is in it.
            ("neon.max_file_cache_size", FILE_CACHE_SIZE),
            ("max_connections", "100"),
            ("wal_level", "replica"),
            ("wal_sender_timeout", "5s"),
            ("listen_addresses", "127.0.0.1"),
        ] {
            set(key, value);
        }
        set("port", &self.port.to_string());
        // A socket file in the shared directory would need a free name there.
        set("unix_socket_directories", "");
        set("wal_keep_size", "0");
        set("restart_after_crash", "off");
        set("shared_preload_libraries", "neon");
        let password = if env.uses_tokens() { "$NEON_AUTH_TOKEN" } else { "" };
        let (host, port) = pageserver;
        set(
            "neon.pageserver_connstring",
            &format!("postgresql://no_user:{password}@{host}:{port}"),
        );
        if env.uses_tokens() {
            set("neon.safekeeper_token_env", "$NEON_AUTH_TOKEN");
        }
        set("neon.tenant_id", &self.tenant_id.to_string());
        set("neon.timeline_id", &self.timeline_id.to_string());
        if self.superuser != super::SUPERUSER {
            set(SUPERUSER_NAME, &self.superuser);
        }
        match self.mode {
            EndpointMode::Static(lsn) => set("recovery_target_lsn", &lsn.to_string()),
            EndpointMode::HotStandby => {
                set(PRIMARY_CONNINFO, &self.primary_conninfo(env));
                set("wal_retrieve_retry_interval", "500ms");
            }
            EndpointMode::Primary => {
                set("neon.max_replication_write_lag", "15MB");
                set("neon.max_replication_flush_lag", "10GB");
                set("synchronous_standby_names", "walproposer");
                set("neon.safekeepers", &env.safekeeper_list());
            }
        }
        text
    }

    /// Sets the path of the walproposer, which may move between two starts.
    pub fn set_walproposer(&self, dir: &Path, program: &Path) -> Result<()> {
        let path = dir.join(FILE);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let is_old = |line: &&str| line.split('=').next().map(str::trim) == Some(WALPROPOSER_PATH);
        let mut new: String = text
            .lines()
            .filter(|line| !is_old(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        line(&mut new, WALPROPOSER_PATH, &program.display().to_string());
        std::fs::write(&path, new).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let env = LocalEnv {
            repo: "/nowhere".into(),
            config: crate::env::default_config(),
        };
        let modes = [
            EndpointMode::Primary,
            EndpointMode::Static(Lsn(0x16960E8)),
            EndpointMode::HotStandby,
        ];
        for (mode, superuser) in modes.into_iter().zip(["cloud_admin", "owner-1", "O'Neill"]) {
            let conf = EndpointConf {
                port: 55432,
                tenant_id: TenantId::generate(),
                timeline_id: TimelineId::generate(),
                mode,
                superuser: superuser.to_owned(),
            };
            let text = conf.render(&env, &("127.0.0.1".to_owned(), 64000));
            assert_eq!(EndpointConf::parse(&text).unwrap(), conf);
            assert_eq!(
                value_of(&text, "neon.safekeepers").is_some(),
                mode == EndpointMode::Primary
            );
        }
    }

    #[test]
    fn values_are_quoted_where_they_must_be() {
        let mut text = String::new();
        for (key, value) in [
            ("a", "10"),
            ("b", "128MB"),
            ("c", "off"),
            ("d", "it's"),
            ("e", ""),
        ] {
            line(&mut text, key, value);
        }
        assert_eq!(text, "a=10\nb=128MB\nc=off\nd='it''s'\ne=''\n");
        assert_eq!(value_of(&text, "d").as_deref(), Some("it's"));
        assert_eq!(value_of("a=1\na = 2\n", "a").as_deref(), Some("2"));
    }
}
