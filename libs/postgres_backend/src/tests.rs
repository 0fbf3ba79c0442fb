//! Conversations of a raw client with a small server.

use std::sync::{Arc, Mutex};

use pq_proto::backend::{Authentication, Column, ColumnType, Notice, TransactionStatus};
use pq_proto::startup::{StartupPacket, StartupParameters};
use pq_proto::{BackendMessage, FrontendMessage};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;

/// Answers a few commands; `copied` is what it received in COPY streams.
#[derive(Clone, Default)]
struct Echo {
    copied: Arc<Mutex<Vec<u8>>>,
}

impl Echo {
    async fn copy_both(&mut self, connection: &mut Connection<DuplexStream>) -> Result<(), QueryError> {
        let (mut reader, mut writer) = connection.copy_both().await?;
        let end = loop {
            match reader.next().await {
                Ok(payload) => {
                    writer.send(&payload).await?;
                    writer.flush().await?;
                }
                Err(end) => break end,
            }
        };
        match end {
            CopyEnd::Done => {
                writer.done();
                Ok(())
            }
            other => Err(other.into()),
        }
    }
}

impl Handler<DuplexStream> for Echo {
    fn check_auth_jwt(&mut self, token: &str) -> Result<(), QueryError> {
        match token {
            "good" => Ok(()),
            _ => Err(anyhow::anyhow!("bad token").into()),
        }
    }

    async fn process_query(
        &mut self,
        connection: &mut Connection<DuplexStream>,
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
            "copy in" => {
                let mut reader = connection.copy_in().await?;
                loop {
                    match reader.next().await {
                        Ok(payload) => self.copied.lock().unwrap().extend_from_slice(&payload),
                        Err(CopyEnd::Done) => break,
                        Err(end) => return Err(end.into()),
                    }
                }
            }
            "copy out" => {
                let mut writer = connection.copy_out().await?;
                for _ in 0..50 {
                    writer.send(&[b'x'; 5000]).await?;
                }
                writer
                    .write_all(&[b'x'; 250_000])
                    .await
                    .map_err(ConnectionError::from)?;
                writer.done();
            }
            "copy both" => self.copy_both(connection).await?,
            "stream end" => return Err(QueryError::StreamEnd("ending streaming".into())),
            "hang" => std::future::pending().await,
            _ => {
                return Err(anyhow::anyhow!("cause")
                    .context(format!("unknown command {query}"))
                    .into());
            }
        }
        connection.put_complete("SELECT 1");
        Ok(())
    }
}

struct Client {
    framed: Framed<DuplexStream>,
    server: JoinHandle<Result<(), QueryError>>,
    shutdown: CancellationToken,
    echo: Echo,
}

impl Client {
    fn raw(auth: AuthMethod) -> Self {
        let (ours, theirs) = duplex(1 << 16);
        let shutdown = CancellationToken::new();
        let options = Options {
            auth,
            shutdown: shutdown.clone(),
        };
        let echo = Echo::default();
        let mut handler = echo.clone();
        let server = tokio::spawn(async move { serve(theirs, &mut handler, options).await });
        Client {
            framed: Framed::new(ours),
            server,
            shutdown,
            echo,
        }
    }

    async fn connected() -> Self {
        let mut client = Client::raw(AuthMethod::Trust);
        client
            .startup(&StartupPacket::Startup(StartupParameters::default()))
            .await;
        while client.receive().await != ready() {}
        client
    }

    async fn startup(&mut self, packet: &StartupPacket) {
        packet.encode(self.framed.writer().buffer());
        self.framed.flush().await.unwrap();
    }

    async fn send(&mut self, messages: &[FrontendMessage]) {
        for message in messages {
            self.framed.writer().put_frontend(message);
        }
        self.framed.flush().await.unwrap();
    }

    async fn query(&mut self, text: &str) {
        self.send(&[FrontendMessage::Query(text.to_owned())]).await;
    }

    async fn receive(&mut self) -> BackendMessage {
        self.framed.read_message().await.unwrap().expect("an answer")
    }

