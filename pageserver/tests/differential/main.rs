//! The proof of ingest, redo, import and base backup: real PostgreSQL servers.
//!
//! A new cluster is imported; a server started from its full backup runs a workload; its WAL is ingested; then
//! every relation, SLRU, relation map and prepared transaction in the timeline must be what the server has on disk,
//! and the counters what its last checkpoint says. A server started from a full backup of the result must hold the same
//! database. With other settings, the whole goes round again on that server.

// All of this is a test; the lint's own exemption knows only functions marked as one.
#![allow(clippy::unwrap_used)]

mod compare;
mod layers;
mod mask;
mod server;

use std::path::Path;
use std::sync::Arc;

use pageserver::basebackup::{self, BackupKind, BackupSpec};
use pageserver::import::{ClusterTemplate, ImportError, Initdb, import_base_backup, import_wal};
use pageserver::ingest::WalIngest;
use pageserver::pgdatadir;
use pageserver::timeline::memory_store::MemoryStore;
use postgres_ffi::c_struct::CStruct;
use postgres_ffi::v15::checkpoint::CheckPoint;
use postgres_ffi::v15::stream::WalStreamDecoder;
use utils::lsn::{Lsn, RecordLsn};

use self::compare::{Catalog, Report, compare};
use self::server::Server;

const WORKLOAD: &str = include_str!("workload.sql");
const CHURN: &str = include_str!("churn.sql");

/// What the churn needs, without the rest of the workload.
const TABLES_OF_CHURN: &str = "
CREATE TABLE heap (id int PRIMARY KEY, k int, filler text, big text);
CREATE INDEX heap_k ON heap (k);
INSERT INTO heap SELECT i, i, repeat('x', 100), NULL FROM generate_series(1, 5000) i;
CREATE TABLE upsert (id int PRIMARY KEY, n int);
CREATE SEQUENCE counted;
CREATE TABLE locked (id int PRIMARY KEY, n int);
INSERT INTO locked SELECT i, 0 FROM generate_series(1, 400) i;
CREATE TABLE locker (id int REFERENCES locked);
";

/// Every user table's contents in one line each, and whether its indexes agree with it.
const CHECKSUMS: &str = "
SELECT format('SELECT %L, count(*), md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM %s t', oid::regclass, oid::regclass)
FROM pg_class WHERE relkind IN ('r', 'm') AND relpersistence = 'p' AND oid >= 16384
AND relname <> 'locker' ORDER BY oid::regclass::text \\gexec
";
const CHECK_INDEXES: &str = "
SELECT count(bt_index_check(c.oid, true)) > 0
FROM pg_class c JOIN pg_am a ON a.oid = c.relam JOIN pg_index i ON i.indexrelid = c.oid
WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid;
SELECT count(*) FROM pg_class c, LATERAL pg_check_visible(c.oid) WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p';
SELECT count(*) FROM pg_class c, LATERAL pg_check_frozen(c.oid) WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p';
";

/// Databases that the workloads make with strategy wal_log.
const COPIED_BY_LOG: [&str; 2] = ["by_log", "second"];

fn initdb() -> Initdb {
    Initdb {
        bin_dir: server::BIN_DIR.into(),
        lib_dir: None,
        account: server::ACCOUNT.to_owned(),
        superuser: server::SUPERUSER.to_owned(),
    }
}

fn template(workdir: &Path) -> ClusterTemplate {
    ClusterTemplate::new(workdir, initdb())
}

async fn full_backup(store: &MemoryStore, at: RecordLsn) -> Vec<u8> {
    let mut archive = Vec::new();
    let spec = BackupSpec {
        lsn: at.last,
        prev_lsn: at.prev,
        kind: BackupKind::Full,
        own_wal: Lsn::INVALID,
    };
    basebackup::write(store, spec, &mut archive).await.unwrap();
    archive
}

