//! Streaming to pageservers and standbys.

use std::time::Duration;

use bytes::BytesMut;
use pq_proto::replication::{ReplicationMessage, StandbyMessage};
use safekeeper_api::protocol::PageserverFeedback;
use utils::lsn::Lsn;

use crate::support::{Daemon, SEGMENT_SIZE, SYSTEM_ID, Wal, append, greeting_with, new_id, run_pg};

const START: Lsn = Lsn(SEGMENT_SIZE as u64 * 3 + 8192 * 7 + 800);

fn feedback(applied: Lsn) -> StandbyMessage {
    let mut raw = BytesMut::new();
    let feedback = PageserverFeedback {
        current_timeline_size: 77,
        ps_writelsn: applied,
        ps_flushlsn: applied,
        ps_applylsn: applied,
        ps_replytime: 1,
    };
    feedback.encode(&mut raw);
    StandbyMessage::PageserverFeedback(raw.freeze())
}

#[tokio::test]
async fn committed_wal_is_streamed_as_it_comes() {
    let daemon = Daemon::start(&[]).await;
    let id = new_id();
    let mut wal = Wal::new(START, SEGMENT_SIZE);
    let ends: Vec<Lsn> = (0..300).map(|i| wal.record(i * 40)).collect();
    let mut proposer = daemon.propose(id).await;
    proposer.vote(1).await;
    proposer.elected(&[(1, START)], START).await;
    proposer.send(&wal.appends(1, START, ends[200], ends[100])).await;
    while proposer.ack().await.flush_lsn < ends[200] {}

    let mut receiver = daemon.replicate(id, START, "pageserver").await;
    receiver.receive((ends[100] - START) as usize).await;
    assert_eq!(
        receiver.wal.len() as u64,
        ends[100] - START,
        "only what is committed"
    );
    // Idle: a keepalive that asks for an answer and tells how far WAL is committed.
    let keepalive = receiver.next().await.unwrap();
    assert!(
        matches!(keepalive, ReplicationMessage::Keepalive { end, reply_requested: true, .. } if end == ends[100]),
        "{keepalive:?}"
    );
    receiver.send(&feedback(ends[90])).await;
    // The proposer learns of it though it appends nothing.
    let ack = proposer.ack().await;
    assert_eq!(ack.flush_lsn, ends[200]);
    assert_eq!(
        ack.pageserver_feedback.map(|told| told.ps_writelsn),
        Some(ends[90])
    );
    for (i, end) in ends.iter().enumerate().skip(201).take(50) {
        let begin = ends[i - 1];
        proposer
            .send(&[append(1, begin, wal.slice(begin, *end), *end)])
            .await;
        assert_eq!(proposer.ack().await.flush_lsn, *end);
    }
    proposer
        .send(&[append(1, ends[250], wal.slice(START, START), ends[250])])
        .await;
    let ack = proposer.ack().await;
    let told = ack.pageserver_feedback.expect("the pageserver has reported");
    assert_eq!((told.current_timeline_size, told.ps_applylsn), (77, ends[90]));
    receiver.receive((ends[250] - START) as usize).await;
    assert!(
        receiver.wal == wal.slice(START, ends[250]),
        "the WAL received differs"
    );

    // With the compute gone, a receiver that has everything durable elsewhere is sent away.
    drop(proposer);
    receiver.send(&feedback(ends[250])).await;
    let end = receiver.receive_to_end().await;
    let want = format!(
        "ending streaming to Some(\"pageserver\") at {}, receiver is caughtup and there is no computes",
        ends[250]
    );
    assert!(end.contains(&want), "{end}");
}

#[tokio::test]
async fn a_read_may_start_at_any_position() {
    let daemon = Daemon::start(&["--no-sync"]).await;
    let id = new_id();
    let wal = Wal::of_records(START, 30_000, SEGMENT_SIZE * 2);
    let end = wal.end();
    let mut proposer = daemon.propose(id).await;
    proposer.elected(&[(1, START)], START).await;
    proposer.commit(&wal).await;
    for offset in [0, 1, 8191, 300_000, 1_000_000, 1_900_000] {
        let begin = START + offset;
        let mut receiver = daemon.replicate(id, begin, "pageserver").await;
        receiver.receive((end - begin) as usize).await;
        assert!(receiver.wal == wal.slice(begin, end), "from {begin}");
    }
    // Before the timeline's start the segment has page headers, before the segment nothing.
    let mut receiver = daemon
        .replicate(id, START.segment_start(SEGMENT_SIZE), "standby")
        .await;
    receiver.receive(100_000).await;
    let mut receiver = daemon
        .replicate(id, Lsn(SEGMENT_SIZE as u64 * 2), "pageserver")
        .await;
    let error = receiver.receive_to_end().await;
    assert!(
        error.contains("which is before the start of the timeline"),
        "{error}"
    );
}

