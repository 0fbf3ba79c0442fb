//! How a command ends badly, and what the client is told then.

use pq_proto::backend::Notice;

use crate::framed::ConnectionError;

/// SQLSTATEs our servers send.
#[derive(Debug, Clone, Copy, Eq, PartialEq)]
pub struct SqlState(pub &'static str);

impl SqlState {
    /// The planned end of a stream.
    pub const SUCCESSFUL_COMPLETION: SqlState = SqlState("00000");
    /// What is asked for is not there now: try again, or elsewhere.
    pub const CONNECTION_FAILURE: SqlState = SqlState("08006");
    /// The server stops.
    pub const ADMIN_SHUTDOWN: SqlState = SqlState("57P01");
    /// Everything else.
    pub const INTERNAL_ERROR: SqlState = SqlState("XX000");
}

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The connection is lost: nobody is there to be told.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// What the command needs is not available now (SQLSTATE 08006); not worth an error in the log.
    #[error("{0:#}")]
    Unavailable(anyhow::Error),
    /// The planned end of a replication stream (SQLSTATE 00000).
    #[error("{0}")]
    StreamEnd(String),
    /// The server is shutting down.
    #[error("server is shutting down")]
    Shutdown,
    /// The command failed.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

impl QueryError {
    /// SQLSTATE sent to the client.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            QueryError::Connection(_) | QueryError::Unavailable(_) => SqlState::CONNECTION_FAILURE,
            QueryError::StreamEnd(_) => SqlState::SUCCESSFUL_COMPLETION,
            QueryError::Shutdown => SqlState::ADMIN_SHUTDOWN,
            QueryError::Failed(_) => SqlState::INTERNAL_ERROR,
        }
    }

    /// The error as a message, with its whole chain of causes.
    pub fn notice(&self) -> Notice {
        Notice::error(self.sqlstate().0, self.to_string())
    }

    /// The error as a message, without causes: what `Execute` answers.
    pub fn outermost_notice(&self) -> Notice {
        let text = match self {
            QueryError::Failed(error) | QueryError::Unavailable(error) => error.to_string(),
            other => other.to_string(),
        };
        Notice::error(self.sqlstate().0, text)
    }

    /// Whether the connection cannot be used any more.
    pub fn ends_connection(&self) -> bool {
        matches!(self, QueryError::Connection(_) | QueryError::Shutdown)
    }
}
