//! Crashes at every durable step, failing and full disks, damaged files.

use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

use crate::support::{Daemon, Proposer, SEGMENT_SIZE, START, Wal, append, new_id};

/// Every place around a durable step.
const FAILPOINTS: [&str; 14] = [
    "sk-timeline-create-in-temp",
    "sk-timeline-created",
    "sk-before-control-file-write",
    "sk-after-control-file-write",
    "sk-before-wal-write",
    "sk-after-wal-write",
    "sk-before-wal-flush",
    "sk-after-wal-flush",
    "sk-before-segment-create",
    "sk-after-segment-create",
    "sk-before-segment-finish",
    "sk-after-segment-finish",
    "sk-before-wal-truncate",
    "sk-after-wal-truncate",
];

/// What a proposer was told, across crashes.
#[derive(Default)]
struct Told {
    term: u64,
    /// Acknowledged as durable, and not cut off since.
    flush_lsn: Lsn,
    /// What the proposer has declared final.
    commit_lsn: Lsn,
}

/// One life of a proposer: is elected in the next term, appends, and is cut off by a new one that goes on a
/// little further back. Ends with the first error.
async fn live(
    daemon: &Daemon,
    id: TenantTimelineId,
    wal: &Wal,
    ends: &[Lsn],
    told: &mut Told,
) -> Result<(), postgres_client::Error> {
    use safekeeper_api::protocol::{
        AcceptorMessage, ProposerElected, ProposerId, ProposerMessage, Term, VoteRequest,
    };
    let mut proposer = daemon.propose_ungreeted(id).await;
    proposer.try_send(&crate::support::greeting(id)).await?;
    let AcceptorMessage::Greeting(greeted) = proposer.try_receive().await? else {
        panic!("no greeting");
    };
    assert!(greeted.term.0 >= told.term, "the term went back");
    let term = Term(greeted.term.0 + 1);
    let vote = VoteRequest {
        term,
        proposer_id: ProposerId([9; 16]),
    };
    proposer.try_send(&ProposerMessage::VoteRequest(vote)).await?;
    let AcceptorMessage::VoteResponse(vote) = proposer.try_receive().await? else {
        panic!("no vote");
    };
    assert!(
        vote.vote_given && vote.flush_lsn >= told.flush_lsn,
        "acknowledged WAL is lost"
    );
    told.term = term.0;
    // The acknowledged WAL is kept up to the commit LSN only: what is behind may be cut off.
    let flush_lsn = vote.flush_lsn.max(START);
    let place = ends.partition_point(|end| *end < flush_lsn);
    let start = ends[place.saturating_sub(3)].max(told.commit_lsn).min(flush_lsn);
    let mut entries: Vec<_> = vote
        .term_history
        .entries()
        .iter()
        .map(|entry| (entry.term.0, entry.lsn))
        .collect();
    entries.retain(|(_, lsn)| *lsn <= start);
    entries.push((term.0, start));
    told.flush_lsn = told.flush_lsn.min(start);
    let elected = ProposerElected {
        term,
        start_streaming_at: start,
        term_history: crate::support::history(&entries),
        timeline_start_lsn: START,
    };
    proposer.try_send(&ProposerMessage::Elected(elected)).await?;
    append_some(&mut proposer, wal, ends, term.0, start, told).await
}

async fn append_some(
    proposer: &mut Proposer,
    wal: &Wal,
    ends: &[Lsn],
    term: u64,
    start: Lsn,
    told: &mut Told,
) -> Result<(), postgres_client::Error> {
    use safekeeper_api::protocol::AcceptorMessage;
    let first = ends.partition_point(|end| *end <= start);
    let mut at = start;
    for (i, end) in ends.iter().skip(first).take(12).enumerate() {
        // Only now and then is anything committed, so that there is something to be cut off.
        if i % 5 == 0 {
            told.commit_lsn = told.commit_lsn.max(told.flush_lsn);
        }
        proposer
            .try_send(&append(term, at, wal.slice(at, *end), told.commit_lsn))
            .await?;
        let AcceptorMessage::AppendResponse(ack) = proposer.try_receive().await? else {
            panic!("no answer to an append request");
        };
        assert_eq!(ack.term.0, term);
        told.flush_lsn = ack.flush_lsn;
        assert!(ack.commit_lsn <= told.commit_lsn.max(START));
        at = *end;
    }
    Ok(())
}

