//! What the proposer is told in `$PGDATA/postgresql.conf`.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use postgres_client::{Config, Host, Secret};
use safekeeper_api::protocol::SAFEKEEPERS_MAX;
use utils::id::{TenantId, TimelineId};

use crate::conf_file;

const RECONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(5000);
const HOLD_DELAY: Duration = Duration::from_millis(4);
const POLL_TIME: Duration = Duration::from_micros(500);
/// A CPU must not be kept busy for nothing for longer than this.
const POLL_TIME_MAX: Duration = Duration::from_millis(1);

/// Role and database named to safekeepers, which ignore both.
const SAFEKEEPER_USER: &str = "cloud_admin";
const SAFEKEEPER_DBNAME: &str = "replication";

/// The settings.
#[derive(Debug, Clone, Eq, PartialEq)]
pub struct Settings {
    /// `neon.tenant_id`.
    pub tenant_id: TenantId,
    /// `neon.timeline_id`.
    pub timeline_id: TimelineId,
    /// `neon.safekeepers`: host and port of each.
    pub safekeepers: Vec<(String, u16)>,
    /// What the variable named by `neon.safekeeper_token_env` holds.
    pub token: Option<Secret>,
    /// `neon.safekeeper_reconnect_timeout`.
    pub reconnect_timeout: Duration,
    /// `neon.safekeeper_connect_timeout`.
    pub connect_timeout: Duration,
    /// `neon.safekeeper_hold_delay`: how long WAL may be held back from safekeepers that are not needed for a quorum;
    /// zero: not at all.
    pub hold_delay: Duration,
    /// `neon.walproposer_poll_us`: how long to wait awake around a commit; zero: not at all.
    pub poll_time: Duration,
}

impl Settings {
    /// Reads the file in the data directory.
    ///
    /// # Errors
    /// It cannot be read, lacks a setting, or a setting has an invalid value.
    pub fn load(data_dir: &Path) -> Result<Settings> {
        let path = data_dir.join("postgresql.conf");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let environment = |name: &str| std::env::var(name).ok();
        conf_file::parse(&text)
            .map_err(anyhow::Error::from)
            .and_then(|settings| Settings::from_map(&settings, environment))
            .with_context(|| format!("settings in {}", path.display()))
    }

