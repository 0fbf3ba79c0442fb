//! Copying a timeline to a safekeeper that has lost it.

use serde_json::json;
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

use crate::support::{Daemon, SEGMENT_SIZE, START, Wal, append, new_id};

async fn write(daemon: &Daemon, id: TenantTimelineId, wal: &Wal, end: Lsn) {
    let mut proposer = daemon.propose(id).await;
    proposer.vote(1).await;
    proposer.elected(&[(1, START)], START).await;
    proposer.send(&wal.appends(1, START, end, Lsn(0))).await;
    while proposer.ack().await.flush_lsn < end {}
    proposer
        .send(&[append(1, end, wal.slice(end, end), wal.start + 64)])
        .await;
    proposer.ack().await;
}

async fn pull(to: &Daemon, id: TenantTimelineId, from: &[u16]) -> (u16, String) {
    let hosts: Vec<_> = from
        .iter()
        .map(|port| format!("http://127.0.0.1:{port}"))
        .collect();
    let request = json!({"tenant_id": id.tenant_id, "timeline_id": id.timeline_id, "http_hosts": hosts});
    to.http("POST", "/v1/pull_timeline", &request.to_string()).await
}

#[tokio::test]
async fn a_lost_timeline_comes_back_from_the_others() {
    let (one, mut two, mut lost) = (
        Daemon::start(&[]).await,
        Daemon::start(&[]).await,
        Daemon::start(&[]).await,
    );
    let id = new_id();
    let mut wal = Wal::new(START, SEGMENT_SIZE);
    let ends: Vec<Lsn> = (0..120).map(|_| wal.record(40_000)).collect();
    write(&one, id, &wal, ends[80]).await;
    write(&two, id, &wal, ends[119]).await;
    two.propose(id).await.vote(5).await;

    two.kill();
    let (status, text) = pull(&lost, id, &[one.http_port, two.http_port]).await;
    assert_eq!(status, 500);
    assert!(
        text.contains("only 1 of the 2 other safekeepers have answered, 2 must"),
        "{text}"
    );
    assert!(!lost.timeline_dir(id).exists());

    two.restart("").await;
    let (status, text) = pull(&lost, id, &[one.http_port, two.http_port]).await;
    let host = format!("http://127.0.0.1:{}", two.http_port);
    assert_eq!(
        (status, text),
        (200, json!({ "safekeeper_host": host }).to_string())
    );
    let (status, text) = pull(&lost, id, &[one.http_port, two.http_port]).await;
    assert_eq!(status, 500);
    assert!(text.contains("already exists"), "{text}");

    lost.restart("").await;
    let status = lost.status(id).await;
    assert_eq!(status["flush_lsn"], ends[119].to_string());
    assert_eq!(
        status["acceptor_state"]["term"], 5,
        "the highest term that any of them has"
    );
    let mut proposer = lost.propose(id).await;
    assert!(!proposer.vote(5).await.vote_given);
    let vote = proposer.vote(6).await;
    assert!(vote.vote_given && vote.flush_lsn == ends[119]);
    let more = wal.record(100);
    proposer.elected(&[(1, START), (6, ends[119])], ends[119]).await;
    proposer.send(&wal.appends(6, ends[119], more, Lsn(0))).await;
    assert_eq!(proposer.ack().await.flush_lsn, more);
    let mut receiver = lost.replicate(id, START, "wal_proposer_recovery").await;
    receiver.receive_to_end().await;
    assert!(receiver.wal == wal.bytes, "the WAL read back differs");
}

#[tokio::test]
async fn only_segments_can_be_fetched() {
    let daemon = Daemon::start(&["--no-sync"]).await;
    let id = new_id();
    let mut wal = Wal::new(START, SEGMENT_SIZE);
    let end = wal.record(100);
    write(&daemon, id, &wal, end).await;
    let path = |name: &str| format!("{}/file/{name}", crate::support::timeline_path(id));
    assert_eq!(daemon.http("GET", &path("safekeeper.control"), "").await.0, 404);
    assert_eq!(
        daemon.http("GET", &path("..%2F..%2Fsafekeeper.id"), "").await.0,
        404
    );
    assert_eq!(
        daemon.http("GET", &path("000000010000000000000002"), "").await.0,
        404
    );
}