    async fn expect(&mut self, messages: &[BackendMessage]) {
        for message in messages {
            assert_eq!(&self.receive().await, message);
        }
    }

    async fn expect_closed(mut self) -> Result<(), QueryError> {
        assert_eq!(self.framed.read_message::<BackendMessage>().await.unwrap(), None);
        self.server.await.unwrap()
    }
}

fn ready() -> BackendMessage {
    BackendMessage::ReadyForQuery(TransactionStatus::Idle)
}

fn complete() -> BackendMessage {
    BackendMessage::CommandComplete("SELECT 1".into())
}

fn error(code: &str, text: &str) -> BackendMessage {
    BackendMessage::ErrorResponse(Notice::error(code, text))
}

#[tokio::test]
async fn startup_refuses_encryption_and_greets() {
    let mut client = Client::raw(AuthMethod::Trust);
    for packet in [StartupPacket::SslRequest, StartupPacket::GssEncRequest] {
        client.startup(&packet).await;
        assert_eq!(client.framed.reader().read_byte().await.unwrap(), b'N');
    }
    client
        .startup(&StartupPacket::Startup(StartupParameters::default()))
        .await;
    let status = |name: &str, value: &str| BackendMessage::ParameterStatus {
        name: name.into(),
        value: value.into(),
    };
    client
        .expect(&[
            BackendMessage::Authentication(Authentication::Ok),
            status("client_encoding", "UTF8"),
            status("integer_datetimes", "on"),
            status("server_version", "14.1"),
            ready(),
        ])
        .await;
    client.send(&[FrontendMessage::Terminate]).await;
    client.expect_closed().await.unwrap();
}

#[tokio::test]
async fn tokens_are_asked_for_and_judged() {
    for (token, accepted) in [("good", true), ("bad", false)] {
        let mut client = Client::raw(AuthMethod::Jwt);
        client
            .startup(&StartupPacket::Startup(StartupParameters::default()))
            .await;
        client
            .expect(&[BackendMessage::Authentication(Authentication::CleartextPassword)])
            .await;
        let password = format!("{token}\0").into_bytes();
        client.send(&[FrontendMessage::Password(password.into())]).await;
        if accepted {
            client
                .expect(&[BackendMessage::Authentication(Authentication::Ok)])
                .await;
        } else {
            client.expect(&[error("XX000", "bad token")]).await;
            client.expect_closed().await.unwrap_err();
        }
    }
}

#[tokio::test]
async fn cancel_requests_are_dropped() {
    let mut client = Client::raw(AuthMethod::Trust);
    let cancel = StartupPacket::CancelRequest {
        process_id: 1,
        secret_key: 2,
    };
    client.startup(&cancel).await;
    client.expect_closed().await.unwrap();
}

#[tokio::test]
async fn simple_queries() {
    let mut client = Client::connected().await;
    client.query(" row; ").await;
    let columns = vec![
        Column::new("a", ColumnType::Text),
        Column::new("b", ColumnType::Int8),
    ];
    client
        .expect(&[
            BackendMessage::RowDescription(columns),
            BackendMessage::DataRow(vec![Some("x".into()), None]),
            complete(),
            ready(),
        ])
        .await;
    client.query("nonsense").await;
    client
        .expect(&[error("XX000", "unknown command nonsense: cause"), ready()])
        .await;
    client.query("stream end").await;
    client
        .expect(&[error("00000", "ending streaming"), ready()])
        .await;
    client.query("").await;
    client
        .expect(&[BackendMessage::EmptyQueryResponse, ready()])
        .await;
}

#[tokio::test]
async fn extended_queries_go_on_after_an_error() {
    let mut client = Client::connected().await;
    let parse = |query: &str| FrontendMessage::Parse {
        name: "s".into(),
        query: query.into(),
    };
    let bind = || FrontendMessage::Bind {
        portal: String::new(),
        statement: "s".into(),
    };
    let execute = || FrontendMessage::Execute {
        portal: String::new(),
        max_rows: 0,
    };
    let sync = FrontendMessage::Sync;
    client
        .send(&[parse("nonsense"), bind(), execute(), bind(), sync])
        .await;
    client
        .expect(&[
            BackendMessage::ParseComplete,
            BackendMessage::BindComplete,
            error("XX000", "unknown command nonsense"),
            BackendMessage::BindComplete,
            ready(),
        ])
        .await;
}

