//! An asynchronous libpq client that can do what ordinary drivers cannot: replication connections
//! and COPY in both directions at once, with halves that live apart.
//!
//! [`Config`] says where to and as whom; [`Config::connect`] gives a [`Client`].
//!
//! Invariants
//! * Receiving is cancel-safe; payloads are not copied after the read.
//! * A client whose answer was not read to the end refuses further commands instead of taking the
//!   rest of the old answer for the new one.
//! * No password is ever part of a `Debug` or `Display` text.
//!
//! Not here: TLS, prepared statements, binary values, pooling. Framing is that of
//! [`postgres_backend::framed`], used from the other side.

mod auth;
mod client;
mod config;
mod copy;
mod stream;

pub use client::{Client, QueryResult, Row};
pub use config::{Config, ConfigError, Host, Replication, Secret};
pub use copy::{CopyBothReader, CopyBothWriter, CopyIn, CopyOut};
pub use stream::Stream;

use std::io;
use std::time::Duration;

use postgres_backend::framed::ConnectionError;
use pq_proto::ProtocolError;
use pq_proto::backend::Notice;

/// What went wrong with a connection or command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers at the address.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Host and port, or path of the socket.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The server did not get through connecting and authentication in time.
    #[error("connecting to {address} took longer than {limit:?}")]
    Timeout {
        /// Host and port, or path of the socket.
        address: String,
        /// The time allowed.
        limit: Duration,
    },
    /// The server wants an authentication that cannot be given, or failed to show that it knows the
    /// password.
    #[error("authentication failed: {0}")]
    Authentication(String),
    /// The server reported an error. Its SQLSTATE is `code`.
    #[error("server error: {0}")]
    Server(Notice),
    /// The connection broke, or the peer does not speak the protocol.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The server closed the connection.
    #[error("server closed the connection")]
    Closed,
    /// An earlier command's answer was not read to its end.
    #[error("connection is in the middle of another command")]
    Busy,
    /// The command was answered with something else than what the caller asked for.
    #[error("unexpected answer: {0}")]
    UnexpectedAnswer(&'static str),
}

impl From<ProtocolError> for Error {
    fn from(error: ProtocolError) -> Self {
        Error::Connection(error.into())
    }
}

impl Error {
    /// The server's own error, if it is one.
    pub fn server_error(&self) -> Option<&Notice> {
        match self {
            Error::Server(notice) => Some(notice),
            _ => None,
        }
    }

    /// Whether the server went away or could not be reached, as servers do when they restart.
    pub fn is_disconnect(&self) -> bool {
        match self {
            Error::Connect { .. } | Error::Timeout { .. } | Error::Closed => true,
            Error::Connection(error) => error.is_disconnect(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