    fn from_map(
        settings: &HashMap<String, String>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Settings> {
        let get = |name: &str| {
            settings
                .get(name)
                .map(String::as_str)
                .filter(|text| !text.is_empty())
        };
        let required = |name: &str| get(name).with_context(|| format!("{name} is not set"));
        let token = get("neon.safekeeper_token_env");
        Ok(Settings {
            tenant_id: required("neon.tenant_id")?.parse().context("neon.tenant_id")?,
            timeline_id: required("neon.timeline_id")?
                .parse()
                .context("neon.timeline_id")?,
            safekeepers: parse_safekeepers(required("neon.safekeepers")?).context("neon.safekeepers")?,
            token: token.map(|name| read_token(name, environment)).transpose()?,
            reconnect_timeout: timeout(get("neon.safekeeper_reconnect_timeout"), RECONNECT_TIMEOUT)
                .context("neon.safekeeper_reconnect_timeout")?,
            connect_timeout: timeout(get("neon.safekeeper_connect_timeout"), CONNECT_TIMEOUT)
                .context("neon.safekeeper_connect_timeout")?,
            hold_delay: duration(get("neon.safekeeper_hold_delay"), HOLD_DELAY)
                .context("neon.safekeeper_hold_delay")?,
            poll_time: poll_time(get("neon.walproposer_poll_us")).context("neon.walproposer_poll_us")?,
        })
    }

    /// How to connect to safekeeper `index`.
    pub fn safekeeper(&self, index: usize) -> Config {
        let (host, port) = &self.safekeepers[index];
        let mut config = Config::new(Host::Tcp(host.clone()), *port, SAFEKEEPER_USER);
        config.password = self.token.clone();
        config.dbname = Some(SAFEKEEPER_DBNAME.to_owned());
        config.options = Some(format!(
            "-c timeline_id={} tenant_id={}",
            self.timeline_id, self.tenant_id
        ));
        config
    }
}

fn parse_safekeepers(text: &str) -> Result<Vec<(String, u16)>> {
    let parse = |address: &str| -> Result<(String, u16)> {
        let (host, port) = address
            .trim()
            .rsplit_once(':')
            .with_context(|| format!("'{address}' is not host:port"))?;
        let port = port.parse().with_context(|| format!("port of '{address}'"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        ensure!(!host.is_empty(), "'{address}' has no host");
        Ok((host.to_owned(), port))
    };
    let safekeepers: Vec<_> = text.split(',').map(parse).collect::<Result<_>>()?;
    ensure!(
        safekeepers.len() <= SAFEKEEPERS_MAX,
        "more than {SAFEKEEPERS_MAX} safekeepers"
    );
    for (index, address) in safekeepers.iter().enumerate() {
        ensure!(
            !safekeepers[..index].contains(address),
            "{address:?} is there twice"
        );
    }
    Ok(safekeepers)
}

/// The token itself never stands in the file: the setting names an environment variable.
fn read_token(setting: &str, environment: impl Fn(&str) -> Option<String>) -> Result<Secret> {
    let name = setting
        .strip_prefix('$')
        .context("neon.safekeeper_token_env must begin with '$'")?;
    let token = environment(name).filter(|token| !token.is_empty());
    token
        .map(Secret::from)
        .with_context(|| format!("environment variable {name} is not set"))
}

/// A time that is not zero.
fn timeout(text: Option<&str>, default: Duration) -> Result<Duration> {
    let timeout = duration(text, default)?;
    ensure!(timeout >= Duration::from_millis(1), "{timeout:?} is too short");
    Ok(timeout)
}

/// A number of microseconds.
fn poll_time(text: Option<&str>) -> Result<Duration> {
    let Some(text) = text else { return Ok(POLL_TIME) };
    let time = Duration::from_micros(text.parse().context("not a number")?);
    ensure!(time <= POLL_TIME_MAX, "{time:?} is more than {POLL_TIME_MAX:?}");
    Ok(time)
}

/// A time as PostgreSQL writes it, in milliseconds without a unit.
fn duration(text: Option<&str>, default: Duration) -> Result<Duration> {
    let Some(text) = text else { return Ok(default) };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u32 = text[..digits].parse().context("not a number")?;
    let unit = match text[digits..].trim() {
        "us" => Duration::from_micros(1),
        "" | "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "min" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        other => bail!("unknown unit '{other}'"),
    };
    Ok(unit * number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: &str = "neon.tenant_id='0123456789abcdef0123456789abcdef'\n\
                       neon.timeline_id='fedcba9876543210fedcba9876543210'\n";

    fn load(text: &str) -> Result<Settings> {
        let environment = |name: &str| (name == "TOKEN").then(|| "secret".to_owned());
        Settings::from_map(&conf_file::parse(&format!("{IDS}{text}"))?, environment)
    }

    #[test]
    fn good() {
        let settings = load(
            "neon.safekeepers = 'localhost:5454, [::1]:5455'\n\
             neon.safekeeper_token_env = '$TOKEN'\n\
             neon.safekeeper_reconnect_timeout = '2s'\n\
             neon.safekeeper_connect_timeout = 300\n\
             neon.safekeeper_hold_delay = 0\n\
             neon.walproposer_poll_us = 250",
        )
        .unwrap();
        let want = [("localhost".to_owned(), 5454), ("::1".to_owned(), 5455)];
        assert_eq!(settings.safekeepers, want);
        assert_eq!(settings.token.as_ref().unwrap().expose(), "secret");
        assert_eq!(settings.reconnect_timeout, Duration::from_secs(2));
        assert_eq!(settings.connect_timeout, Duration::from_millis(300));
        assert_eq!(settings.hold_delay, Duration::ZERO);
        assert_eq!(settings.poll_time, Duration::from_micros(250));
        let config = settings.safekeeper(0);
        assert_eq!(
            config.options.unwrap(),
            "-c timeline_id=fedcba9876543210fedcba9876543210 tenant_id=0123456789abcdef0123456789abcdef"
        );
    }

    #[test]
    fn bad() {
        for (text, want) in [
            ("", "neon.safekeepers is not set"),
            ("neon.safekeepers = ''", "neon.safekeepers is not set"),
            (
                "neon.safekeepers = 'localhost'",
                "neon.safekeepers: 'localhost' is not host:port",
            ),
            (
                "neon.safekeepers = 'a:1,a:1'",
                "neon.safekeepers: (\"a\", 1) is there twice",
            ),
            (
                "neon.safekeepers = 'a:1'\nneon.safekeeper_token_env = 'TOKEN'",
                "neon.safekeeper_token_env must begin with '$'",
            ),
            (
                "neon.safekeepers = 'a:1'\nneon.safekeeper_token_env = '$NOTHING'",
                "environment variable NOTHING is not set",
            ),
            (
                "neon.safekeepers = 'a:1'\nneon.safekeeper_connect_timeout = '1 year'",
                "neon.safekeeper_connect_timeout: unknown unit 'year'",
            ),
            (
                "neon.safekeepers = 'a:1'\nneon.safekeeper_connect_timeout = 0",
                "neon.safekeeper_connect_timeout: 0ns is too short",
            ),
            (
                "neon.safekeepers = 'a:1'\nneon.walproposer_poll_us = 1001",
                "neon.walproposer_poll_us: 1.001ms is more than 1ms",
            ),
        ] {
            assert_eq!(format!("{:#}", load(text).unwrap_err()), want, "{text}");
        }
    }
}
