//! The program between a stock PostgreSQL and safekeepers that keep their WAL in memory.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod cluster;
mod fake_safekeeper;

use std::time::Duration;

use cluster::{Postgres, sync_safekeepers, wait_for};
use fake_safekeeper::FakeSafekeeper;
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use utils::id::{TenantId, TenantTimelineId, TimelineId};
use utils::lsn::Lsn;

/// Three safekeepers and a server, the program not yet running.
struct World {
    runtime: Runtime,
    safekeepers: Vec<FakeSafekeeper>,
    postgres: Postgres,
}

impl World {
    fn new() -> World {
        let id = TenantTimelineId::new(TenantId::generate(), TimelineId::generate());
        let runtime = Runtime::new().unwrap();
        let start = |node| runtime.block_on(FakeSafekeeper::start(id, node));
        let safekeepers: Vec<_> = (1..=3).map(start).collect();
        let addresses: Vec<_> = safekeepers.iter().map(|sk| sk.address.to_string()).collect();
        let postgres = Postgres::start(id, &addresses);
        World {
            runtime,
            safekeepers,
            postgres,
        }
    }

    fn restart_safekeeper(&mut self, index: usize) {
        self.runtime.block_on(self.safekeepers[index].restart());
    }

    fn flushed(&self, index: usize) -> Lsn {
        self.safekeepers[index].flush_lsn()
    }
}

#[test]
fn commits_wait_for_a_quorum_and_laggards_catch_up() {
    let mut world = World::new();
    assert_eq!(sync_safekeepers(&world.postgres.data), "0/0\n");
    let mut proposer = world.postgres.walproposer();
    let streaming = format!("streaming {}", world.postgres.start_lsn);
    assert_eq!(proposer.line(), streaming);
    world
        .postgres
        .sql("CREATE TABLE t (i int); INSERT INTO t SELECT generate_series(1, 1000)");

    // One may be away.
    world.safekeepers[2].stop();
    world
        .postgres
        .sql("INSERT INTO t SELECT generate_series(1, 100000)");
    // Two may not: the commit waits until one is back.
    world.safekeepers[1].stop();
    let mut waiting = world.postgres.sql_in_background("INSERT INTO t VALUES (0)");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(waiting.try_wait().unwrap(), None);
    assert_eq!(world.postgres.sql("SELECT count(*) FROM t WHERE i = 0"), "0");
    world.restart_safekeeper(2);
    assert!(waiting.wait().unwrap().success());
    assert_eq!(world.postgres.sql("SELECT count(*) FROM t WHERE i = 0"), "1");

    world.restart_safekeeper(1);
    let end = world.postgres.flush_lsn();
    wait_for("all to have everything", || {
        (0..3).all(|index| world.flushed(index) >= end)
    });
    let segment = world.postgres.first_segment();
    for safekeeper in &world.safekeepers {
        let (start, wal) = safekeeper.wal();
        assert_eq!(start, world.postgres.start_lsn);
        let offset = start.segment_offset(16 << 20);
        let len = wal.len().min(segment.len() - offset);
        assert!(
            wal[..len] == segment[offset..offset + len],
            "WAL differs from the server's"
        );
    }

    // The server waits at its end until all WAL is on a quorum.
    world.postgres.pg_ctl(&["-w", "-m", "fast", "stop"]);
    assert_eq!(proposer.exit_code(), Some(0));
    assert!(!world.postgres.data.join("walproposer.terms").exists());
    let end = (0..3).map(|index| world.flushed(index)).max().unwrap();
    assert_eq!(sync_safekeepers(&world.postgres.data), format!("{end}\n"));
}

#[test]
fn a_restarted_proposer_goes_on_and_a_newer_one_fences_it() {
    let world = World::new();
    let mut proposer = world.postgres.walproposer();
    proposer.line();
    world
        .postgres
        .sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i");
    proposer.signal(Signal::SIGKILL);
    assert_eq!(proposer.exit_code(), None);

    let mut proposer = world.postgres.walproposer();
    let line = proposer.line();
    let from: Lsn = line.strip_prefix("streaming ").unwrap().parse().unwrap();
    assert!(from > world.postgres.start_lsn, "{line}");
    world.postgres.sql("INSERT INTO t VALUES (0)");

    // Whoever synchronises the safekeepers takes the timeline over.
    let synced: Lsn = sync_safekeepers(&world.postgres.data).trim().parse().unwrap();
    assert!(synced > from);
    assert_eq!(proposer.exit_code(), Some(3));
    let mut waiting = world.postgres.sql_in_background("INSERT INTO t VALUES (1)");
    // Not even a restarted one may go on, and it leaves the newer one alone.
    let mut proposer = world.postgres.walproposer();
    assert_eq!(proposer.exit_code(), Some(3));
    assert_eq!(
        waiting.try_wait().unwrap(),
        None,
        "nothing is acknowledged any more"
    );
    waiting.kill().unwrap();
    waiting.wait().unwrap();
}

#[test]
fn a_server_that_cannot_end_for_want_of_safekeepers_is_not_answered_without_end() {
    let mut world = World::new();
    let mut proposer = world.postgres.walproposer();
    proposer.line();
    world
        .postgres
        .sql("CREATE TABLE t AS SELECT generate_series(1, 1000)");
    for safekeeper in &world.safekeepers {
        safekeeper.stop();
    }
    world.postgres.pg_ctl(&["-W", "-m", "fast", "stop"]);
    // The server asks for a report of its last WAL until it has a good one.
    std::thread::sleep(Duration::from_secs(1));
    let before = proposer.waits();
    std::thread::sleep(Duration::from_secs(2));
    let waits = proposer.waits() - before;
    assert!(waits < 1000, "woken {waits} times in two seconds");
    for index in 0..2 {
        world.restart_safekeeper(index);
    }
    assert_eq!(proposer.exit_code(), Some(0));
}

#[test]
fn stops_when_asked() {
    let world = World::new();
    let mut proposer = world.postgres.walproposer();
    proposer.line();
    world
        .postgres
        .sql("SET synchronous_commit = off; CREATE TABLE t AS SELECT generate_series(1, 1000)");
    let end = world.postgres.flush_lsn();
    proposer.signal(Signal::SIGTERM);
    assert_eq!(proposer.exit_code(), Some(0));
    assert!((0..3).filter(|index| world.flushed(*index) >= end).count() >= 2);
}