#[tokio::test]
async fn identify_system_tells_commit_or_flush() {
    let daemon = Daemon::start(&["--no-sync"]).await;
    let id = new_id();
    let unknown = daemon
        .client(id)
        .await
        .query("IDENTIFY_SYSTEM")
        .await
        .unwrap_err()
        .to_string();
    assert!(unknown.contains("was not found in global map"), "{unknown}");
    let mut wal = Wal::new(START, SEGMENT_SIZE);
    let (one, two) = (wal.record(10), wal.record(10));
    let mut proposer = daemon.propose(id).await;
    proposer.elected(&[(1, START)], START).await;
    proposer
        .send(&[append(1, START, wal.slice(START, two), one)])
        .await;
    proposer.ack().await;
    let mut client = daemon.client(id).await;
    let row = client.query("IDENTIFY_SYSTEM").await.unwrap();
    assert_eq!(row.first("systemid"), Some(SYSTEM_ID.to_string().as_str()));
    assert_eq!(row.first("timeline"), Some("1"));
    assert_eq!(row.first("xlogpos"), Some(one.to_string().as_str()));
    assert_eq!(row.tag, "IDENTIFY_SYSTEM");
    assert_eq!(
        client.query("SET datestyle TO 'ISO'").await.unwrap().tag,
        "SELECT 1"
    );
    let error = client.query("SELECT 1").await.unwrap_err().to_string();
    assert!(error.contains("unsupported command SELECT 1"), "{error}");
}

#[tokio::test]
async fn pg_waldump_reads_a_segment_of_a_timeline_that_starts_within_it() {
    const SEGMENT: usize = 16 * 1024 * 1024;
    let daemon = Daemon::start(&["--no-sync"]).await;
    for start in [
        Lsn(SEGMENT as u64 + 8192 * 100 + 1000),
        Lsn(SEGMENT as u64 + 8192 * 3),
        Lsn(SEGMENT as u64 + 40),
        Lsn(SEGMENT as u64 + 8192 + 24),
    ] {
        let id = new_id();
        let mut wal = Wal::new(start, SEGMENT);
        for len in 0..200 {
            wal.record(len * 77);
        }
        let mut proposer = daemon.propose_ungreeted(id).await;
        proposer.send(&[greeting_with(id, SEGMENT)]).await;
        proposer.receive().await;
        proposer.elected(&[(1, start)], start).await;
        proposer.send(&wal.appends(1, start, wal.end(), Lsn(0))).await;
        while proposer.ack().await.flush_lsn < wal.end() {}
        let segment = daemon.timeline_dir(id).join("000000010000000000000001.partial");
        let copy = daemon.timeline_dir(id).join("000000010000000000000001");
        std::fs::copy(&segment, &copy).unwrap();
        let (_, text) = run_pg("pg_waldump", &[copy.to_str().unwrap()]);
        let records = text
            .lines()
            .filter(|line| line.starts_with("rmgr: LogicalMessage"))
            .count();
        assert_eq!(records, 200, "from {start}: {text}");
        std::fs::remove_file(copy).unwrap();
    }
}

#[tokio::test]
async fn a_receiver_that_talks_nonsense_is_told_so() {
    let daemon = Daemon::start(&["--no-sync"]).await;
    let id = new_id();
    let mut wal = Wal::new(START, SEGMENT_SIZE);
    let end = wal.record(10);
    let mut proposer = daemon.propose(id).await;
    proposer.elected(&[(1, START)], START).await;
    proposer
        .send(&[append(1, START, wal.slice(START, end), end)])
        .await;
    proposer.ack().await;
    for raw in [&b"?"[..], b"z\0\0\0\0\0\0\0\x02\x05", b"h\0"] {
        let mut receiver = daemon.replicate(id, START, "pageserver").await;
        receiver.send_raw(raw).await;
        let error = receiver.receive_to_end().await;
        assert!(error.contains("malformed"), "{error}");
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    daemon.status(id).await;
}
