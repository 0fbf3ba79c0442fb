//! The server side of PostgreSQL's protocol, for daemons that are not PostgreSQL.
//!
//! [`serve`] runs one connection: start-up, authentication, then one command after another, each
//! given to a [`Handler`]. The handler answers through the [`Connection`] it is lent, and may turn
//! it into a COPY stream in either direction or both. [`listen`] accepts connections and runs
//! [`serve`] on each until shutdown.
//!
//! Invariants
//! * Only whole messages enter the out-buffer, so an error can be reported at any time.
//! * A command is followed by exactly one `ReadyForQuery` (simple query), unless the connection ends.
//! * Whatever a peer sends, the connection ends with an error at worst, never the process.
//!
//! Not here: TLS (whoever needs it wraps the stream first), the meaning of commands and tokens.

mod connection;
pub mod copy;
mod error;
pub mod framed;
mod handshake;
pub mod listen;
mod serve;

pub use connection::Connection;
pub use copy::{CopyEnd, CopyReader, CopyWriter, join_copy_results};
pub use error::{QueryError, SqlState};
pub use framed::{ConnectionError, Framed};
pub use serve::{AuthMethod, Handler, Options, serve};

#[cfg(test)]
mod tests;
