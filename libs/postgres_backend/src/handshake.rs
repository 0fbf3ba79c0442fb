//! From the first byte to the first command: start-up packets and authentication.

use bytes::BytesMut;
use pq_proto::backend::Authentication;
use pq_proto::startup::{StartupPacket, StartupParameters};
use pq_proto::{BackendMessage, FrontendMessage};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::connection::Connection;
use crate::error::QueryError;
use crate::framed::ConnectionError;
use crate::serve::{AuthMethod, Handler};

/// How often a client may ask for encryption before it must go on without.
const ENCRYPTION_REQUESTS_MAX: usize = 4;
/// Version that clients are told: what they may expect of the protocol, not of our commands.
const SERVER_VERSION: &str = "14.1";

/// What came of it.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// Commands follow.
    Ready,
    /// The connection is over, and nobody did anything wrong.
    Closed,
}

/// Does everything up to the first `ReadyForQuery`.
pub(crate) async fn run<S, H>(
    connection: &mut Connection<S>,
    handler: &mut H,
    auth: AuthMethod,
) -> Result<Outcome, QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    H: Handler<S>,
{
    let Some(parameters) = startup(connection).await? else {
        return Ok(Outcome::Closed);
    };
    if auth == AuthMethod::Jwt {
        let Some(token) = ask_for_token(connection).await? else {
            return Ok(Outcome::Closed);
        };
        handler.check_auth_jwt(&token)?;
    }
    handler.startup(&parameters)?;
    connection.put(&BackendMessage::Authentication(Authentication::Ok));
    let mut settings = vec![("client_encoding", "UTF8")];
    if auth == AuthMethod::Trust {
        settings.extend([("integer_datetimes", "on"), ("server_version", SERVER_VERSION)]);
    }
    for (name, value) in settings {
        connection.put(&BackendMessage::ParameterStatus {
            name: name.to_owned(),
            value: value.to_owned(),
        });
    }
    connection.put_ready().flush().await?;
    Ok(Outcome::Ready)
}

async fn startup<S>(connection: &mut Connection<S>) -> Result<Option<StartupParameters>, ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for _ in 0..ENCRYPTION_REQUESTS_MAX {
        match connection.framed().reader().read_startup().await? {
            Some(StartupPacket::SslRequest | StartupPacket::GssEncRequest) => {
                let writer = connection.framed().writer();
                writer.buffer().extend_from_slice(b"N");
                writer.flush().await?;
            }
            Some(StartupPacket::Startup(parameters)) => return Ok(Some(parameters)),
            Some(StartupPacket::CancelRequest { .. }) | None => return Ok(None),
        }
    }
    Err(pq_proto::ProtocolError::Malformed("startup", "encryption was refused, yet asked for again").into())
}

/// The token the client sends as its password; `None` if it leaves instead, as psql does to ask its user.
async fn ask_for_token<S>(connection: &mut Connection<S>) -> Result<Option<String>, QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    connection
        .put(&BackendMessage::Authentication(Authentication::CleartextPassword))
        .flush()
        .await?;
    match connection.framed().read_message().await? {
        Some(FrontendMessage::Password(raw)) => {
            let raw = raw.strip_suffix(b"\0").unwrap_or(&raw);
            let token = std::str::from_utf8(raw).map_err(|_| anyhow::anyhow!("the password is not UTF-8"))?;
            Ok(Some(token.to_owned()))
        }
        None | Some(FrontendMessage::Terminate) => Ok(None),
        Some(other) => Err(anyhow::anyhow!("expected a password, got {}", other.name()).into()),
    }
}

/// Puts an error in front of the connection's end.
pub(crate) fn put_error(buffer: &mut BytesMut, error: &QueryError) {
    BackendMessage::ErrorResponse(error.notice()).encode(buffer);
}
