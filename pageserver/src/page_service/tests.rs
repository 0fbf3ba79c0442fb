//! Conversations of a client with the page service.

use std::sync::Arc;

use bytes::Bytes;
use pageserver_api::pagestream::{Query, Request, RequestLsn, Response};
use postgres_backend::{AuthMethod, Framed, Options, serve};
use pq_proto::backend::TransactionStatus;
use pq_proto::startup::{StartupPacket, StartupParameters};
use pq_proto::{BackendMessage, FrontendMessage};
use tokio::io::{DuplexStream, duplex};
use tokio_util::sync::CancellationToken;
use utils::lsn::Lsn;

use super::PageService;
use crate::server::testing::{REL, START, TestServer, put};

struct Client(Framed<DuplexStream>);

impl Client {
    async fn connect(test: &TestServer) -> Self {
        let (ours, theirs) = duplex(1 << 20);
        let mut service = PageService::new(Arc::clone(&test.server));
        let options = Options {
            auth: AuthMethod::Trust,
            shutdown: CancellationToken::new(),
        };
        tokio::spawn(async move { serve(theirs, &mut service, options).await });
        let mut framed = Framed::new(ours);
        StartupPacket::Startup(StartupParameters::default()).encode(framed.writer().buffer());
        let mut client = Client(framed);
        client.0.flush().await.unwrap();
        client.until_ready().await;
        client
    }

    async fn receive(&mut self) -> BackendMessage {
        self.0.read_message().await.unwrap().expect("an answer")
    }

    async fn until_ready(&mut self) -> Vec<BackendMessage> {
        let mut messages = Vec::new();
        loop {
            match self.receive().await {
                BackendMessage::ReadyForQuery(TransactionStatus::Idle) => return messages,
                message => messages.push(message),
            }
        }
    }

    async fn command(&mut self, text: String) {
        self.0.writer().put_frontend(&FrontendMessage::Query(text));
        self.0.flush().await.unwrap();
    }

    /// Values of the one row the command answers with.
    async fn row(&mut self, text: String) -> Vec<String> {
        self.command(text).await;
        let messages = self.until_ready().await;
        let row = messages.iter().find_map(|message| match message {
            BackendMessage::DataRow(values) => Some(values),
            _ => None,
        });
        let text = |value: &Option<Bytes>| String::from_utf8(value.as_ref().unwrap().to_vec()).unwrap();
        row.unwrap_or_else(|| panic!("{messages:?}"))
            .iter()
            .map(text)
            .collect()
    }

    async fn error(&mut self, text: String) -> String {
        self.command(text).await;
        match &self.until_ready().await[..] {
            [BackendMessage::ErrorResponse(notice)] => format!("{} {}", notice.code, notice.message),
            other => panic!("{other:?}"),
        }
    }

    async fn pagestream(test: &TestServer, timeline: &crate::timeline::Timeline) -> Self {
        let mut client = Client::connect(test).await;
        let id = test.id(timeline);
        client
            .command(format!("pagestream {} {}", id.tenant_id, id.timeline_id))
            .await;
        assert!(matches!(
            client.receive().await,
            BackendMessage::CopyBothResponse(_)
        ));
        client
    }

    fn put(&mut self, latest: bool, lsn: u64, query: Query) {
        let at = RequestLsn {
            latest,
            lsn: Lsn(lsn),
        };
        let request = Request { at, query };
        self.0.writer().put_copy_data(|out| request.encode(out));
    }

