//! Accepting connections and serving each in a task of its own.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info, info_span, warn};

use crate::error::QueryError;
use crate::framed::ConnectionError;
use crate::serve::{AuthMethod, Handler, Options, serve};

/// Pause after a failed accept: the usual cause is a lack of file descriptors, which takes time to mend.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until `shutdown`, then waits until every connection has ended.
///
/// `handler` makes the handler of a new connection from the client's address.
pub async fn accept_loop<H, F>(
    listener: TcpListener,
    auth: AuthMethod,
    shutdown: CancellationToken,
    handler: F,
) where
    H: Handler<TcpStream> + 'static,
    F: Fn(SocketAddr) -> H,
{
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let options = Options {
                    auth,
                    shutdown: shutdown.child_token(),
                };
                let span = info_span!("connection", %peer);
                connections.spawn(run(stream, handler(peer), options).instrument(span));
            }
            Err(error) => {
                warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn run<H: Handler<TcpStream>>(stream: TcpStream, mut handler: H, options: Options) {
    if let Err(error) = stream.set_nodelay(true) {
        // The peer is gone already; serving finds out.
        info!("cannot set TCP_NODELAY: {error}");
    }
    match serve(stream, &mut handler, options).await {
        Ok(()) | Err(QueryError::Shutdown | QueryError::Connection(ConnectionError::Closed)) => {}
        Err(error) => info!("connection ended: {error}"),
    }
}
