//! The life of one connection.

use std::future::Future;
use std::time::Duration;

use pq_proto::backend::TransactionStatus;
use pq_proto::frontend::Target;
use pq_proto::startup::StartupParameters;
use pq_proto::{BackendMessage, FrontendMessage, ProtocolError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::connection::Connection;
use crate::error::QueryError;
use crate::framed::ConnectionError;
use crate::handshake::{self, Outcome};

/// A client must have got through start-up and authentication by then.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the last words to a client may take to leave.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// How clients show who they are.
#[derive(Debug, Clone, Copy, Eq, PartialEq)]
pub enum AuthMethod {
    /// They need not.
    Trust,
    /// A JSON web token in place of a password; [`Handler::check_auth_jwt`] judges it.
    Jwt,
}

/// Settings of one connection.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the client shows who it is.
    pub auth: AuthMethod,
    /// Ends the connection when cancelled.
    pub shutdown: CancellationToken,
}

/// What a server does with a connection. One handler serves one connection.
pub trait Handler<S>: Send {
    /// Judges the token a client sent as its password. Called before [`Handler::startup`], and only
    /// with [`AuthMethod::Jwt`].
    fn check_auth_jwt(&mut self, token: &str) -> Result<(), QueryError>;

    /// Takes note of the startup parameters. An error refuses the client.
    fn startup(&mut self, parameters: &StartupParameters) -> Result<(), QueryError> {
        let _ = parameters;
        Ok(())
    }

    /// Executes one command and puts its answer, up to and including `CommandComplete`.
    /// `ReadyForQuery`, flushing and error responses are the caller's business.
    ///
    /// At shutdown the future is dropped at whatever `await` it has reached.
    fn process_query(
        &mut self,
        connection: &mut Connection<S>,
        query: &str,
    ) -> impl Future<Output = Result<(), QueryError>> + Send;
}

/// Serves a connection until either side ends it. Errors of commands are logged and sent to the
/// client here; the error returned is why the connection itself ended early, and is not logged yet.
pub async fn serve<S, H>(stream: S, handler: &mut H, options: Options) -> Result<(), QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    H: Handler<S>,
{
    let mut connection = Connection::new(stream, options.shutdown.clone());
    let conversation = converse(&mut connection, handler, options.auth);
    let result = tokio::select! {
        biased;
        result = conversation => result,
        () = options.shutdown.cancelled() => Err(QueryError::Shutdown),
    };
    say_goodbye(&mut connection, result.as_ref().err()).await;
    result
}

async fn converse<S, H>(
    connection: &mut Connection<S>,
    handler: &mut H,
    auth: AuthMethod,
) -> Result<(), QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    H: Handler<S>,
{
    let handshake = handshake::run(connection, handler, auth);
    let outcome = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| anyhow::anyhow!("client did not finish its start-up within {HANDSHAKE_TIMEOUT:?}"))??;
    if outcome == Outcome::Closed {
        return Ok(());
    }
    let mut remembered = String::new();
    while let Some(message) = connection.framed().read_message().await? {
        match message {
            FrontendMessage::Query(text) => simple_query(connection, handler, &text).await?,
            FrontendMessage::Execute { portal, max_rows } => {
                check_unnamed(&portal)?;
                if max_rows != 0 {
                    return Err(unsupported("Execute", "row limits are not supported"));
                }
                execute(connection, handler, &remembered).await?;
            }
            FrontendMessage::Terminate => break,
            other => extended(connection, &mut remembered, other).await?,
        }
    }
    Ok(())
}

async fn simple_query<S, H>(
    connection: &mut Connection<S>,
    handler: &mut H,
    text: &str,
) -> Result<(), QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    H: Handler<S>,
{
    let text = normalized(text);
    if let Err(error) = process(connection, handler, text).await {
        if error.ends_connection() {
            return Err(error);
        }
        connection.put(&BackendMessage::ErrorResponse(error.notice()));
    }
    connection.put_ready().flush().await?;
    Ok(())
}

async fn execute<S, H>(connection: &mut Connection<S>, handler: &mut H, text: &str) -> Result<(), QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    H: Handler<S>,
{
    if let Err(error) = process(connection, handler, normalized(text)).await {
        if error.ends_connection() {
            return Err(error);
        }
        connection.put(&BackendMessage::ErrorResponse(error.outermost_notice()));
    }
    Ok(())
}

/// The command without the blanks around it and the semicolon some clients add.
fn normalized(text: &str) -> &str {
    text.trim().trim_end_matches(';').trim_end()
}

async fn process<S, H>(connection: &mut Connection<S>, handler: &mut H, text: &str) -> Result<(), QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    H: Handler<S>,
{
    if text.is_empty() {
        connection.put(&BackendMessage::EmptyQueryResponse);
        return Ok(());
    }
    debug!("command '{text}'");
    let result = handler.process_query(connection, text).await;
    match &result {
        Ok(()) => {}
        Err(QueryError::Connection(ConnectionError::Closed)) => {
            debug!("client left during '{text}'");
        }
        Err(QueryError::Connection(lost)) if lost.is_disconnect() => {
            info!("query handler for '{text}' ended: {lost}");
        }
        Err(end @ (QueryError::StreamEnd(_) | QueryError::Unavailable(_) | QueryError::Shutdown)) => {
            info!("query handler for '{text}' ended: {end}");
        }
        Err(failure) => error!("query handler for '{text}' failed: {failure}"),
    }
    result
}

/// Everything of the extended protocol but `Execute`.
async fn extended<S>(
    connection: &mut Connection<S>,
    remembered: &mut String,
    message: FrontendMessage,
) -> Result<(), QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match message {
        FrontendMessage::Parse { query, .. } => {
            *remembered = query;
            connection.put(&BackendMessage::ParseComplete);
        }
        FrontendMessage::Describe { target, .. } => {
            if target == Target::Portal {
                return Err(unsupported("Describe", "portals cannot be described"));
            }
            connection.put(&BackendMessage::ParameterDescription(Vec::new()));
            connection.put(&BackendMessage::NoData);
        }
        FrontendMessage::Bind { portal, .. } => {
            check_unnamed(&portal)?;
            connection.put(&BackendMessage::BindComplete);
        }
        FrontendMessage::Close { .. } => {
            connection.put(&BackendMessage::CloseComplete);
        }
        FrontendMessage::Sync => {
            connection.put(&BackendMessage::ReadyForQuery(TransactionStatus::Idle));
            connection.flush().await?;
        }
        FrontendMessage::Flush => connection.flush().await?,
        other => return Err(unsupported(other.name(), "not allowed outside a COPY stream")),
    }
    Ok(())
}

fn check_unnamed(portal: &str) -> Result<(), QueryError> {
    if portal.is_empty() {
        Ok(())
    } else {
        Err(unsupported("portal", "named portals are not supported"))
    }
}

fn unsupported(what: &'static str, why: &'static str) -> QueryError {
    ConnectionError::from(ProtocolError::Malformed(what, why)).into()
}

/// Tells the client why the connection ends, if it can still be told, and sends what is left.
async fn say_goodbye<S>(connection: &mut Connection<S>, error: Option<&QueryError>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let writer = connection.framed().writer();
    match error {
        Some(QueryError::Connection(ConnectionError::Io(_) | ConnectionError::Closed)) => return,
        Some(error) => handshake::put_error(writer.buffer(), error),
        None => {}
    }
    // Whether the last words arrive is up to the client; the connection is over either way.
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, writer.shutdown()).await;
}