fn some_wal() -> (Wal, Vec<Lsn>) {
    let mut wal = Wal::new(START, SEGMENT_SIZE);
    let mut ends = vec![START];
    ends.extend((0..150).map(|_| wal.record(90_000)));
    (wal, ends)
}

/// What the disk holds is a beginning of what was appended, and reaches what was acknowledged.
async fn check_wal(daemon: &Daemon, id: TenantTimelineId, wal: &Wal, told: &Told) {
    let status = daemon.status(id).await;
    let flush_lsn: Lsn = status["flush_lsn"].as_str().unwrap().parse().unwrap();
    assert!(flush_lsn >= told.flush_lsn, "{flush_lsn} {}", told.flush_lsn);
    assert!(status["acceptor_state"]["term"].as_u64().unwrap() >= told.term);
    if flush_lsn > START {
        let mut receiver = daemon.replicate(id, START, "wal_proposer_recovery").await;
        receiver.receive_to_end().await;
        assert!(
            receiver.wal == wal.slice(START, flush_lsn),
            "the WAL read back differs"
        );
    }
}

#[tokio::test]
async fn a_kill_at_any_durable_step_loses_nothing_acknowledged() {
    let (wal, ends) = some_wal();
    let mut daemon = Daemon::start(&[]).await;
    let id = new_id();
    let mut told = Told::default();
    let mut died = 0;
    for round in 0..2 {
        for failpoint in FAILPOINTS {
            // Some lives pass the place before it kills: the second round finds another state.
            daemon.restart(&format!("{failpoint}=exit")).await;
            for _ in 0..3 {
                if live(&daemon, id, &wal, &ends, &mut told).await.is_err() {
                    break;
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            if !daemon.is_running() {
                died += 1;
            }
            daemon.restart("").await;
            live(&daemon, id, &wal, &ends, &mut told).await.unwrap();
            check_wal(&daemon, id, &wal, &told).await;
            if round == 0 && failpoint == "sk-timeline-created" {
                assert!(died >= 1, "the failpoints have no effect");
            }
        }
    }
    assert!(died >= 20, "only {died} of the lives ended at their failpoint");
}

#[tokio::test]
async fn a_disk_that_fails_for_a_while_is_recovered_from_without_restart() {
    let (wal, ends) = some_wal();
    for failpoint in FAILPOINTS.iter().skip(2) {
        let mut daemon = Daemon::start(&[]).await;
        let id = new_id();
        let mut told = Told::default();
        live(&daemon, id, &wal, &ends, &mut told).await.unwrap();
        daemon.restart(&format!("{failpoint}=2*off->3*return->off")).await;
        let mut failures = 0;
        for _ in 0..8 {
            failures += usize::from(live(&daemon, id, &wal, &ends, &mut told).await.is_err());
        }
        live(&daemon, id, &wal, &ends, &mut told).await.unwrap();
        assert!(failures > 0, "{failpoint} was never reached");
        check_wal(&daemon, id, &wal, &told).await;
        assert!(daemon.is_running());
    }
}

#[tokio::test]
async fn a_full_disk_stops_acknowledging_and_heals_by_itself() {
    let (wal, ends) = some_wal();
    let mut daemon = Daemon::start(&[]).await;
    let id = new_id();
    let mut told = Told::default();
    live(&daemon, id, &wal, &ends, &mut told).await.unwrap();
    daemon.restart("sk-disk-full=60*return->off").await;
    let mut refused = 0;
    for _ in 0..80 {
        if let Err(error) = live(&daemon, id, &wal, &ends, &mut told).await {
            assert!(error.to_string().contains("cannot create WAL segment"), "{error}");
            refused += 1;
        }
    }
    assert!(refused > 0);
    live(&daemon, id, &wal, &ends, &mut told).await.unwrap();
    check_wal(&daemon, id, &wal, &told).await;
}

#[tokio::test]
async fn damaged_files_are_named_and_the_other_timelines_served() {
    let (wal, ends) = some_wal();
    let mut daemon = Daemon::start(&[]).await;
    let ids = [new_id(), new_id(), new_id(), new_id()];
    let mut told = Told::default();
    for id in ids {
        told = Told::default();
        for _ in 0..5 {
            live(&daemon, id, &wal, &ends, &mut told).await.unwrap();
        }
    }
    let control = daemon.get_json("/v1/debug_dump?dump_control_file=true").await;
    let persisted = Lsn(control["timelines"][0]["control_file"]["commit_lsn"]
        .as_u64()
        .unwrap());
    assert!(
        persisted > Lsn(SEGMENT_SIZE as u64 * 3),
        "{persisted} is in the first segments"
    );
    daemon.kill();
    let flip = |path: std::path::PathBuf, at: usize| {
        let mut raw = std::fs::read(&path).unwrap();
        raw[at] ^= 4;
        std::fs::write(&path, raw).unwrap();
    };
    flip(daemon.timeline_dir(ids[0]).join("safekeeper.control"), 60);
    // Before the persisted commit LSN, in its own segment and in an older one.
    let dir = daemon.timeline_dir(ids[1]);
    let name = format!("0000000100000000{:08X}", persisted.segment_number(SEGMENT_SIZE));
    let last = [dir.join(&name), dir.join(name.clone() + ".partial")]
        .into_iter()
        .find(|path| path.exists());
    flip(last.unwrap(), persisted.segment_offset(SEGMENT_SIZE) - 20_000);
    flip(
        daemon.timeline_dir(ids[2]).join("000000010000000000000001"),
        500_000,
    );

    daemon.restart("").await;
    for (id, want) in [
        (ids[0], ["safekeeper.control", "checksum mismatch"]),
        (ids[1], [name.as_str(), "is damaged"]),
    ] {
        let (status, text) = daemon.http("GET", &crate::support::timeline_path(id), "").await;
        assert_eq!(status, 500);
        assert!(want.iter().all(|want| text.contains(want)), "{text}");
        let error = daemon
            .client(id)
            .await
            .query("IDENTIFY_SYSTEM")
            .await
            .unwrap_err()
            .to_string();
        assert!(want.iter().all(|want| error.contains(want)), "{error}");
    }
    let mut receiver = daemon.replicate(ids[2], START, "pageserver").await;
    let error = receiver.receive_to_end().await;
    assert!(error.contains("000000010000000000000001 is damaged"), "{error}");
    live(&daemon, ids[3], &wal, &ends, &mut told).await.unwrap();
    check_wal(&daemon, ids[3], &wal, &told).await;
}

/// Waits until the daemon has gone at its failpoint.
async fn wait_for_end(daemon: &mut Daemon) {
    for _ in 0..500 {
        if !daemon.is_running() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the failpoint was not reached");
}

#[tokio::test]
async fn a_truncation_interrupted_between_its_steps_is_finished_by_the_next() {
    let (wal, ends) = some_wal();
    for failpoint in ["sk-truncate-after-remove", "sk-truncate-after-clear"] {
        let mut daemon = Daemon::start(&[]).await;
        let id = new_id();
        let mut proposer = daemon.propose(id).await;
        proposer.vote(1).await;
        proposer.elected(&[(1, START)], START).await;
        // Several segments, of which the next term wants a part of the first.
        proposer.send(&wal.appends(1, START, ends[40], ends[3])).await;
        while proposer.ack().await.flush_lsn < ends[40] {}

        daemon.restart(&format!("{failpoint}=exit")).await;
        let mut proposer = daemon.propose(id).await;
        assert_eq!(proposer.vote(2).await.flush_lsn, ends[40]);
        proposer.elected(&[(1, START), (2, ends[5])], ends[5]).await;
        wait_for_end(&mut daemon).await;

        daemon.restart("").await;
        let mut proposer = daemon.propose(id).await;
        let vote = proposer.vote(3).await;
        assert!(
            (ends[5]..ends[40]).contains(&vote.flush_lsn),
            "{failpoint}: {}",
            vote.flush_lsn
        );
        let old = crate::support::history(&[(1, START)]);
        assert_eq!(vote.term_history, old, "no WAL passes for that of term 2");
        proposer.elected(&[(1, START), (3, ends[5])], ends[5]).await;
        proposer
            .send(&[append(3, ends[5], wal.slice(ends[5], ends[6]), ends[5])])
            .await;
        assert_eq!(proposer.ack().await.flush_lsn, ends[6]);

        // The same WAL as before: had any of it been left behind the new end, it would be found now.
        daemon.restart("").await;
        let mut proposer = daemon.propose(id).await;
        assert_eq!(proposer.vote(4).await.flush_lsn, ends[6], "{failpoint}");
    }
}