#[tokio::test]
async fn copy_streams() {
    let mut client = Client::connected().await;
    client.query("copy in").await;
    assert!(matches!(client.receive().await, BackendMessage::CopyInResponse(format) if format.format == 1));
    let data = |text: &'static str| FrontendMessage::CopyData(text.into());
    client
        .send(&[
            data("ab"),
            FrontendMessage::Flush,
            data("c"),
            FrontendMessage::CopyDone,
        ])
        .await;
    client.expect(&[complete(), ready()]).await;
    assert_eq!(*client.echo.copied.lock().unwrap(), b"abc");

    client.query("copy in").await;
    client.receive().await;
    client.send(&[FrontendMessage::CopyFail("no more".into())]).await;
    client
        .expect(&[error("XX000", "the client gave up: no more"), ready()])
        .await;

    client.query("copy out").await;
    assert!(matches!(
        client.receive().await,
        BackendMessage::CopyOutResponse(_)
    ));
    let mut received = 0;
    loop {
        match client.receive().await {
            BackendMessage::CopyData(data) => received += data.len(),
            BackendMessage::CopyDone => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, 500_000);
    client.expect(&[complete(), ready()]).await;

    client.query("copy both").await;
    assert!(matches!(
        client.receive().await,
        BackendMessage::CopyBothResponse(_)
    ));
    for text in ["one", "two"] {
        client.send(&[data(text)]).await;
        client.expect(&[BackendMessage::CopyData(text.into())]).await;
    }
    client.send(&[FrontendMessage::CopyDone]).await;
    client
        .expect(&[BackendMessage::CopyDone, complete(), ready()])
        .await;
}

#[tokio::test]
async fn messages_out_of_place_end_the_connection() {
    for message in [
        FrontendMessage::CopyDone,
        FrontendMessage::CopyData("x".into()),
        FrontendMessage::Password("x".into()),
    ] {
        let mut client = Client::connected().await;
        client.send(&[message]).await;
        assert!(matches!(client.receive().await, BackendMessage::ErrorResponse(_)));
        client.expect_closed().await.unwrap_err();
    }
    let mut client = Client::connected().await;
    client.query("copy in").await;
    client.receive().await;
    client.query("row").await;
    assert!(matches!(client.receive().await, BackendMessage::ErrorResponse(_)));
    client.expect_closed().await.unwrap_err();
}

#[tokio::test]
async fn shutdown_ends_connections_idle_or_busy() {
    for command in [None, Some("hang")] {
        let mut client = Client::connected().await;
        if let Some(command) = command {
            client.query(command).await;
            tokio::task::yield_now().await;
        }
        client.shutdown.cancel();
        client.expect(&[error("57P01", "server is shutting down")]).await;
        assert!(matches!(client.expect_closed().await, Err(QueryError::Shutdown)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn random_bytes_end_the_connection_at_worst(
        connect_first in any::<bool>(),
        raw in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = if connect_first {
                Client::connected().await
            } else {
                Client::raw(AuthMethod::Trust)
            };
            let mut stream = client.framed.into_stream().unwrap();
            // The server may close before it has read everything.
            let _ = stream.write_all(&raw).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            let _ = client.server.await.expect("no panic");
        });
    }
}

#[test]
fn errors_of_both_halves_are_reported() {
    let failed = |text: &'static str| Err(QueryError::Failed(anyhow::anyhow!(text)));
    let check = |read, write, expected: &str| {
        let text = match join_copy_results(read, write) {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(text, expected);
    };
    check(Ok(()), Ok(()), "ok");
    check(failed("a"), Ok(()), "a");
    check(Ok(()), failed("b"), "b");
    check(failed("a"), failed("b"), "receiving failed: a; sending failed: b");
    check(failed("a"), Err(QueryError::StreamEnd("end".into())), "end");
}
