//! A real `safekeeper` process in a directory of its own, and those who talk to it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use postgres_client::{CopyBothReader, CopyBothWriter};
use postgres_ffi::v15::encode::{WalIdentity, WalWriter};
use postgres_ffi::v15::record::{DecodedRecord, RecordHeader};
use postgres_ffi::v15::rmgr::RM_LOGICALMSG_ID;
use pq_proto::replication::ReplicationMessage;
use safekeeper_api::protocol::{
    AcceptorMessage, AppendRequest, AppendResponse, ProposerElected, ProposerGreeting, ProposerId,
    ProposerMessage, Term, TermHistory, TermLsn, VoteRequest, VoteResponse,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use utils::id::{TenantId, TenantTimelineId, TimelineId};
use utils::lsn::Lsn;

pub const SEGMENT_SIZE: usize = 1024 * 1024;
/// Where most tests' WAL begins: after the header of the second page of a segment.
pub const START: Lsn = Lsn(SEGMENT_SIZE as u64 + 8192 + 24);
pub const SYSTEM_ID: u64 = 4242;
const PATIENCE: Duration = Duration::from_secs(20);

pub fn new_id() -> TenantTimelineId {
    TenantTimelineId::new(TenantId::generate(), TimelineId::generate())
}

pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The data directory of a safekeeper, and its process while it runs.
pub struct Daemon {
    pub dir: PathBuf,
    pub pg_port: u16,
    pub http_port: u16,
    args: Vec<String>,
    id: u64,
    child: Option<Child>,
    /// Password or bearer token of those who talk to it.
    pub token: Option<String>,
    _temp: Option<tempfile::TempDir>,
}

impl Daemon {
    pub async fn start(args: &[&str]) -> Self {
        Self::start_with_id(1, args).await
    }

    pub async fn start_with_id(id: u64, args: &[&str]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut daemon = Daemon {
            dir: temp.path().to_owned(),
            pg_port: free_port(),
            http_port: free_port(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            id,
            child: None,
            token: None,
            _temp: Some(temp),
        };
        daemon.restart("").await;
        daemon
    }

    /// Kills it if it runs, and starts it with these failpoints.
    pub async fn restart(&mut self, failpoints: &str) {
        self.kill();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_safekeeper"))
            .arg("-D")
            .arg(&self.dir)
            .args(["--id", &self.id.to_string()])
            .args(["--listen-pg", &format!("127.0.0.1:{}", self.pg_port)])
            .args(["--listen-http", &format!("127.0.0.1:{}", self.http_port)])
            .args(&self.args)
            .env("FAILPOINTS", failpoints)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.http_port)).await.is_err() {
            let exited = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(exited.is_none(), "safekeeper ended at once: {}", self.log());
            assert!(
                Instant::now() < deadline,
                "safekeeper does not answer: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("safekeeper.log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap()
    }

    pub fn timeline_dir(&self, id: TenantTimelineId) -> PathBuf {
        self.dir
            .join(id.tenant_id.to_string())
            .join(id.timeline_id.to_string())
    }

    fn config(&self, id: TenantTimelineId, application_name: &str) -> postgres_client::Config {
        let mut text = format!(
            "host=127.0.0.1 port={} user=cloud_admin dbname=replication application_name={application_name} \
             options='-c timeline_id={} tenant_id={}'",
            self.pg_port, id.timeline_id, id.tenant_id
        );
        if let Some(token) = &self.token {
            text.push_str(&format!(" password={token}"));
        }
        text.parse().unwrap()
    }

    pub async fn client(&self, id: TenantTimelineId) -> postgres_client::Client {
        self.config(id, "test").connect().await.unwrap()
    }

    pub async fn try_client(
        &self,
        id: TenantTimelineId,
    ) -> Result<postgres_client::Client, postgres_client::Error> {
        self.config(id, "test").connect().await
    }

    /// A proposer's connection, greeted.
    pub async fn propose(&self, id: TenantTimelineId) -> Proposer {
        let mut proposer = self.propose_ungreeted(id).await;
        proposer.send(&[greeting(id)]).await;
        assert!(matches!(proposer.receive().await, AcceptorMessage::Greeting(_)));
        proposer
    }

    pub async fn propose_ungreeted(&self, id: TenantTimelineId) -> Proposer {
        let client = self.config(id, "walproposer").connect().await.unwrap();
        let (reader, writer) = client.copy_both("START_WAL_PUSH").await.unwrap();
        Proposer { reader, writer }
    }

    pub async fn replicate(&self, id: TenantTimelineId, start: Lsn, application_name: &str) -> Receiver {
        let client = self.config(id, application_name).connect().await.unwrap();
        let command = format!("START_REPLICATION PHYSICAL {start}");
        let (reader, writer) = client.copy_both(&command).await.unwrap();
        Receiver {
            reader,
            writer,
            wal: Vec::new(),
        }
    }

    /// Status and body of the answer.
    pub async fn http(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http_port)).await.unwrap();
        let token = self
            .token
            .as_ref()
            .map(|token| format!("Authorization: Bearer {token}\r\n"));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{}Content-Length: {}\r\n\r\n{body}",
            token.unwrap_or_default(),
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            unchunk(body)
        } else {
            body.to_owned()
        };
        (status, body)
    }

    pub async fn get_json(&self, path: &str) -> serde_json::Value {
        let (status, body) = self.http("GET", path, "").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    pub async fn status(&self, id: TenantTimelineId) -> serde_json::Value {
        self.get_json(&timeline_path(id)).await
    }
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((len, rest)) = body.split_once("\r\n") {
        let len = usize::from_str_radix(len, 16).unwrap();
        whole.push_str(&rest[..len]);
        body = rest[len..].trim_start_matches("\r\n");
        if len == 0 {
            break;
        }
    }
    whole
}

