//! Messages of PostgreSQL's frontend/backend protocol, version 3, in both directions.
//!
//! Sans-IO: bytes in, messages out, and back. Every parser takes the bytes of exactly one message
//! and rejects bytes that are missing or left over; none panics or allocates more than the message
//! is long. Payloads (`CopyData`, row values) share memory with the input.
//!
//! Not here: sockets (`postgres_backend`, `postgres_client`), and what the payload of a `CopyData`
//! means beyond [`replication`].

pub mod backend;
pub mod frame;
pub mod frontend;
mod input;
pub mod replication;
pub mod startup;

pub use backend::BackendMessage;
pub use frontend::FrontendMessage;

/// The peer's bytes are not the protocol's.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum ProtocolError {
    /// The length field is impossible, or beyond what this side accepts.
    #[error("{what} has length {len}, expected {min} to {max}")]
    Length {
        /// Which kind of packet.
        what: &'static str,
        /// Length field as received.
        len: u32,
        /// Least value accepted.
        min: u32,
        /// Greatest value accepted.
        max: u32,
    },
    /// No message of this direction has the type byte.
    #[error("unknown message type 0x{0:02x}")]
    UnknownType(u8),
    /// The message ends before its fields do.
    #[error("{0} message is truncated")]
    Truncated(&'static str),
    /// Bytes follow the last field.
    #[error("{0} message has trailing bytes")]
    TrailingBytes(&'static str),
    /// A field has a value it cannot have.
    #[error("{0} message is malformed: {1}")]
    Malformed(&'static str, &'static str),
}
