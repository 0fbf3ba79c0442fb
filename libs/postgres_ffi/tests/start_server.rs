//! A stock server starts, without recovery, from the segment and control file we make for any LSN.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test binary uses a part of the common helpers")]
mod common;

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use common::Cluster;
use postgres_ffi::v15::control_file::ControlFile;
use postgres_ffi::v15::encode::{ShutdownCheckpoint, WalIdentity, shutdown_checkpoint};
use postgres_ffi::v15::stream::WalStreamDecoder;
use postgres_ffi::v15::{BLCKSZ, WAL_SEGMENT_SIZE};
use utils::lsn::Lsn;

const SETTINGS: &str = "wal_level = replica\nfull_page_writes = off\n";
const SEGMENT: u64 = WAL_SEGMENT_SIZE as u64;
const PAGE: u64 = BLCKSZ as u64;

fn control_file(cluster: &Cluster) -> ControlFile {
    ControlFile::from_file(&fs::read(cluster.data().join("global/pg_control")).unwrap()).unwrap()
}

/// Replaces the WAL of a stopped cluster by one checkpoint record at `lsn`, and points the control file at it.
fn move_to(cluster: &Cluster, lsn: Lsn) -> ShutdownCheckpoint {
    let mut control = control_file(cluster);
    let identity = WalIdentity {
        system_id: control.system_identifier,
        segment_size: WAL_SEGMENT_SIZE,
    };
    let mut checkpoint = control.checkpoint.clone();
    checkpoint.time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let made = shutdown_checkpoint(identity, lsn, control.checkpoint_lsn, &checkpoint);
    control.set_shut_down(made.place.start, made.checkpoint.clone());
    for entry in fs::read_dir(cluster.data().join("pg_wal")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
    for (segment, contents) in &made.segments {
        let path = cluster.segment_path(*segment);
        let name = path.file_name().unwrap().to_str().unwrap();
        cluster.write(&format!("pg_wal/{name}"), contents);
    }
    cluster.write("global/pg_control", &control.to_file());
    made
}

/// From the first segment's start to the end, in one unbroken chain: what the server wrote goes on from our record.
fn check_chain(cluster: &Cluster, made: &ShutdownCheckpoint, lsn: Lsn) {
    let (first, wal) = cluster.wal();
    let mut decoder = WalStreamDecoder::new(lsn);
    decoder.feed(&wal[(lsn.0 - first.0) as usize..]);
    let (end, _) = decoder.next_record().unwrap().unwrap();
    assert_eq!((decoder.record_start(), end), (made.place.start, made.place.end));
    let mut records = 1;
    while let Ok(Some(_)) = decoder.next_record() {
        records += 1;
    }
    let dumped = cluster.waldump(made.place.start);
    assert_eq!(dumped[0].name, "CHECKPOINT_SHUTDOWN");
    assert_eq!(dumped[0].start, made.place.start);
    assert_eq!(dumped.len(), records);
    assert_eq!(control_file(cluster).checkpoint_lsn, decoder.record_start());
}

#[test]
fn a_server_starts_at_any_position() {
    let mut cluster = Cluster::create(SETTINGS);
    cluster.start();
    cluster.sql(
        "postgres",
        "CREATE TABLE t (x int); INSERT INTO t SELECT generate_series(1, 1000)",
    );
    cluster.stop();
    let far = Lsn(0x7_3000_0000);
    let positions = [
        ("mid-page", Lsn(far.0 + 3 * PAGE + 1000)),
        ("start of a page", Lsn(far.0 + SEGMENT + 5 * PAGE)),
        ("behind a page header", Lsn(far.0 + SEGMENT * 2 + 5 * PAGE + 24)),
        ("across a page boundary", Lsn(far.0 + SEGMENT * 3 + 5 * PAGE - 64)),
        ("ending with a page", Lsn(far.0 + SEGMENT * 4 + 5 * PAGE - 120)),
        ("start of a segment", Lsn(far.0 + SEGMENT * 5)),
        ("behind a segment header", Lsn(far.0 + SEGMENT * 6 + 40)),
        ("across a segment boundary", Lsn(far.0 + SEGMENT * 8 - 64)),
        ("ending with a segment", Lsn(far.0 + SEGMENT * 10 - 120)),
        ("last page of a segment", Lsn(far.0 + SEGMENT * 11 - PAGE)),
    ];
    for (round, (what, lsn)) in positions.into_iter().enumerate() {
        let made = move_to(&cluster, lsn);
        println!("{what}: {lsn} -> {:?}", made.place);
        // pg_controldata checks the checksum, and says what the server will believe.
        let control = cluster.run("pg_controldata", &[cluster.data().to_str().unwrap()]);
        assert!(
            !control.contains("WARNING") && control.contains("shut down"),
            "{what}: {control}"
        );
        let dumped = cluster.waldump(made.place.start);
        assert_eq!(dumped.len(), 1, "{what}");
        assert_eq!(
            (dumped[0].start, dumped[0].name.as_str()),
            (made.place.start, "CHECKPOINT_SHUTDOWN")
        );
        cluster.start();
        let rows = 1000 + round;
        assert_eq!(
            cluster.sql("postgres", "SELECT count(*) FROM t").trim(),
            rows.to_string(),
            "{what}"
        );
        cluster.sql("postgres", "INSERT INTO t VALUES (0)");
        let here: Lsn = cluster
            .sql("postgres", "SELECT pg_current_wal_lsn()")
            .trim()
            .parse()
            .unwrap();
        assert!(
            here > made.place.end && here.0 < made.place.end.0 + SEGMENT,
            "{what}: {here}"
        );
        cluster.stop();
        check_chain(&cluster, &made, lsn);
    }
}
