//! Appending through a real safekeeper beside writing to the same disk directly, alternating.
//!
//! `cargo bench -p safekeeper --bench append [-- ROUNDS]` prints, per round and as medians:
//! * latency of one append of 200 bytes to its acknowledgement, beside `pwrite` + `fdatasync` of the same;
//! * throughput of 128 KiB appends sent without waiting, beside sequential writes of 128 KiB with an
//!   `fdatasync` as often as the safekeeper had one.
//!
//! Reference, November 2026, 2 virtual cores shared with other work (load 15), ext4 on a virtual disk, opt-level 1,
//! five rounds: p50 136 to 374 us where one `fdatasync` took 112 to 240 us (one round: 1.60 ms and 1.83 ms), median
//! 23 us above it; 86 to 193 MB/s in batches of 1 MiB, 0.78 to 1.88 times the direct writes; 1.5 ms of CPU per MB.

// A benchmark has nobody to report to.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use postgres_client::{CopyBothReader, CopyBothWriter};
use postgres_ffi::v15::encode::{WalIdentity, WalWriter};
use postgres_ffi::v15::record::{DecodedRecord, RecordHeader};
use postgres_ffi::v15::rmgr::RM_LOGICALMSG_ID;
use safekeeper_api::protocol::{
    AcceptorMessage, AppendRequest, ProposerElected, ProposerGreeting, ProposerId, ProposerMessage, Term,
    TermHistory, TermLsn, VoteRequest,
};
use utils::id::{TenantId, TimelineId};
use utils::lsn::Lsn;

const SEGMENT_SIZE: usize = 16 * 1024 * 1024;
const START: Lsn = Lsn(SEGMENT_SIZE as u64 + 8192);
const SMALL_APPENDS: usize = 500;
const SMALL_BYTES: usize = 200;
const LARGE_APPENDS: usize = 1024;
const LARGE_BYTES: usize = 128 * 1024;
/// Appends under way at once in the test of throughput.
const WINDOW: usize = 64;

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

async fn start(dir: &Path) -> (Daemon, u16) {
    let (pg_port, http_port) = (free_port(), free_port());
    let child = Command::new(env!("CARGO_BIN_EXE_safekeeper"))
        .arg("-D")
        .arg(dir)
        .args(["--id", "1", "--listen-pg", &format!("127.0.0.1:{pg_port}")])
        .args(["--listen-http", &format!("127.0.0.1:{http_port}")])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let daemon = Daemon(child);
    while tokio::net::TcpStream::connect(("127.0.0.1", pg_port))
        .await
        .is_err()
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (daemon, pg_port)
}

struct Proposer {
    reader: CopyBothReader,
    writer: CopyBothWriter,
    wal: WalWriter,
}

impl Proposer {
    async fn connect(port: u16) -> Self {
        let (tenant_id, timeline_id) = (TenantId::generate(), TimelineId::generate());
        let text = format!(
            "host=127.0.0.1 port={port} dbname=replication options='-c timeline_id={timeline_id} tenant_id={tenant_id}'"
        );
        let config: postgres_client::Config = text.parse().unwrap();
        let client = config.connect().await.unwrap();
        let (reader, writer) = client.copy_both("START_WAL_PUSH").await.unwrap();
        let identity = WalIdentity {
            system_id: 1,
            segment_size: SEGMENT_SIZE,
        };
        let mut proposer = Proposer {
            reader,
            writer,
            wal: WalWriter::new(identity, START, Lsn(0)),
        };
        proposer
            .send(ProposerMessage::Greeting(ProposerGreeting {
                pg_version: 150_004,
                proposer_id: ProposerId([1; 16]),
                system_id: 1,
                timeline_id,
                tenant_id,
                pg_timeline: 1,
                wal_seg_size: SEGMENT_SIZE as u32,
            }))
            .await;
        proposer.receive().await;
        proposer
            .send(ProposerMessage::VoteRequest(VoteRequest {
                term: Term(1),
                proposer_id: ProposerId([1; 16]),
            }))
            .await;
        proposer.receive().await;
        let entry = TermLsn {
            term: Term(1),
            lsn: START,
        };
        proposer
            .send(ProposerMessage::Elected(ProposerElected {
                term: Term(1),
                start_streaming_at: START,
                term_history: TermHistory::new(vec![entry]).unwrap(),
                timeline_start_lsn: START,
            }))
            .await;
        proposer
    }

    async fn send(&mut self, message: ProposerMessage) {
        self.writer.put(|out| message.encode(out));
        self.writer.flush().await.unwrap();
    }

    async fn receive(&mut self) -> AcceptorMessage {
        AcceptorMessage::decode(self.reader.next().await.unwrap().unwrap()).unwrap()
    }

    async fn flushed(&mut self) -> Lsn {
        match self.receive().await {
            AcceptorMessage::AppendResponse(ack) => ack.flush_lsn,
            other => panic!("{other:?}"),
        }
    }

    fn next_wal(&mut self, bytes: usize) -> Bytes {
        self.wal.append(DecodedRecord {
            header: RecordHeader {
                rmid: RM_LOGICALMSG_ID,
                ..RecordHeader::default()
            },
            blocks: Default::default(),
            main_data: vec![7; bytes].into(),
            origin_id: 0,
            toplevel_xid: None,
        });
        self.wal.take().into()
    }