pub fn timeline_path(id: TenantTimelineId) -> String {
    format!("/v1/tenant/{}/timeline/{}", id.tenant_id, id.timeline_id)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("log of the safekeeper:\n{}", self.log());
        }
    }
}

pub fn greeting(id: TenantTimelineId) -> ProposerMessage {
    greeting_with(id, SEGMENT_SIZE)
}

pub fn greeting_with(id: TenantTimelineId, segment_size: usize) -> ProposerMessage {
    greeting_of(id, segment_size, SYSTEM_ID)
}

pub fn greeting_of(id: TenantTimelineId, segment_size: usize, system_id: u64) -> ProposerMessage {
    ProposerMessage::Greeting(ProposerGreeting {
        pg_version: 150_004,
        proposer_id: ProposerId([9; 16]),
        system_id,
        timeline_id: id.timeline_id,
        tenant_id: id.tenant_id,
        pg_timeline: 1,
        wal_seg_size: segment_size as u32,
    })
}

pub fn history(entries: &[(u64, Lsn)]) -> TermHistory {
    let entry = |(term, lsn): &(u64, Lsn)| TermLsn {
        term: Term(*term),
        lsn: *lsn,
    };
    TermHistory::new(entries.iter().map(entry).collect()).unwrap()
}

/// A proposer's connection.
pub struct Proposer {
    reader: CopyBothReader,
    writer: CopyBothWriter,
}

impl Proposer {
    /// Sends the messages together.
    pub async fn send(&mut self, messages: &[ProposerMessage]) {
        for message in messages {
            self.writer.put(|out| message.encode(out));
        }
        self.writer.flush().await.unwrap();
    }

    pub async fn send_raw(&mut self, raw: &[u8]) {
        self.writer.put(|out| out.extend_from_slice(raw));
        // The other side may have gone already, which the reader will tell.
        let _ = self.writer.flush().await;
    }

    pub async fn try_send(&mut self, message: &ProposerMessage) -> Result<(), postgres_client::Error> {
        self.writer.put(|out| message.encode(out));
        self.writer.flush().await
    }

    pub async fn try_receive(&mut self) -> Result<AcceptorMessage, postgres_client::Error> {
        let received = tokio::time::timeout(PATIENCE, self.reader.next())
            .await
            .expect("no answer");
        let payload = received?.ok_or(postgres_client::Error::Closed)?;
        Ok(AcceptorMessage::decode(payload).unwrap())
    }

    pub async fn receive(&mut self) -> AcceptorMessage {
        self.try_receive().await.unwrap()
    }

    /// The error that the safekeeper ends the stream with.
    pub async fn error(&mut self) -> String {
        loop {
            match self.try_receive().await {
                Ok(_) => {}
                Err(error) => return error.to_string(),
            }
        }
    }

    pub async fn vote(&mut self, term: u64) -> VoteResponse {
        let request = VoteRequest {
            term: Term(term),
            proposer_id: ProposerId([9; 16]),
        };
        self.send(&[ProposerMessage::VoteRequest(request)]).await;
        match self.receive().await {
            AcceptorMessage::VoteResponse(vote) => vote,
            other => panic!("{other:?}"),
        }
    }

    /// Tells of an election, which is not answered.
    pub async fn elected(&mut self, entries: &[(u64, Lsn)], start: Lsn) {
        let elected = ProposerElected {
            term: Term(entries.last().unwrap().0),
            start_streaming_at: start,
            term_history: history(entries),
            timeline_start_lsn: entries[0].1,
        };
        self.send(&[ProposerMessage::Elected(elected)]).await;
    }

    /// Has all of the first term's WAL written, and committed.
    pub async fn commit(&mut self, wal: &Wal) {
        let end = wal.end();
        self.send(&wal.appends(1, wal.start, end, Lsn(0))).await;
        while self.ack().await.flush_lsn < end {}
        self.send(&[append(1, end, wal.slice(end, end), end)]).await;
        self.ack().await;
    }

