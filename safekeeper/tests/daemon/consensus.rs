//! Elections, appending, truncation, crashes.

use utils::lsn::Lsn;

use crate::support::{Daemon, SEGMENT_SIZE, START, Wal, append, new_id};

#[tokio::test]
async fn a_batch_is_acknowledged_once_and_survives_a_kill() {
    let mut daemon = Daemon::start(&[]).await;
    let id = new_id();
    let mut wal = Wal::new(START, SEGMENT_SIZE);
    let ends: Vec<Lsn> = (0..100).map(|i| wal.record(i * 300)).collect();
    let mut proposer = daemon.propose(id).await;
    let vote = proposer.vote(1).await;
    assert!(vote.vote_given && vote.term_history.entries().is_empty());
    proposer.elected(&[(1, START)], START).await;
    proposer.send(&wal.appends(1, START, ends[50], Lsn(0))).await;
    let mut flushed = Lsn(0);
    while flushed < ends[50] {
        flushed = proposer.ack().await.flush_lsn;
    }
    proposer.send(&wal.appends(1, ends[50], ends[99], ends[50])).await;
    while flushed < ends[99] {
        let ack = proposer.ack().await;
        assert!(ack.flush_lsn >= flushed);
        flushed = ack.flush_lsn;
    }
    // Half of a record: written, and not acknowledged as durable.
    let next = wal.record(1000);
    proposer
        .send(&[append(1, ends[99], wal.slice(ends[99], ends[99] + 100), ends[99])])
        .await;
    let ack = proposer.ack().await;
    assert_eq!((ack.flush_lsn, ack.term.0), (ends[99], 1));
    assert!(next > ends[99]);

    daemon.restart("").await;
    let status = daemon.status(id).await;
    assert_eq!(status["flush_lsn"], ends[99].to_string());
    assert_eq!(status["acceptor_state"]["term"], 1);
    let mut proposer = daemon.propose(id).await;
    let refused = proposer.vote(1).await;
    assert!(!refused.vote_given, "one vote a term, also after a restart");
    let vote = proposer.vote(2).await;
    assert!(vote.vote_given);
    assert_eq!((vote.flush_lsn, vote.timeline_start_lsn), (ends[99], START));
    proposer.elected(&[(1, START), (2, ends[99])], ends[99]).await;
    proposer.send(&wal.appends(2, ends[99], next, ends[99])).await;
    assert_eq!(proposer.ack().await.flush_lsn, next);
    let mut receiver = daemon.replicate(id, START, "wal_proposer_recovery").await;
    let end = receiver.receive_to_end().await;
    assert!(end.contains("recovery finished"), "{end}");
    assert!(receiver.wal == wal.bytes, "the WAL read back differs");
}

#[tokio::test]
async fn a_new_term_fences_the_old_one_and_cuts_off_its_wal() {
    let daemon = Daemon::start(&[]).await;
    let id = new_id();
    let mut old_wal = Wal::new(START, SEGMENT_SIZE);
    let ends: Vec<Lsn> = (0..40).map(|_| old_wal.record(60_000)).collect();
    let mut old = daemon.propose(id).await;
    old.vote(1).await;
    old.elected(&[(1, START)], START).await;
    old.send(&old_wal.appends(1, START, ends[39], ends[3])).await;
    while old.ack().await.flush_lsn < ends[39] {}

    let mut new = daemon.propose(id).await;
    assert_eq!(new.vote(2).await.flush_lsn, ends[39]);
    // The quorum had the WAL only up to record 5.
    new.elected(&[(1, START), (2, ends[5])], ends[5]).await;
    let mut new_wal = Wal::new(ends[5], SEGMENT_SIZE);
    let end = new_wal.record(100);
    new.send(&new_wal.appends(2, ends[5], end, Lsn(0))).await;
    assert_eq!(new.ack().await.flush_lsn, end);

    old.send(&[append(1, ends[39], old_wal.slice(START, START), Lsn(0))])
        .await;
    let fenced = old.ack().await;
    assert_eq!((fenced.term.0, fenced.flush_lsn), (2, Lsn(0)));

    let mut receiver = daemon.replicate(id, START, "wal_proposer_recovery").await;
    receiver.receive_to_end().await;
    let mut want = old_wal.slice(START, ends[5]).to_vec();
    want.extend(&new_wal.bytes);
    assert!(receiver.wal == want, "the WAL read back differs");
    let names: Vec<_> = std::fs::read_dir(daemon.timeline_dir(id))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("0000"))
        .collect();
    assert_eq!(
        names,
        ["000000010000000000000001.partial"],
        "later segments are gone"
    );
}