    async fn response(&mut self) -> Response {
        match self.receive().await {
            BackendMessage::CopyData(payload) => Response::decode(payload).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn ask(&mut self, latest: bool, lsn: u64, query: Query) -> Response {
        self.put(latest, lsn, query);
        self.0.flush().await.unwrap();
        self.response().await
    }
}

fn page(block: u32) -> Query {
    Query::GetPage { rel: REL, block }
}

fn page_of(byte: u8) -> Response {
    Response::GetPage(vec![byte; 8192].into())
}

/// Pages of one relation are read together, which the answers must not show, nor what is wrong with a request.
#[tokio::test]
async fn batches_of_all_sizes_are_answered_in_order() {
    let test = TestServer::start().await;
    let timeline = test.timeline(3).await;
    let mut client = Client::pagestream(&test, &timeline).await;
    let missing = pageserver_api::reltag::RelTag { relnode: 1, ..REL };
    for size in [1, 11, 12, 13, 40, 64, 65, 200] {
        for number in 0..size {
            let query = if number % 7 == 5 {
                Query::Nblocks(missing)
            } else {
                page(number % 3)
            };
            client.put(true, START.0, query);
        }
        client.0.flush().await.unwrap();
        for number in 0..size {
            let response = client.response().await;
            if number % 7 == 5 {
                assert!(
                    matches!(response, Response::Error(_)),
                    "{number} of {size}: {response:?}"
                );
            } else {
                assert_eq!(response, page_of((number % 3) as u8), "{number} of {size}");
            }
        }
    }
    // Everything before a message that is no request is answered.
    for number in 0..30 {
        client.put(true, START.0, page(number % 3));
    }
    client
        .0
        .writer()
        .put_copy_data(|out| out.extend_from_slice(b"\xEEno request"));
    client.0.flush().await.unwrap();
    for number in 0..30 {
        assert_eq!(client.response().await, page_of((number % 3) as u8));
    }
    assert!(matches!(client.receive().await, BackendMessage::ErrorResponse(_)));
}

#[tokio::test]
async fn requests_of_all_kinds_pipelined() {
    let test = TestServer::start().await;
    let timeline = test.timeline(3).await;
    let mut client = Client::pagestream(&test, &timeline).await;
    let missing = pageserver_api::reltag::RelTag { relnode: 1, ..REL };
    let size_in = |spcnode| Query::DbSizeIn { spcnode, dbnode: 5 };
    let cases = [
        (Query::Exists(REL), Response::Exists(true)),
        (Query::Exists(missing), Response::Exists(false)),
        (Query::Nblocks(REL), Response::Nblocks(3)),
        (page(2), page_of(2)),
        (page(7), page_of(0)),
        (Query::DbSize { dbnode: 5 }, Response::DbSize(3 * 8192)),
        (size_in(1663), Response::DbSize(3 * 8192)),
        (size_in(16385), Response::DbSize(0)),
        (page(1), page_of(1)),
    ];
    for (query, _) in &cases {
        client.put(true, 0, *query);
    }
    client.0.flush().await.unwrap();
    for (query, expected) in cases {
        assert_eq!(client.response().await, expected, "{query:?}");
    }
}

#[tokio::test]
async fn the_lsn_decides_what_is_seen() {
    let test = TestServer::start().await;
    let timeline = test.timeline(1).await;
    put(&timeline, Lsn(0x200), 0..1, |_| 77).await;
    let mut client = Client::pagestream(&test, &timeline).await;
    assert_eq!(client.ask(true, 0, page(0)).await, page_of(77));
    assert_eq!(
        client.ask(true, START.0, page(0)).await,
        page_of(77),
        "a hint is no limit"
    );
    assert_eq!(client.ask(false, 0x1f8, page(0)).await, page_of(0));
    assert_eq!(client.ask(false, 0x200, page(0)).await, page_of(77));
    let error = |text: &str| Response::Error(text.to_owned());
    assert_eq!(
        client.ask(false, 0, page(0)).await,
        error("invalid LSN(0) in request")
    );
    let below = client.ask(false, 8, page(0)).await;
    assert_eq!(
        below,
        error("tried to request a page version that was garbage collected. requested at 0/8 gc cutoff 0/100")
    );
    let Response::Error(text) = client.ask(true, 0x300, page(0)).await else {
        panic!("there is no WAL up to 0/300");
    };
    assert!(
        text.starts_with("timed out after 200ms waiting for LSN 0/300"),
        "{text}"
    );
    assert_eq!(
        client.ask(true, 0, page(0)).await,
        page_of(77),
        "errors do not end the stream"
    );
}

#[tokio::test]
async fn requests_that_come_together_have_their_own_answers() {
    let test = TestServer::start().await;
    let timeline = test.timeline(1).await;
    put(&timeline, Lsn(0x200), 0..20, |block| block + 1).await;
    put(&timeline, Lsn(0x300), 5..6, |_| 99).await;
    let mut client = Client::pagestream(&test, &timeline).await;
    let mut asked = Vec::new();
    let mut ask = |latest, lsn, block: u32, answer: Option<u8>| {
        client.put(latest, lsn, page(block));
        asked.push((lsn, block, answer));
    };
    for block in 0..18 {
        ask(
            true,
            0x200 + u64::from(block),
            block,
            Some(if block == 5 { 99 } else { block as u8 + 1 }),
        );
    }
    // Out of order, twice, behind the end, before a change; one that fails among others that do not.
    for (block, lsn, answer) in [
        (7, 0x200, Some(8)),
        (5, 0x200, Some(6)),
        (7, 0x200, Some(8)),
        (500, 0x200, Some(0)),
        (5, 0x300, Some(99)),
        (6, 8, None),
        (6, 0x300, Some(7)),
    ] {
        ask(false, lsn, block, answer);
    }
    for block in [3, 4] {
        ask(true, 0x300, block, Some(block as u8 + 1));
    }
    ask(true, 0x900, 3, None);
    client.0.flush().await.unwrap();
    for (lsn, block, answer) in asked {
        let response = client.response().await;
        match answer {
            Some(byte) => assert_eq!(response, page_of(byte), "block {block} at {lsn:x}"),
            None => assert!(matches!(response, Response::Error(_)), "block {block} at {lsn:x}"),
        }
    }
}

#[tokio::test]
async fn a_request_waits_for_wal() {
    let test = TestServer::start_with(&["wait_lsn_timeout='60 s'"]).await;
    let timeline = test.timeline(1).await;
    let mut client = Client::pagestream(&test, &timeline).await;
    client.put(true, 0x200, page(0));
    client.0.flush().await.unwrap();
    put(&timeline, Lsn(0x200), 0..1, |_| 5).await;
    assert_eq!(client.response().await, page_of(5));
}

#[tokio::test]
async fn malformed_requests() {
    let test = TestServer::start().await;
    let timeline = test.timeline(1).await;
    let mut client = Client::pagestream(&test, &timeline).await;
    client
        .0
        .writer()
        .put_copy_data(|out| out.extend_from_slice(&[2, 1, 0]));
    client.0.flush().await.unwrap();
    let text = "malformed request: GetPage message has 3 bytes instead of 27";
    assert_eq!(client.response().await, Response::Error(text.to_owned()));
    client
        .0
        .writer()
        .put_copy_data(|out| out.extend_from_slice(&[200]));
    client.0.flush().await.unwrap();
    let BackendMessage::ErrorResponse(notice) = client.receive().await else {
        panic!("no error");
    };
    assert_eq!(notice.message, "unknown smgr message tag: 200");
}

#[tokio::test]
async fn a_stopping_timeline_ends_its_streams() {
    let test = TestServer::start().await;
    let timeline = test.timeline(1).await;
    let mut client = Client::pagestream(&test, &timeline).await;
    test.tenant.delete_timeline(timeline.timeline_id).await.unwrap();
    let BackendMessage::ErrorResponse(notice) = client.receive().await else {
        panic!("no error");
    };
    assert_eq!(notice.code, "08006");
}

#[tokio::test]
async fn small_commands() {
    let test = TestServer::start_with(&["tenant_config={gc_horizon=17, gc_period='5 m'}"]).await;
    let timeline = test.timeline(1).await;
    put(&timeline, Lsn(0x200), 0..1, |_| 1).await;
    let (tenant, id) = (test.tenant.id, timeline.timeline_id);
    let mut client = Client::connect(&test).await;
    assert_eq!(
        client.row(format!("get_last_record_rlsn {tenant} {id}")).await,
        ["0/100", "0/200"]
    );
    let settings = client.row(format!("show {tenant}")).await;
    assert_eq!(
        (settings.len(), settings[5].as_str(), settings[6].as_str()),
        (9, "17", "300")
    );
    client.command("SET datestyle TO ISO".into()).await;
    let answer = client.until_ready().await;
    assert_eq!(answer, [BackendMessage::CommandComplete("SELECT 1".into())]);
    let missing = format!("{tenant} {tenant}");
    assert_eq!(
        client.error(format!("pagestream {missing}")).await,
        format!("08006 Timeline {tenant}/{tenant} was not found")
    );
    assert_eq!(
        client.error(format!("show {id}")).await,
        format!("08006 Tenant {id} not found in the local state")
    );
    assert_eq!(
        client.error("nonsense".into()).await,
        "XX000 unknown command nonsense"
    );
    let error = client.error(format!("basebackup {tenant} {id} 0/900")).await;
    assert!(
        error.contains("timed out after 200ms waiting for LSN 0/900"),
        "{error}"
    );
    let error = client.error(format!("basebackup {tenant} {id} 0/8")).await;
    assert_eq!(
        error,
        "XX000 invalid basebackup lsn: LSN 0/8 is earlier than latest GC horizon 0/100 of the timeline"
    );
    let error = client.error(format!("fullbackup {tenant} {id} 0/200 0/18")).await;
    assert_eq!(error, "XX000 the previous LSN given is 0/18, but it is 0/100");
}
