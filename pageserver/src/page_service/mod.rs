//! The libpq services of the pageserver (libpq services, section 2): commands of computes and tools.
//!
//! One [`PageService`] serves one connection. Here: who may do what, and which command does what.

mod backup;
mod command;
mod import;
mod pagestream;
mod show;
mod trace;

use std::sync::Arc;

use postgres_backend::{Connection, Handler, QueryError};
use pq_proto::backend::{Column, ColumnType};
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{Instrument, info_span};
use utils::auth::Claims;
use utils::id::{TenantId, TenantTimelineId};

use self::command::Command;
use crate::metrics::{ConnectionKind, LiveConnection};
use crate::pgdatadir::DataError;
use crate::server::{LookupError, Server};
use crate::timeline::{ReadError, Timeline};

/// Serves one connection.
pub struct PageService {
    server: Arc<Server>,
    /// Who the client is, once it has shown a token.
    claims: Option<Claims>,
    _live: LiveConnection,
}

impl PageService {
    /// A service for a new connection.
    pub fn new(server: Arc<Server>) -> Self {
        PageService {
            server,
            claims: None,
            _live: LiveConnection::new(ConnectionKind::PageService),
        }
    }

    fn check_tenant(&self, tenant: TenantId) -> Result<(), QueryError> {
        if self.server.auth.is_none() {
            return Ok(());
        }
        let claims = self.claims.as_ref();
        let claims = claims.ok_or_else(|| anyhow::anyhow!("no token was shown"))?;
        Ok(claims
            .check_pageserver(Some(tenant))
            .map_err(anyhow::Error::from)?)
    }

    async fn timeline(&self, id: TenantTimelineId) -> Result<Arc<Timeline>, QueryError> {
        Ok(self.server.active_timeline(id).await?)
    }
}

impl From<LookupError> for QueryError {
    fn from(error: LookupError) -> Self {
        match error {
            // The client may have been faster than the server, or be told to go elsewhere soon.
            LookupError::TenantTimeout(..)
            | LookupError::NoTimeline(_)
            | LookupError::TimelineUnusable(..)
            | LookupError::NoTenant(_) => QueryError::Unavailable(error.into()),
            LookupError::TenantUnusable(..) => QueryError::Failed(error.into()),
        }
    }
}

/// An error of the timeline as an error of a command.
fn read_error(error: ReadError) -> QueryError {
    match error {
        ReadError::Stopping(_) => QueryError::Unavailable(error.into()),
        other => QueryError::Failed(other.into()),
    }
}

/// Same, for what is read through the relation directory.
fn data_error(error: DataError) -> QueryError {
    match error {
        DataError::Read(error) => read_error(error),
        other => QueryError::Failed(other.into()),
    }
}

impl<S> Handler<S> for PageService
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    fn check_auth_jwt(&mut self, token: &str) -> Result<(), QueryError> {
        let auth = self.server.auth.as_ref();
        let auth = auth.expect("tokens are asked for only if there is a key");
        self.claims = Some(auth.decode(token).map_err(anyhow::Error::from)?);
        Ok(())
    }

    async fn process_query(&mut self, connection: &mut Connection<S>, query: &str) -> Result<(), QueryError> {
        let command = Command::parse(query).map_err(anyhow::Error::from)?;
        let Some((tenant, timeline)) = command.target() else {
            connection.put_complete("SELECT 1");
            return Ok(());
        };
        self.check_tenant(tenant)?;
        let span = match timeline {
            Some(timeline) => info_span!("command", %tenant, %timeline),
            None => info_span!("command", %tenant),
        };
        self.run(connection, command).instrument(span).await
    }
}

impl PageService {
    async fn run<S>(&self, connection: &mut Connection<S>, command: Command) -> Result<(), QueryError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        match command {
            Command::PageStream(id) => {
                let timeline = self.timeline(id).await?;
                let trace = match timeline.config().trace_read_requests {
                    true => Some(trace::Trace::create(&self.server.config.workdir, id).await?),
                    false => None,
                };
                let options = pagestream::Options {
                    wait_lsn_timeout: self.server.config.wait_lsn_timeout,
                    trace,
                };
                pagestream::serve(connection, &timeline, options).await
            }
            Command::BaseBackup(request) => {
                let timeline = self.timeline(request.id).await?;
                backup::serve(
                    connection,
                    &timeline,
                    request,
                    self.server.config.wait_lsn_timeout,
                )
                .await
            }
            Command::LastRecordLsn(id) => {
                let last = self.timeline(id).await?.last_record();
                let columns = ["prev_lsn", "last_lsn"].map(|name| Column::new(name, ColumnType::Text));
                let (prev_lsn, last_lsn) = (last.prev.to_string(), last.last.to_string());
                connection
                    .put_columns(&columns)
                    .put_row(&[Some(&prev_lsn), Some(&last_lsn)])
                    .put_complete("SELECT 1");
                Ok(())
            }
            Command::Show(id) => {
                let tenant = self.server.active_tenant(id).await?;
                show::answer(connection, &tenant.config());
                Ok(())
            }
            Command::ImportBaseBackup(request) => {
                import::base_backup(connection, &self.server, request).await
            }
            Command::ImportWal(request) => import::wal(connection, &self.server, request).await,
            Command::Set => unreachable!("it has no target"),
        }
    }
}

#[cfg(test)]
mod tests;