/// Access methods of all relations of all databases.
fn catalog(server: &Server) -> Catalog {
    let mut catalog = Catalog::default();
    let databases = server.psql(
        "postgres",
        "SELECT oid || ' ' || datname FROM pg_database WHERE datallowconn",
    );
    for line in databases.lines() {
        let (oid, database) = line.split_once(' ').unwrap();
        if COPIED_BY_LOG.contains(&database) {
            catalog.copied_by_log.insert(oid.parse().unwrap());
        }
        let found = server.psql(
            database,
            "SELECT pg_relation_filepath(c.oid) || ' ' || coalesce(a.amname, c.relkind::text)
             FROM pg_class c LEFT JOIN pg_am a ON a.oid = c.relam WHERE pg_relation_filepath(c.oid) IS NOT NULL",
        );
        catalog.methods.extend(found.lines().map(|line| {
            let (path, method) = line.split_once(' ').unwrap();
            (path.to_owned(), method.to_owned())
        }));
    }
    catalog
}

/// Ingests the WAL of a stopped server; before its last record, the shutdown checkpoint, compares the counters.
async fn ingest(server: &Server, store: &Arc<MemoryStore>, from: RecordLsn) -> RecordLsn {
    let last_checkpoint = server.control_file();
    let mut decoder = WalStreamDecoder::new(from.last);
    decoder.feed_bytes(server.wal_from(from.last).into());
    let mut ingest = WalIngest::new(Arc::clone(store), from).await.unwrap();
    while ingest.at().prev < last_checkpoint.checkpoint_lsn {
        let (last, raw) = decoder
            .next_record()
            .unwrap()
            .expect("the WAL reaches the last checkpoint");
        let record = RecordLsn {
            last,
            prev: decoder.record_start(),
        };
        if record.prev == last_checkpoint.checkpoint_lsn {
            ingest.commit().await.unwrap();
            let ours = pgdatadir::checkpoint(&**store, ingest.at().last).await.unwrap();
            check_counters(&CheckPoint::decode(&ours).unwrap(), &last_checkpoint.checkpoint);
        }
        ingest.ingest_record(record, raw).await.unwrap();
    }
    ingest.commit().await.unwrap();
    let size = pgdatadir::logical_size(&**store, ingest.at().last).await.unwrap();
    let before = pgdatadir::logical_size(&**store, from.last).await.unwrap();
    assert_eq!(
        before as i64 + ingest.take_grown_blocks() * 8192,
        size as i64,
        "logical size"
    );
    ingest.at()
}

/// The counters followed from the WAL, beside those the server had when it shut down.
fn check_counters(ours: &CheckPoint, server: &CheckPoint) {
    assert_eq!(ours.next_xid, server.next_xid, "next transaction id");
    assert_eq!(ours.next_multi, server.next_multi, "next multixact");
    assert_eq!(ours.next_multi_offset, server.next_multi_offset, "next member");
    assert_eq!(
        (ours.oldest_xid, ours.oldest_multi),
        (server.oldest_xid, server.oldest_multi)
    );
    // OIDs are taken from the counter in blocks, which a crash loses and an orderly shutdown gives back.
    assert!(
        (server.next_oid..=server.next_oid + 8192).contains(&ours.next_oid),
        "next OID {}",
        ours.next_oid
    );
}

/// Record boundaries with the contents of the database there.
struct Moment {
    lsn: Lsn,
    checksums: String,
}

/// Runs a workload, stops the server, ingests and compares.
async fn round(
    server: &mut Server,
    store: &Arc<MemoryStore>,
    from: RecordLsn,
    run: impl FnOnce(&Server) -> Option<Moment>,
) -> (RecordLsn, Option<Moment>, Report) {
    server.start();
    let moment = run(server);
    let catalog = catalog(server);
    server.stop();
    let at = ingest(server, store, from).await;
    let report = compare(&server.pgdata(), store, at.last, &catalog).await;
    (at, moment, report)
}