    async fn append(&mut self, wal: Bytes, begin: Lsn) -> Lsn {
        let end = begin + wal.len() as u64;
        self.send(ProposerMessage::Append(AppendRequest {
            term: Term(1),
            epoch_start_lsn: START,
            begin_lsn: begin,
            commit_lsn: begin,
            truncate_lsn: Lsn(0),
            proposer_id: ProposerId([1; 16]),
            wal,
        }))
        .await;
        end
    }
}

fn quantile(sorted: &[Duration], part: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

/// Latencies of appends and of direct writes, one after the other in turn: both meet the same noise.
async fn small_appends(proposer: &mut Proposer, file: &File) -> (Vec<Duration>, Vec<Duration>) {
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for i in 0..SMALL_APPENDS {
        let begin_lsn = proposer.wal.position();
        let wal = proposer.next_wal(SMALL_BYTES);
        let begin = Instant::now();
        let end_lsn = proposer.append(wal, begin_lsn).await;
        assert!(proposer.flushed().await >= end_lsn);
        ours.push(begin.elapsed());
        let begin = Instant::now();
        file.write_all_at(&[7; SMALL_BYTES], (i * SMALL_BYTES) as u64)
            .unwrap();
        file.sync_data().unwrap();
        raw.push(begin.elapsed());
    }
    ours.sort();
    raw.sort();
    (ours, raw)
}

/// MB/s, and bytes per acknowledgement.
async fn large_appends(proposer: &mut Proposer) -> (f64, usize) {
    let begin_lsn = proposer.wal.position();
    let mut pieces = Vec::new();
    for _ in 0..LARGE_APPENDS {
        let wal = proposer.next_wal(LARGE_BYTES - 600);
        assert!(wal.len() <= LARGE_BYTES);
        pieces.push(wal);
    }
    let begin = Instant::now();
    let (mut sent_lsn, mut flushed, mut acks) = (begin_lsn, begin_lsn, 0);
    let total: usize = pieces.iter().map(Bytes::len).sum();
    let mut pieces = pieces.into_iter();
    while flushed < begin_lsn + total as u64 {
        while sent_lsn - flushed < (WINDOW * LARGE_BYTES) as u64 {
            let Some(piece) = pieces.next() else { break };
            sent_lsn = proposer.append(piece, sent_lsn).await;
        }
        flushed = proposer.flushed().await;
        acks += 1;
    }
    (total as f64 / 1e6 / begin.elapsed().as_secs_f64(), total / acks)
}

/// MB/s of writes with an fdatasync every `sync_bytes`.
fn large_writes(path: &Path, sync_bytes: usize) -> f64 {
    let file = File::create(path).unwrap();
    let chunk = vec![7; LARGE_BYTES];
    let begin = Instant::now();
    let mut unsynced = 0;
    for i in 0..LARGE_APPENDS {
        file.write_all_at(&chunk, (i * LARGE_BYTES) as u64).unwrap();
        unsynced += LARGE_BYTES;
        if unsynced >= sync_bytes {
            file.sync_data().unwrap();
            unsynced = 0;
        }
    }
    file.sync_data().unwrap();
    (LARGE_APPENDS * LARGE_BYTES) as f64 / 1e6 / begin.elapsed().as_secs_f64()
}

fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() {
    let rounds = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .next()
        .unwrap_or(5);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (daemon, port) = start(dir.path()).await;
    let mut proposer = Proposer::connect(port).await;
    let (mut added, mut ratios, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let path = dir.path().join("raw");
        let file = File::create(&path).unwrap();
        file.write_all_at(&vec![0; SEGMENT_SIZE], 0).unwrap();
        file.sync_all().unwrap();
        let (ours, raw) = small_appends(&mut proposer, &file).await;
        let (raw_p50, ours_p50) = (quantile(&raw, 0.5), quantile(&ours, 0.5));
        added.push((ours_p50.as_secs_f64() - raw_p50.as_secs_f64()) * 1e6);
        let cpu_before = cpu_seconds(daemon.0.id());
        let (ours_rate, batch_bytes) = large_appends(&mut proposer).await;
        let spent = cpu_seconds(daemon.0.id()) - cpu_before;
        let raw_rate = large_writes(&path, batch_bytes);
        ratios.push(ours_rate / raw_rate);
        cpu.push(spent * 1e3 / ((LARGE_APPENDS * LARGE_BYTES) as f64 / 1e6));
        println!(
            "round {round}: latency p50 {ours_p50:?} p99 {:?}, fdatasync p50 {raw_p50:?} p99 {:?}; \
             {ours_rate:.0} MB/s in batches of {} KiB, raw {raw_rate:.0} MB/s",
            quantile(&ours, 0.99),
            quantile(&raw, 0.99),
            batch_bytes / 1024
        );
    }
    println!(
        "safekeeper append: median latency above one fdatasync {:.0} us, throughput ratio {:.2}, CPU {:.2} ms/MB",
        median(added),
        median(ratios),
        median(cpu)
    );
}