    pub async fn ack(&mut self) -> AppendResponse {
        match self.receive().await {
            AcceptorMessage::AppendResponse(ack) => ack,
            other => panic!("{other:?}"),
        }
    }
}

pub fn append(term: u64, begin: Lsn, wal: impl Into<Bytes>, commit: Lsn) -> ProposerMessage {
    ProposerMessage::Append(AppendRequest {
        term: Term(term),
        epoch_start_lsn: Lsn(0),
        begin_lsn: begin,
        commit_lsn: commit,
        truncate_lsn: Lsn(0),
        proposer_id: ProposerId([9; 16]),
        wal: wal.into(),
    })
}

/// A reader's connection, and the WAL it has received.
pub struct Receiver {
    reader: CopyBothReader,
    writer: CopyBothWriter,
    pub wal: Vec<u8>,
}

impl Receiver {
    pub async fn next(&mut self) -> Result<ReplicationMessage, postgres_client::Error> {
        let received = tokio::time::timeout(PATIENCE, self.reader.next())
            .await
            .expect("nothing received");
        let payload = received?.ok_or(postgres_client::Error::Closed)?;
        let message = ReplicationMessage::parse(payload).unwrap();
        if let ReplicationMessage::XLogData { wal, .. } = &message {
            self.wal.extend_from_slice(wal);
        }
        Ok(message)
    }

    /// Receives until this much has come.
    pub async fn receive(&mut self, bytes: usize) {
        while self.wal.len() < bytes {
            self.next().await.unwrap();
        }
    }

    /// Receives until the safekeeper ends the stream; its words.
    pub async fn receive_to_end(&mut self) -> String {
        loop {
            if let Err(error) = self.next().await {
                return error.to_string();
            }
        }
    }

    pub async fn send(&mut self, message: &pq_proto::replication::StandbyMessage) {
        self.writer.put(|out: &mut BytesMut| message.encode(out));
        self.writer.flush().await.unwrap();
    }

    pub async fn send_raw(&mut self, raw: &[u8]) {
        self.writer.put(|out| out.extend_from_slice(raw));
        self.writer.flush().await.unwrap();
    }
}

/// WAL of logical messages.
pub struct Wal {
    pub start: Lsn,
    pub bytes: Vec<u8>,
    writer: WalWriter,
}

impl Wal {
    pub fn new(start: Lsn, segment_size: usize) -> Self {
        let identity = WalIdentity {
            system_id: SYSTEM_ID,
            segment_size,
        };
        Wal {
            start,
            bytes: Vec::new(),
            writer: WalWriter::new(identity, start, Lsn(0)),
        }
    }

    /// At least `size` bytes of records with messages of `len` bytes.
    pub fn of_records(start: Lsn, len: usize, size: usize) -> Self {
        let mut wal = Wal::new(start, SEGMENT_SIZE);
        while wal.bytes.len() < size {
            wal.record(len);
        }
        wal
    }

    /// WAL that comes from elsewhere.
    pub fn from_bytes(start: Lsn, bytes: Vec<u8>) -> Self {
        Wal {
            bytes,
            ..Wal::new(start, SEGMENT_SIZE)
        }
    }

    pub fn end(&self) -> Lsn {
        self.start + self.bytes.len() as u64
    }

    /// Appends a record with a message of `len` bytes; returns its end.
    pub fn record(&mut self, len: usize) -> Lsn {
        let mut data = vec![0; 8];
        data.extend(2u64.to_le_bytes());
        data.extend((len as u64).to_le_bytes());
        data.extend(b"p\0");
        data.extend((0..len).map(|i| b'a' + (i % 26) as u8));
        let place = self.writer.append(DecodedRecord {
            header: RecordHeader {
                rmid: RM_LOGICALMSG_ID,
                ..RecordHeader::default()
            },
            blocks: Default::default(),
            main_data: data.into(),
            origin_id: 0,
            toplevel_xid: None,
        });
        self.bytes.extend(self.writer.take());
        place.end
    }

    pub fn slice(&self, begin: Lsn, end: Lsn) -> Bytes {
        Bytes::copy_from_slice(&self.bytes[(begin - self.start) as usize..(end - self.start) as usize])
    }

    /// Append requests of at most 128 KiB each for WAL from `begin` to `end`.
    pub fn appends(&self, term: u64, begin: Lsn, end: Lsn, commit: Lsn) -> Vec<ProposerMessage> {
        let mut messages = Vec::new();
        let mut at = begin;
        while at < end {
            let next = end.min(at + 128 * 1024);
            messages.push(append(term, at, self.slice(at, next), commit));
            at = next;
        }
        messages
    }
}

/// Runs a program of PostgreSQL.
pub fn run_pg(program: &str, args: &[&str]) -> (bool, String) {
    let path = Path::new("/usr/lib/postgresql/15/bin").join(program);
    let output = Command::new(path).args(args).output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.success(), text)
}