fn workload(server: &Server) -> Option<Moment> {
    server.psql("postgres", WORKLOAD);
    server.pgbench(CHURN, 100);
    // Nothing may write between the reading of the contents and of the position: autovacuum is off by setting.
    let checksums = server.psql("postgres", CHECKSUMS);
    let lsn = server
        .psql("postgres", "SELECT pg_current_wal_insert_lsn()")
        .trim()
        .parse()
        .unwrap();
    server.psql(
        "postgres",
        "UPDATE heap SET k = -1; DROP TABLE copied; VACUUM FULL multi; DROP DATABASE by_file;",
    );
    Some(Moment { lsn, checksums })
}

fn second_workload(server: &Server) -> Option<Moment> {
    server.psql(
        "postgres",
        "COMMIT PREPARED 'left 2';
         ROLLBACK PREPARED 'left 1';
         INSERT INTO heap SELECT i, i, 'second', NULL FROM generate_series(200001, 203000) i;
         CREATE TABLE second AS TABLE heap;
         CREATE INDEX ON second (k);
         DELETE FROM heap WHERE id % 2 = 0;
         INSERT INTO kinds SELECT i, point(i, i), int4range(i, i + 1), i::text, ARRAY[i % 5, i] FROM generate_series(20001, 23000) i;
         DELETE FROM kinds WHERE id % 4 = 0;
         VACUUM kinds;
         VACUUM FREEZE heap;
         VACUUM FREEZE locked;
         CREATE DATABASE second TEMPLATE by_log;",
    );
    server.pgbench(CHURN, 50);
    None
}

fn assert_same(report: &Report, what: &str) {
    println!(
        "{what}: {} pages of {} relations, {} SLRU pages, {} relation maps, {} prepared transactions",
        report.pages, report.relations, report.slru_pages, report.relmaps, report.prepared
    );
    let first: Vec<&String> = report.differences.iter().take(40).collect();
    assert!(
        first.is_empty(),
        "{what}: {} differences, such as {first:#?}",
        report.differences.len()
    );
}

fn assert_same_lines(first: &[String], second: &[String]) {
    let differs = first.iter().zip(second).position(|(a, b)| a != b);
    let differs = differs.map(|at| (&first[at], &second[at]));
    assert!(
        first.len() == second.len() && differs.is_none(),
        "{}, {} lines: {differs:?}",
        first.len(),
        second.len()
    );
    assert!(first.len() > 10_000, "a dump of {} lines", first.len());
}

