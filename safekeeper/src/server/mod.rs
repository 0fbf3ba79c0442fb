//! The libpq service: which command a client gives, and whether it may.
//!
//! One handler serves one connection. The startup packet names the timeline; each command then checks
//! the token against its tenant.

mod identify;
mod json_ctrl;
mod push;
mod replication;

use std::sync::Arc;

use postgres_backend::{Connection, Handler, QueryError};
use pq_proto::startup::StartupParameters;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::Instrument;
use utils::auth::Claims;
use utils::id::{TenantId, TenantTimelineId, TimelineId};
use utils::lsn::Lsn;

use self::identify::Asker;
use crate::timeline_map::TimelineMap;

/// What a proposer calls itself while it fetches WAL that is not committed yet.
const RECOVERY_APPLICATION_NAME: &str = "wal_proposer_recovery";

/// A command of the libpq service.
#[derive(Debug, Clone, Eq, PartialEq)]
enum Command {
    StartWalPush,
    StartReplication(Lsn),
    IdentifySystem,
    JsonCtrl(String),
    Set,
}

/// The text is none of our commands.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
enum CommandError {
    #[error("unsupported command {0}")]
    Unknown(String),
    #[error("{0} names no LSN to start replication from")]
    NoLsn(String),
}

fn strip_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(word)?;
    (rest.is_empty() || rest.starts_with(char::is_whitespace)).then(|| rest.trim_start())
}

fn parse_command(text: &str) -> Result<Command, CommandError> {
    if let Some(rest) = strip_word(text, "START_REPLICATION") {
        let rest = match strip_word(rest, "SLOT") {
            Some(slot) => slot
                .split_once(char::is_whitespace)
                .map_or("", |(_, rest)| rest.trim_start()),
            None => rest,
        };
        let rest = strip_word(rest, "PHYSICAL").unwrap_or(rest);
        let lsn = rest.split_whitespace().next().and_then(|word| word.parse().ok());
        return lsn
            .map(Command::StartReplication)
            .ok_or_else(|| CommandError::NoLsn(text.to_owned()));
    }
    if let Some(json) = strip_word(text, "JSON_CTRL") {
        return Ok(Command::JsonCtrl(json.to_owned()));
    }
    match text {
        "START_WAL_PUSH" => Ok(Command::StartWalPush),
        "IDENTIFY_SYSTEM" => Ok(Command::IdentifySystem),
        _ if text.to_ascii_lowercase().starts_with("set datestyle to ") => Ok(Command::Set),
        _ => Err(CommandError::Unknown(text.to_owned())),
    }
}

/// Serves one connection.
pub struct ConnectionHandler {
    map: Arc<TimelineMap>,
    claims: Option<Claims>,
    tenant_id: Option<TenantId>,
    timeline_id: Option<TimelineId>,
    application_name: Option<String>,
}

impl ConnectionHandler {
    /// A handler for a new connection.
    pub fn new(map: Arc<TimelineMap>) -> Self {
        ConnectionHandler {
            map,
            claims: None,
            tenant_id: None,
            timeline_id: None,
            application_name: None,
        }
    }

    /// The timeline of this connection, if the client may use it.
    fn timeline_id(&self) -> Result<TenantTimelineId, QueryError> {
        let tenant_id = self
            .tenant_id
            .ok_or_else(|| anyhow::anyhow!("tenantid is required"))?;
        let timeline_id = self
            .timeline_id
            .ok_or_else(|| anyhow::anyhow!("timelineid is required"))?;
        if let Some(claims) = &self.claims {
            claims
                .check_safekeeper(Some(tenant_id))
                .map_err(anyhow::Error::new)?;
        } else {
            assert!(
                self.map.conf().auth.is_none(),
                "a client without claims came past authentication"
            );
        }
        Ok(TenantTimelineId::new(tenant_id, timeline_id))
    }

    fn is_recovery(&self) -> bool {
        self.application_name.as_deref() == Some(RECOVERY_APPLICATION_NAME)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Handler<S> for ConnectionHandler {
    fn check_auth_jwt(&mut self, token: &str) -> Result<(), QueryError> {
        let auth = self
            .map
            .conf()
            .auth
            .as_ref()
            .expect("asked for tokens only with a key");
        self.claims = Some(auth.decode(token).map_err(anyhow::Error::new)?);
        Ok(())
    }

    fn startup(&mut self, parameters: &StartupParameters) -> Result<(), QueryError> {
        for option in parameters.options() {
            let Some((name, value)) = option.split_once('=') else {
                continue;
            };
            match name {
                "tenant_id" | "ztenantid" => {
                    self.tenant_id = Some(value.parse().map_err(anyhow::Error::new)?);
                }
                "timeline_id" | "ztimelineid" => {
                    self.timeline_id = Some(value.parse().map_err(anyhow::Error::new)?);
                }
                _ => {}
            }
        }
        self.application_name = parameters.get("application_name").map(str::to_owned);
        Ok(())
    }

    async fn process_query(&mut self, connection: &mut Connection<S>, query: &str) -> Result<(), QueryError> {
        let command = parse_command(query).map_err(anyhow::Error::new)?;
        if command == Command::Set {
            connection.put_complete("SELECT 1");
            return Ok(());
        }
        let id = self.timeline_id()?;
        let application = self.application_name.as_deref().unwrap_or_default();
        let span = tracing::info_span!("sk", %id, application);
        let run = async {
            match command {
                Command::StartWalPush => push::run(connection, &self.map, id).await,
                Command::StartReplication(start) => {
                    let timeline = self.map.get(id).map_err(anyhow::Error::new)?;
                    let request = replication::Request {
                        start,
                        application_name: self.application_name.clone(),
                        is_recovery: self.is_recovery(),
                    };
                    replication::run(connection, &timeline, request).await
                }
                Command::IdentifySystem => {
                    let asker = if self.is_recovery() {
                        Asker::Recovery
                    } else {
                        Asker::Reader
                    };
                    identify::run(connection, &self.map, id, asker).await
                }
                Command::JsonCtrl(json) => json_ctrl::run(connection, &self.map, id, &json).await,
                Command::Set => unreachable!("answered above"),
            }
        };
        run.instrument(span).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let start = |lsn| Ok(Command::StartReplication(Lsn(lsn)));
        for (text, want) in [
            ("START_WAL_PUSH", Ok(Command::StartWalPush)),
            ("IDENTIFY_SYSTEM", Ok(Command::IdentifySystem)),
            ("START_REPLICATION PHYSICAL 0/16960E8", start(0x16960E8)),
            ("START_REPLICATION 0/10 TIMELINE 1", start(0x10)),
            ("START_REPLICATION SLOT \"x\" 0/10 TIMELINE 1", start(0x10)),
            ("START_REPLICATION SLOT x PHYSICAL 0/10", start(0x10)),
            (
                "JSON_CTRL {\"a\": 1}",
                Ok(Command::JsonCtrl("{\"a\": 1}".to_owned())),
            ),
            ("SET datestyle TO 'ISO'", Ok(Command::Set)),
        ] {
            assert_eq!(parse_command(text), want, "{text}");
        }
        for bad in ["", "START_WAL_PUSHX", "SELECT 1", "set x = 1"] {
            assert_eq!(parse_command(bad), Err(CommandError::Unknown(bad.to_owned())));
        }
        for bad in [
            "START_REPLICATION",
            "START_REPLICATION PHYSICAL x",
            "START_REPLICATION SLOT",
        ] {
            assert_eq!(parse_command(bad), Err(CommandError::NoLsn(bad.to_owned())));
        }
    }
}
