//! Where to connect and as whom: libpq's connection strings, in their keyword and URL forms.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use pq_proto::startup::StartupParameters;

const DEFAULT_PORT: u16 = 5432;

/// A text that is not shown.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The server's machine.
#[derive(Debug, Clone, Eq, PartialEq)]
pub enum Host {
    /// Name or address.
    Tcp(String),
    /// Directory of the server's Unix-domain socket.
    Unix(PathBuf),
}

/// Kind of a replication connection.
#[derive(Debug, Clone, Copy, Eq, PartialEq)]
pub enum Replication {
    /// WAL as bytes.
    Physical,
    /// Bound to a database, ordinary SQL allowed too.
    Logical,
}

/// Everything needed to connect. `Display` is the address, without user or password.
#[derive(Debug, Clone, Eq, PartialEq)]
pub struct Config {
    /// Machine or socket directory.
    pub host: Host,
    /// Port, also part of the name of a Unix-domain socket.
    pub port: u16,
    /// Role.
    pub user: String,
    /// Password or token.
    pub password: Option<Secret>,
    /// Database; the server takes the user's name if absent.
    pub dbname: Option<String>,
    /// Command-line options for the session.
    pub options: Option<String>,
    /// Name shown in the server's views and logs.
    pub application_name: Option<String>,
    /// Makes this a replication connection.
    pub replication: Option<Replication>,
    /// Time allowed for connecting and authentication together.
    pub connect_timeout: Option<Duration>,
}

/// The text is not a connection string. The text itself is not part of the error: it may hold a password.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// It ends or goes on where it must not.
    #[error("malformed connection string: {0}")]
    Syntax(&'static str),
    /// There is no such setting.
    #[error("unknown connection setting '{0}'")]
    UnknownKey(String),
    /// The setting cannot have this value.
    #[error("connection setting '{0}' has an invalid value")]
    InvalidValue(String),
}

impl Config {
    /// A configuration with everything optional absent.
    pub fn new(host: Host, port: u16, user: &str) -> Self {
        Config {
            host,
            port,
            user: user.to_owned(),
            password: None,
            dbname: None,
            options: None,
            application_name: None,
            replication: None,
            connect_timeout: None,
        }
    }

    /// The parameters of the startup packet.
    pub(crate) fn startup_parameters(&self) -> StartupParameters {
        let replication = self.replication.map(|kind| match kind {
            Replication::Physical => "true",
            Replication::Logical => "database",
        });
        let optional = [
            ("database", self.dbname.as_deref()),
            ("options", self.options.as_deref()),
            ("application_name", self.application_name.as_deref()),
            ("replication", replication),
        ];
        let mut parameters = StartupParameters::default();
        parameters.push("user", &self.user);
        parameters.push("client_encoding", "UTF8");
        for (name, value) in optional {
            if let Some(value) = value {
                parameters.push(name, value);
            }
        }
        parameters
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), ConfigError> {
        let invalid = || ConfigError::InvalidValue(key.to_owned());
        match key {
            "host" | "hostaddr" => {
                self.host = match value.starts_with('/') {
                    true => Host::Unix(value.into()),
                    false if value.is_empty() || value.contains(',') => return Err(invalid()),
                    false => Host::Tcp(value),
                }
            }
            "port" => self.port = value.parse().map_err(|_| invalid())?,
            "user" => self.user = value,
            "password" => self.password = Some(value).filter(|text| !text.is_empty()).map(Secret),
            "dbname" => self.dbname = Some(value),
            "options" => self.options = Some(value),
            "application_name" | "fallback_application_name" => self.application_name = Some(value),
            "replication" => {
                self.replication = match value.as_str() {
                    "true" | "on" | "yes" | "1" => Some(Replication::Physical),
                    "database" => Some(Replication::Logical),
                    "false" | "off" | "no" | "0" => None,
                    _ => return Err(invalid()),
                }
            }
            "connect_timeout" => {
                let seconds = value.parse().map_err(|_| invalid())?;
                self.connect_timeout = Some(Duration::from_secs(seconds)).filter(|limit| !limit.is_zero());
            }
            // We never use TLS: a string that insists on it cannot be honoured.
            "sslmode" if matches!(value.as_str(), "disable" | "allow" | "prefer") => {}
            "sslmode" => return Err(invalid()),
            "client_encoding" if value.eq_ignore_ascii_case("utf8") => {}
            "client_encoding" => return Err(invalid()),
            _ => return Err(ConfigError::UnknownKey(key.to_owned())),
        }
        Ok(())
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Host::Tcp(name) => write!(f, "{name}:{}", self.port),
            Host::Unix(directory) => write!(f, "{}/.s.PGSQL.{}", directory.display(), self.port),
        }
    }
}

impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut config = Config::new(Host::Tcp("localhost".to_owned()), DEFAULT_PORT, "postgres");
        let text = text.trim();
        match text
            .strip_prefix("postgresql://")
            .or(text.strip_prefix("postgres://"))
        {
            Some(rest) => parse_url(rest, &mut config)?,
            None => parse_keywords(text, &mut config)?,
        }
        Ok(config)
    }
}

/// `key=value key = 'value with blanks'`; a backslash takes the next character as it is.
fn parse_keywords(text: &str, config: &mut Config) -> Result<(), ConfigError> {
    let mut rest = text.chars().peekable();
    loop {
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        if rest.peek().is_none() {
            return Ok(());
        }
        let mut key = String::new();
        while let Some(c) = rest.next_if(|c| *c != '=' && !c.is_whitespace()) {
            key.push(c);
        }
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        if rest.next() != Some('=') || key.is_empty() {
            return Err(ConfigError::Syntax("a setting has no '='"));
        }
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        let value = keyword_value(&mut rest)?;
        config.set(&key, value)?;
    }
}

fn keyword_value(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String, ConfigError> {
    let quoted = rest.next_if_eq(&'\'').is_some();
    let mut value = String::new();
    loop {
        match rest.next() {
            None if quoted => return Err(ConfigError::Syntax("a quote is not closed")),
            None => return Ok(value),
            Some('\'') if quoted => return Ok(value),
            Some(c) if !quoted && c.is_whitespace() => return Ok(value),
            Some('\\') => value.push(rest.next().ok_or(ConfigError::Syntax("it ends in a backslash"))?),
            Some(c) => value.push(c),
        }
    }
}

/// What follows `postgresql://`: `[user[:password]@][host][:port][/dbname][?key=value&...]`.
fn parse_url(rest: &str, config: &mut Config) -> Result<(), ConfigError> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    let (user_info, address) = match authority.rsplit_once('@') {
        Some((user_info, address)) => (user_info, address),
        None => ("", authority),
    };
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    let (host, port) = split_address(address)?;
    for (key, value) in [
        ("user", user),
        ("password", password),
        ("host", host),
        ("port", port),
        ("dbname", dbname),
    ] {
        if !value.is_empty() {
            config.set(key, percent_decoded(value)?)?;
        }
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or(ConfigError::Syntax("a setting has no '='"))?;
        config.set(&percent_decoded(key)?, percent_decoded(value)?)?;
    }
    Ok(())
}

/// Host and port of an address; an IPv6 address stands in brackets.
fn split_address(address: &str) -> Result<(&str, &str), ConfigError> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, rest) = rest
            .split_once(']')
            .ok_or(ConfigError::Syntax("a bracket is not closed"))?;
        let port = match rest.strip_prefix(':') {
            Some(port) => port,
            None if rest.is_empty() => "",
            None => {
                return Err(ConfigError::Syntax(
                    "a bracket is followed by something else than a port",
                ));
            }
        };
        return Ok((host, port));
    }
    Ok(address.split_once(':').unwrap_or((address, "")))
}

fn percent_decoded(text: &str) -> Result<String, ConfigError> {
    let bad = ConfigError::Syntax("a percent sign is not followed by two hexadecimal digits");
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let Some((&[high, low], tail)) = tail.split_first_chunk::<2>() else {
            return Err(bad);
        };
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        match (digit(high), digit(low)) {
            (Some(high), Some(low)) => decoded.push(high << 4 | low),
            _ => return Err(bad),
        }
        rest = tail;
    }
    String::from_utf8(decoded).map_err(|_| ConfigError::Syntax("it is not UTF-8"))
}

#[cfg(test)]
mod tests;