const SETTINGS: &str = "autovacuum = off\nwal_level = replica\nfull_page_writes = off\n";
const OTHER_SETTINGS: &str = "autovacuum = off\nwal_level = logical\nfull_page_writes = on\nwal_compression = lz4\ntrack_commit_timestamp = on\n\
     wal_consistency_checking = 'all'\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ingested_is_what_the_server_has() {
    let directory = tempfile::Builder::new()
        .prefix("differential-")
        .tempdir_in("/tmp")
        .unwrap();
    std::fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let store = Arc::new(MemoryStore::default());
    let start = template(directory.path())
        .import(Arc::clone(&store))
        .await
        .unwrap();

    let mut first = Server::unpack(
        directory.path().join("first"),
        &full_backup(&store, start).await,
        SETTINGS,
    );
    let (at, moment, report) = round(&mut first, &store, start, workload).await;
    assert_same(&report, "first round");
    assert!(report.pages > 3000 && report.slru_pages > 5 && report.prepared == 2 && report.relmaps >= 6);

    let moment = moment.unwrap();
    let (workdir, wal) = (directory.path().join("pageserver"), first.wal_from(start.last));
    std::fs::create_dir(&workdir).unwrap();
    let lsns = [start.last, moment.lsn, at.last];
    let compared = layers::compare_with_layers(&workdir, &store, (start, at), wal, &lsns).await;
    println!("layers: {compared} values");

    let archive = full_backup(&store, at).await;
    let mut second = Server::unpack(directory.path().join("second"), &archive, OTHER_SETTINGS);
    first.start();
    second.start();
    assert_same_lines(&first.dump(), &second.dump());
    assert_eq!(
        second.psql("postgres", CHECK_INDEXES).lines().collect::<Vec<_>>(),
        ["t", "0", "0"]
    );
    first.stop();
    second.stop();
    // Both wrote a little of their own: the second one's WAL is the timeline's.
    let (_, _, report) = round(&mut second, &store, at, second_workload).await;
    assert_same(&report, "second round");
    for server in [&first, &second] {
        assert!(
            !server.log().contains("PANIC") && !server.log().contains("WARNING"),
            "{}",
            server.log()
        );
    }

    let archive = full_backup(
        &store,
        RecordLsn {
            last: moment.lsn,
            prev: Lsn(0),
        },
    )
    .await;
    let mut past = Server::unpack(directory.path().join("past"), &archive, SETTINGS);
    past.start();
    assert_eq!(past.psql("postgres", CHECKSUMS), moment.checksums);
    past.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_servers_backup_and_its_wal_are_imported() {
    let directory = tempfile::Builder::new()
        .prefix("differential-")
        .tempdir_in("/tmp")
        .unwrap();
    std::fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let origin = Arc::new(MemoryStore::default());
    let start = template(directory.path())
        .import(Arc::clone(&origin))
        .await
        .unwrap();
    let archive = full_backup(&origin, start).await;
    // Pages that were torn by the copying are whole again after the WAL only with page images in it.
    let settings = "autovacuum = off\nfull_page_writes = on\n";
    let mut server = Server::unpack(directory.path().join("running"), &archive, settings);
    server.start();
    server.psql("postgres", TABLES_OF_CHURN);
    let (base, from) = std::thread::scope(|scope| {
        let writers = scope.spawn(|| server.pgbench(CHURN, 150));
        let backup = server.pg_basebackup();
        writers.join().unwrap();
        backup
    });
    let catalog = catalog(&server);
    server.stop();

    let store = Arc::new(MemoryStore::default());
    let at = import_base_backup(Arc::clone(&store), from, &mut &base[..])
        .await
        .unwrap();
    assert_eq!(at.last, from);
    let end = end_of_shutdown(&server);
    let wal = server.wal_archive(from);
    let beyond = import_wal(Arc::clone(&store), at, end + 8, &mut &wal[..]).await;
    assert!(matches!(beyond, Err(ImportError::WalEnds { .. })), "{beyond:?}");
    let store = Arc::new(MemoryStore::default());
    let at = import_base_backup(Arc::clone(&store), from, &mut &base[..])
        .await
        .unwrap();
    let at = import_wal(Arc::clone(&store), at, end, &mut &wal[..])
        .await
        .unwrap();
    let report = compare(&server.pgdata(), &store, at.last, &catalog).await;
    assert_same(&report, "imported backup");
    assert!(report.pages > 2000);
}

/// End of the shutdown checkpoint record of a stopped server.
fn end_of_shutdown(server: &Server) -> Lsn {
    let start = server.control_file().checkpoint_lsn;
    let mut decoder = WalStreamDecoder::new(start);
    decoder.feed_bytes(server.wal_from(start).into());
    decoder.next_record().unwrap().unwrap().0
}

#[tokio::test]
async fn a_second_cluster_needs_no_initdb_and_is_another_one() {
    let directory = tempfile::tempdir().unwrap();
    let made = template(directory.path());
    let mut initdb = self::initdb();
    initdb.bin_dir = directory.path().join("no programs");
    let kept = ClusterTemplate::new(directory.path(), initdb);
    let mut identifiers = Vec::new();
    for template in [&made, &made, &kept] {
        let store = Arc::new(MemoryStore::default());
        let at = template.import(Arc::clone(&store)).await.unwrap();
        let control = pgdatadir::control_file(&*store, at.last).await.unwrap();
        identifiers.push(control[..8].to_vec());
    }
    identifiers.sort();
    identifiers.dedup();
    assert_eq!(identifiers.len(), 3);
    // Another superuser's cluster is another one.
    let mut initdb = self::initdb();
    initdb.bin_dir = directory.path().join("no programs");
    initdb.superuser = "another".to_owned();
    let other = ClusterTemplate::new(directory.path(), initdb);
    assert!(other.import(Arc::new(MemoryStore::default())).await.is_err());
}
