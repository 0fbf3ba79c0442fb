//! Safekeepers that learn from each other through etcd, and go on without it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use utils::lsn::Lsn;

use crate::support::{Daemon, SEGMENT_SIZE, START, Wal, append, free_port, new_id};

struct Etcd(Child);

impl Etcd {
    fn start(dir: &std::path::Path, port: u16) -> Self {
        let url = format!("http://127.0.0.1:{port}");
        let child = Command::new("etcd")
            .arg(format!("--data-dir={}", dir.display()))
            .arg(format!("--listen-client-urls={url}"))
            .arg(format!("--advertise-client-urls={url}"))
            .arg(format!("--listen-peer-urls=http://127.0.0.1:{}", free_port()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Etcd(child)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn commit_lsn_is_learnt_from_peers_and_writing_needs_no_broker() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let etcd = Etcd::start(dir.path(), port);
    let one = Daemon::start(&["--broker-endpoints", &url]).await;
    let two = Daemon::start_with_id(2, &["--broker-endpoint", &url]).await;
    let id = new_id();
    let mut wal = Wal::new(START, SEGMENT_SIZE);
    let ends: Vec<Lsn> = (0..200).map(|_| wal.record(100)).collect();
    let (mut to_one, mut to_two) = (one.propose(id).await, two.propose(id).await);
    for proposer in [&mut to_one, &mut to_two] {
        proposer.vote(1).await;
        proposer.elected(&[(1, START)], START).await;
        proposer.send(&wal.appends(1, START, ends[20], Lsn(0))).await;
        assert_eq!(proposer.ack().await.flush_lsn, ends[20]);
    }
    // Only one of them is told by the proposer.
    to_one
        .send(&[append(1, ends[20], wal.slice(START, START), ends[20])])
        .await;
    to_one.ack().await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while two.status(id).await["commit_lsn"] != ends[20].to_string() {
        assert!(Instant::now() < deadline, "the commit LSN is not learnt");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    drop(etcd);
    let begin = Instant::now();
    for i in 21..200 {
        let record = append(1, ends[i - 1], wal.slice(ends[i - 1], ends[i]), ends[i - 1]);
        to_one.send(&[record]).await;
        assert_eq!(to_one.ack().await.flush_lsn, ends[i]);
    }
    assert!(
        begin.elapsed() < Duration::from_secs(15),
        "writing waits for the broker"
    );
    let _etcd = Etcd::start(dir.path(), port);
    to_two.send(&wal.appends(1, ends[20], ends[199], Lsn(0))).await;
    to_two.ack().await;
    let deadline = Instant::now() + Duration::from_secs(40);
    while two.status(id).await["commit_lsn"] != ends[198].to_string() {
        assert!(Instant::now() < deadline, "the broker is not found again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
