//! Conversations with our own server, which can be made to misbehave.

use postgres_backend::{AuthMethod, Connection, Handler, QueryError, listen};
use pq_proto::backend::{Column, ColumnType};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;

struct Server;

impl Handler<TcpStream> for Server {
    fn check_auth_jwt(&mut self, token: &str) -> Result<(), QueryError> {
        match token {
            "good" => Ok(()),
            _ => Err(anyhow::anyhow!("bad token").into()),
        }
    }

    async fn process_query(
        &mut self,
        connection: &mut Connection<TcpStream>,
        query: &str,
    ) -> Result<(), QueryError> {
        match query {
            "row" => {
                let columns = [
                    Column::new("a", ColumnType::Text),
                    Column::new("b", ColumnType::Int8),
                ];
                connection.put_columns(&columns).put_row(&[Some("x"), None]);
            }
            "copy out" | "broken copy out" => {
                let mut writer = connection.copy_out().await?;
                for _ in 0..100 {
                    writer.send(&[7; 3000]).await?;
                }
                if query == "broken copy out" {
                    return Err(anyhow::anyhow!("broken").into());
                }
                writer.done();
            }
            "copy both" => {
                let (mut reader, mut writer) = connection.copy_both().await?;
                while let Ok(payload) = reader.next().await {
                    writer.put(|out| out.extend_from_slice(&payload));
                    writer.flush().await?;
                }
                return Err(QueryError::StreamEnd("ending streaming".into()));
            }
            _ => return Err(anyhow::anyhow!("unknown command").into()),
        }
        connection.put_complete("SELECT 1");
        Ok(())
    }
}

async fn serve(auth: AuthMethod) -> (Config, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let shutdown = CancellationToken::new();
    tokio::spawn(listen::accept_loop(listener, auth, shutdown.clone(), |_| Server));
    (Config::new(Host::Tcp("127.0.0.1".into()), port, "u"), shutdown)
}

#[tokio::test]
async fn queries_and_their_errors() {
    let (config, _shutdown) = serve(AuthMethod::Trust).await;
    let mut client = config.connect().await.unwrap();
    assert_eq!(client.parameter("server_version"), Some("14.1"));
    let result = client.query("row").await.unwrap();
    assert_eq!((result.first("a"), result.first("b")), (Some("x"), None));
    assert_eq!((result.rows.len(), result.tag.as_str()), (1, "SELECT 1"));
    let error = client.query("nonsense").await.unwrap_err();
    assert_eq!(error.server_error().unwrap().message, "unknown command");
    client.query("row").await.unwrap();
}

#[tokio::test]
async fn passwords() {
    let (mut config, _shutdown) = serve(AuthMethod::Jwt).await;
    assert!(matches!(config.connect().await, Err(Error::Authentication(_))));
    config.password = Some("bad".to_owned().into());
    assert!(matches!(config.connect().await, Err(Error::Server(_))));
    config.password = Some("good".to_owned().into());
    config.connect().await.unwrap().query("row").await.unwrap();
}

#[tokio::test]
async fn copy_out_ends_or_fails_and_the_client_goes_on() {
    let (config, _shutdown) = serve(AuthMethod::Trust).await;
    let mut client = config.connect().await.unwrap();
    for (command, fails) in [("copy out", false), ("broken copy out", true)] {
        let mut copy = client.copy_out(command).await.unwrap();
        let mut received = 0;
        let end = loop {
            match copy.next().await {
                Ok(Some(data)) => received += data.len(),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        assert_eq!((received, end.is_err()), (300_000, fails));
        client.query("row").await.unwrap();
    }
    assert!(matches!(
        client.copy_out("row").await,
        Err(Error::UnexpectedAnswer(_))
    ));
    assert!(
        matches!(client.query("row").await, Err(Error::Busy)),
        "the old answer is not taken for the new"
    );
}

#[tokio::test]
async fn copy_both_with_parted_halves() {
    let (config, _shutdown) = serve(AuthMethod::Trust).await;
    let client = config.connect().await.unwrap();
    let (mut reader, mut writer) = client.copy_both("copy both").await.unwrap();
    let echoed = tokio::spawn(async move {
        let mut echoed = Vec::new();
        loop {
            match reader.next().await {
                Ok(Some(payload)) => echoed.extend_from_slice(&payload),
                other => return (echoed, other),
            }
        }
    });
    for text in ["one ", "two ", "three"] {
        writer.put(|out| out.extend_from_slice(text.as_bytes()));
        writer.flush().await.unwrap();
    }
    writer.finish().await.unwrap();
    let (echoed, end) = echoed.await.unwrap();
    assert_eq!(echoed, b"one two three");
    let notice = end.unwrap_err();
    assert_eq!(notice.server_error().unwrap().code, "00000");
}

#[tokio::test]
async fn nobody_there_nobody_answering_and_shutdown() {
    let (config, shutdown) = serve(AuthMethod::Trust).await;
    let mut client = config.connect().await.unwrap();
    shutdown.cancel();
    let error = client.query("row").await.unwrap_err();
    assert!(error.is_disconnect() || error.server_error().is_some(), "{error}");

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut config = Config::new(Host::Tcp("127.0.0.1".into()), port, "u");
    config.connect_timeout = Some(Duration::from_millis(50));
    assert!(matches!(config.connect().await, Err(Error::Timeout { .. })));
    drop(silent);
    assert!(matches!(config.connect().await, Err(Error::Connect { .. })));
}
