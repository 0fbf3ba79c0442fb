//! The WAL of a stock server: every record as `pg_waldump` sees it, put together again byte for byte.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test binary uses a part of the common helpers")]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use bytes::Bytes;
use common::{Cluster, DumpedRecord};
use postgres_ffi::c_struct::CStruct;
use postgres_ffi::v15::bodies::{
    ClogTruncate, DbaseCreateFileCopy, DbaseCreateWalLog, DbaseDrop, LogicalMessage, MultiXactCreate,
    MultiXactTruncate, ParameterChange, RelMapUpdate, RunningXacts, SmgrCreate, SmgrTruncate,
    TablespaceCreate, TablespaceDrop, next_oid, zero_page,
};
use postgres_ffi::v15::checkpoint::{CheckPoint, precedes};
use postgres_ffi::v15::control_file::{ControlFile, DB_SHUTDOWNED};
use postgres_ffi::v15::decode::decode_record;
use postgres_ffi::v15::encode::{WalIdentity, WalWriter, encode_record};
use postgres_ffi::v15::image;
use postgres_ffi::v15::record::{DecodedRecord, ImageCompression};
use postgres_ffi::v15::relfile::{RelFileNode, parse_path, relation_path};
use postgres_ffi::v15::relmap;
use postgres_ffi::v15::rmgr::*;
use postgres_ffi::v15::stream::{Checksums, RecordEnds, WalStreamDecoder};
use postgres_ffi::v15::wal_file::find_end_of_wal;
use postgres_ffi::v15::wal_page::XLP_BKP_REMOVABLE;
use postgres_ffi::v15::xact::{Assignment, Prepare, XactEnd};
use postgres_ffi::v15::{BLCKSZ, WAL_SEGMENT_SIZE, page};
use utils::lsn::Lsn;

const SETTINGS: &str = "wal_level = logical\ntrack_commit_timestamp = on\nmax_prepared_transactions = 10\n\
                        checkpoint_timeout = 1h\nmax_wal_size = 4GB\n";

/// Every access method, compression, subtransactions, two-phase commit, multixacts, big and small records.
const WORKLOAD: &str = "
CREATE EXTENSION IF NOT EXISTS plpgsql;
CREATE TABLE t (id int PRIMARY KEY, n int, body text, tags int[], at point);
CREATE INDEX ON t USING hash (n);
CREATE INDEX ON t USING gin (tags);
CREATE INDEX ON t USING gist (at);
CREATE INDEX ON t USING spgist (at);
CREATE INDEX ON t USING brin (id);
SET wal_compression = pglz;
CHECKPOINT;
INSERT INTO t SELECT i, i % 100, repeat(md5(i::text), 3), ARRAY[i % 7, i % 11], point(i % 97, i % 89)
  FROM generate_series(1, 6000) i;
VACUUM FREEZE t;
SET wal_compression = lz4;
CHECKPOINT;
UPDATE t SET n = n + 1 WHERE id % 3 = 0;
SET wal_compression = zstd;
CHECKPOINT;
UPDATE t SET n = n + 1, body = NULL WHERE id % 5 = 0;
SET wal_compression = off;
CHECKPOINT;
DELETE FROM t WHERE id % 4 = 0;
VACUUM t;
CREATE SEQUENCE s; SELECT count(nextval('s')) FROM generate_series(1, 200);
BEGIN; SAVEPOINT a; INSERT INTO t (id) VALUES (-1); SAVEPOINT b; INSERT INTO t (id) VALUES (-2);
ROLLBACK TO b; SAVEPOINT c; DELETE FROM t WHERE id = -1; COMMIT;
BEGIN; SELECT * FROM t WHERE id < 10 FOR KEY SHARE; SAVEPOINT a; UPDATE t SET n = 0 WHERE id < 10; COMMIT;
BEGIN; CREATE TABLE gone (x int); INSERT INTO gone VALUES (1); PREPARE TRANSACTION 'first';
COMMIT PREPARED 'first';
BEGIN; DROP TABLE gone; PREPARE TRANSACTION 'second';
ROLLBACK PREPARED 'second';
SELECT pg_switch_wal();
SELECT pg_logical_emit_message(false, 'test', repeat('x', 3000000));
BEGIN; SELECT pg_logical_emit_message(true, 'test', repeat('y', i)) FROM generate_series(1, 3000) i; ROLLBACK;
CREATE DATABASE logged STRATEGY wal_log;
CREATE DATABASE copied STRATEGY file_copy;
DROP DATABASE copied;
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE ts LOCATION '';
CREATE TABLE elsewhere TABLESPACE ts AS SELECT * FROM t;
TRUNCATE elsewhere;
VACUUM FULL pg_class;
INSERT INTO elsewhere SELECT * FROM t;
DROP TABLE elsewhere;
DROP TABLESPACE ts;
DO $$ BEGIN FOR i IN 1..200 LOOP BEGIN INSERT INTO gone VALUES (i);
  EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$;
SELECT pg_create_restore_point('here');
CREATE UNLOGGED TABLE u (x int PRIMARY KEY);
INSERT INTO t SELECT i, i, repeat('z', 100) FROM generate_series(10000, 40000) i;
TRUNCATE t;
SELECT pg_switch_wal();
";

/// Numbers that look random; the seed is printed, so that a failure can be repeated.
struct Lengths(u64);

impl Lengths {
    fn next(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit + 1
    }
}

fn seed() -> u64 {
    let seed = std::process::id().into();
    println!("seed {seed}");
    seed
}

fn stopped_cluster_with_workload() -> Cluster {
    let mut cluster = Cluster::create(SETTINGS);
    cluster.start();
    cluster.sql_lines("postgres", WORKLOAD);
    cluster.stop();
    cluster
}

/// All records in `wal`, fed in pieces of random lengths, until it ends: by turns given out and lent.
fn decode_in_pieces(start: Lsn, wal: &[u8], mut piece_len: impl FnMut() -> usize) -> Vec<(Lsn, Lsn, Bytes)> {
    let mut decoder = WalStreamDecoder::new(start);
    let mut records = Vec::new();
    let mut rest = wal;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(piece_len().min(rest.len()));
        decoder.feed(piece);
        rest = later;
        loop {
            let next = if records.len() % 3 == 0 {
                decoder.next_record()
            } else {
                let end = decoder.seek_record();
                end.map(|end| end.map(|end| (end, Bytes::copy_from_slice(decoder.record()))))
            };
            match next {
                Ok(Some((end, record))) => records.push((decoder.record_start(), end, record)),
                Ok(None) => break,
                Err(_) => return records,
            }
        }
    }
    records
}

fn dumped(start: Lsn, record: &DecodedRecord) -> DumpedRecord {
    DumpedRecord {
        rmgr: rmgr_name(record.header.rmid).unwrap().to_owned(),
        len: record.header.total_len,
        xid: record.header.xid,
        start,
        prev: record.header.prev,
        name: record_name(record.header.rmid, record.header.info).to_owned(),
    }
}

/// Reads the body if we know the record kind; gives whether we do.
fn read_body(record: &DecodedRecord) -> bool {
    let (info, data) = (record.header.info, &record.main_data[..]);
    match (record.header.rmid, record.rmgr_info()) {
        (RM_XACT_ID, _) => match info & XLOG_XACT_OPMASK {
            XLOG_XACT_PREPARE => Prepare::parse(data).map(|_| ()).unwrap(),
            XLOG_XACT_ASSIGNMENT => Assignment::parse(data).map(|_| ()).unwrap(),
            _ => match XactEnd::outcome_of(info) {
                Some(outcome) => XactEnd::parse(outcome, info, data).map(|_| ()).unwrap(),
                None => return false,
            },
        },
        (RM_XLOG_ID, XLOG_CHECKPOINT_ONLINE | XLOG_CHECKPOINT_SHUTDOWN) => {
            assert_eq!(CheckPoint::decode(data).unwrap().timeline, 1);
        }
        (RM_XLOG_ID, XLOG_NEXTOID) => assert!(next_oid(data).unwrap() >= 16384),
        (RM_XLOG_ID, XLOG_PARAMETER_CHANGE) => {
            assert_eq!(ParameterChange::decode(data).unwrap().wal_level, 2)
        }
        (RM_SMGR_ID, XLOG_SMGR_CREATE) => assert!(SmgrCreate::decode(data).unwrap().relation.relnode > 0),
        (RM_SMGR_ID, XLOG_SMGR_TRUNCATE) => assert!(SmgrTruncate::decode(data).unwrap().relation.relnode > 0),
        (RM_DBASE_ID, XLOG_DBASE_CREATE_FILE_COPY) => {
            assert_eq!(DbaseCreateFileCopy::decode(data).unwrap().source_tablespace, 1663);
        }
        (RM_DBASE_ID, XLOG_DBASE_CREATE_WAL_LOG) => {
            assert_eq!(DbaseCreateWalLog::decode(data).unwrap().tablespace, 1663);
        }
        (RM_DBASE_ID, XLOG_DBASE_DROP) => assert_eq!(DbaseDrop::parse(data).unwrap().tablespaces, [1663]),
        (RM_TBLSPC_ID, XLOG_TBLSPC_CREATE) => assert!(TablespaceCreate::parse(data).unwrap().path.is_empty()),
        (RM_TBLSPC_ID, XLOG_TBLSPC_DROP) => assert!(TablespaceDrop::decode(data).unwrap().tablespace > 16383),
        (RM_MULTIXACT_ID, XLOG_MULTIXACT_CREATE_ID) => {
            assert_eq!(MultiXactCreate::parse(data).unwrap().members.len(), 2);
        }
        (RM_MULTIXACT_ID, XLOG_MULTIXACT_TRUNCATE_ID) => assert!(MultiXactTruncate::decode(data).is_ok()),
        (RM_MULTIXACT_ID, _) | (RM_CLOG_ID, CLOG_ZEROPAGE) => assert!(zero_page(data).is_ok()),
        (RM_CLOG_ID, CLOG_TRUNCATE) => assert!(ClogTruncate::decode(data).is_ok()),
        (RM_RELMAP_ID, XLOG_RELMAP_UPDATE) => {
            let file = RelMapUpdate::parse(data).unwrap().file;
            assert!(
                relmap::parse(file)
                    .unwrap()
                    .iter()
                    .any(|(catalog, _)| *catalog == 1259)
            );
        }
        (RM_STANDBY_ID, XLOG_RUNNING_XACTS) => {
            assert!(RunningXacts::parse(data).unwrap().header.next_xid > 2)
        }
        (RM_LOGICALMSG_ID, XLOG_LOGICAL_MESSAGE) => {
            let message = LogicalMessage::parse(data).unwrap();
            assert_eq!(message.prefix, b"test");
            assert!(message.message.iter().all(|byte| [b'x', b'y'].contains(byte)));
        }
        _ => return false,
    }
    true
}

/// What was seen, to be sure that the workload covers what it should.
#[derive(Default)]
struct Seen {
    kinds: BTreeSet<(u8, &'static str)>,
    images: BTreeMap<&'static str, usize>,
    bodies: usize,
    next_xid: u32,
}

impl Seen {
    fn record(&mut self, record: &DecodedRecord) {
        self.kinds.insert((
            record.header.rmid,
            record_name(record.header.rmid, record.header.info),
        ));
        self.bodies += usize::from(read_body(record));
        for block in &record.blocks {
            let Some(image) = &block.image else { continue };
            let mut restored = [0xaa; BLCKSZ];
            image::restore(image, &mut restored).unwrap();
            let sound = page::is_new(&restored) || page::check_header(&restored).is_ok();
            // Free space and visibility maps keep no order of lower and upper; everything else does.
            assert!(
                sound || block.forknum != 0,
                "image of block {} of {}",
                block.blkno,
                block.relnode
            );
            let kind = match image.compression {
                ImageCompression::None => "none",
                ImageCompression::Pglz => "pglz",
                ImageCompression::Lz4 => "lz4",
                ImageCompression::Zstd => "zstd",
            };
            *self.images.entry(kind).or_default() += 1;
        }
        if record.header.xid != 0 {
            self.next_xid = self.next_xid.max(record.header.xid + 1);
        }
    }
}

#[test]
fn every_record_as_pg_waldump_sees_it() {
    let mut lengths = Lengths(seed());
    let cluster = stopped_cluster_with_workload();
    let (first, wal) = cluster.wal();
    let records = decode_in_pieces(first, &wal, || lengths.next(300_000));
    let theirs = cluster.waldump(Lsn(first.0 + 40));
    assert!(records.len() > 50_000, "{} records", records.len());
    let mut seen = Seen::default();
    for ((start, _, raw), theirs) in records.iter().zip(&theirs) {
        let record = decode_record(raw.clone()).unwrap();
        assert_eq!(&dumped(*start, &record), theirs);
        assert_eq!(encode_record(&record), raw[..], "record at {start}");
        seen.record(&record);
    }
    assert_eq!(records.len(), theirs.len());
    assert_eq!(seen.images.len(), 4, "{:?}", seen.images);
    assert!(seen.kinds.len() > 60, "{:?}", seen.kinds);
    assert!(seen.bodies > 3000, "{}", seen.bodies);

    let control =
        ControlFile::from_file(&fs::read(cluster.data().join("global/pg_control")).unwrap()).unwrap();
    let (last, _, _) = records.last().unwrap();
    assert_eq!((control.state, control.checkpoint_lsn), (DB_SHUTDOWNED, *last));
    assert!(!precedes(control.checkpoint.next_xid as u32, seen.next_xid));
    the_writer_makes_the_same_wal(&control, &wal, &records);
}

/// Lays the records out again: apart from one flag in the page headers the WAL is the server's, byte for byte.
fn the_writer_makes_the_same_wal(control: &ControlFile, wal: &[u8], records: &[(Lsn, Lsn, Bytes)]) {
    let identity = WalIdentity {
        system_id: control.system_identifier,
        segment_size: WAL_SEGMENT_SIZE,
    };
    let base = Lsn(WAL_SEGMENT_SIZE as u64);
    let mut writer = WalWriter::new(identity, base, Lsn(0));
    for (start, end, raw) in records {
        let record = decode_record(raw.clone()).unwrap();
        let is_switch = (record.header.rmid, record.rmgr_info()) == (RM_XLOG_ID, XLOG_SWITCH);
        let place = writer.append(record);
        assert_eq!(place.start, *start);
        let ours = writer.take();
        let to = (place.end.0 - base.0) as usize;
        let from = to - ours.len();
        assert!(
            ours == without_removable_flag(from, &wal[from..to]),
            "WAL before {end} differs"
        );
        if is_switch {
            writer = WalWriter::new(identity, *end, *start);
        }
    }
}

/// The server marks images as optional in pages it begins while no base backup runs.
fn without_removable_flag(from: usize, wal: &[u8]) -> Vec<u8> {
    let mut wal = wal.to_vec();
    for page in (from.next_multiple_of(BLCKSZ)..from + wal.len()).step_by(BLCKSZ) {
        wal[page - from + 2] &= !(XLP_BKP_REMOVABLE as u8);
    }
    wal
}

#[test]
fn ends_of_records_and_of_the_wal() {
    let mut lengths = Lengths(seed());
    let cluster = stopped_cluster_with_workload();
    let (first, wal) = cluster.wal();
    let records = decode_in_pieces(first, &wal, || lengths.next(20_000));
    let (last_start, last_end, _) = records.last().unwrap();
    let whole = find_end_of_wal(first, WAL_SEGMENT_SIZE, |lsn, buffer| {
        let from = (lsn.0 - first.0) as usize;
        let len = buffer.len().min(wal.len() - from);
        buffer[..len].copy_from_slice(&wal[from..from + len]);
        Ok(len)
    })
    .unwrap();
    assert_eq!((whole.end, whole.last_record), (*last_end, Some(*last_start)));

    // In pieces: after each, the end is that of the last record within what was fed.
    let mut ends = RecordEnds::new(first, WAL_SEGMENT_SIZE, Checksums::Verify);
    let (mut fed, mut whole_records) = (0, 0);
    let used = (last_end.0 - first.0) as usize;
    while fed < used {
        let len = lengths.next(50_000).min(used - fed);
        let end = ends.feed(&wal[fed..fed + len]).unwrap();
        fed += len;
        let here = Lsn(first.0 + fed as u64);
        whole_records += records[whole_records..]
            .iter()
            .take_while(|(_, end, _)| *end <= here)
            .count();
        let expected = whole_records.checked_sub(1).map_or(first, |last| records[last].1);
        assert_eq!(end, expected);
    }

    // From any record boundary the same records follow.
    for _ in 0..50 {
        let at = lengths.next(records.len()) - 1;
        let (_, end, _) = records[at];
        let from = (end.0 - first.0) as usize;
        let piece = &wal[from..(from + 100_000).min(wal.len())];
        let found = decode_in_pieces(end, piece, || 7777);
        let expected = &records[at + 1..][..found.len()];
        assert!(found == expected, "after {end}");
        assert!(!found.is_empty() || from + 100_000 > used);
    }
}

/// Builds a table and an index under each compression: their pages go to the WAL as they are written, and stay so.
const BUILDS: &str = "
CREATE TABLE t AS SELECT i, md5((i / 50)::text) || repeat('ab', i % 300) AS body FROM generate_series(1, 20000) i;
SET wal_compression = pglz; CREATE INDEX pglz ON t (body, i);
SET wal_compression = lz4; CREATE INDEX lz4 ON t (body, i);
SET wal_compression = zstd; CREATE INDEX zstd ON t (body, i);
SET wal_compression = off; CREATE INDEX none ON t (body, i);
";

#[test]
fn restored_images_are_the_pages_on_disk() {
    let mut cluster = Cluster::create(SETTINGS);
    cluster.start();
    cluster.sql_lines("postgres", BUILDS);
    let path_of = |name: &str| cluster.sql("postgres", &format!("SELECT pg_relation_filepath('{name}')"));
    let indexes = ["pglz", "lz4", "zstd", "none"].map(|name| parse_path(path_of(name).trim()).unwrap().0);
    cluster.stop();
    let (first, wal) = cluster.wal();
    let mut pages: BTreeMap<(RelFileNode, u32), Box<page::Page>> = BTreeMap::new();
    for (_, end, raw) in decode_in_pieces(first, &wal, || 1 << 20) {
        for block in &decode_record(raw).unwrap().blocks {
            let relation = RelFileNode {
                spcnode: block.spcnode,
                dbnode: block.dbnode,
                relnode: block.relnode,
            };
            if !indexes.contains(&relation) {
                continue;
            }
            let image = block.image.as_ref().expect("an index build writes whole pages");
            let mut restored = Box::new([0xaa; BLCKSZ]);
            image::restore(image, &mut restored).unwrap();
            page::set_lsn(&mut restored, end);
            pages.insert((relation, block.blkno), restored);
        }
    }
    for (relation, name) in indexes.into_iter().zip(["pglz", "lz4", "zstd", "none"]) {
        let file = fs::read(cluster.data().join(relation_path(relation, 0, 0))).unwrap();
        assert!(file.len() > 100 * BLCKSZ, "{name}");
        for (blkno, on_disk) in (0..).zip(file.chunks(BLCKSZ)) {
            let ours = &pages[&(relation, blkno)];
            // A build may leave something between lower and upper, which the WAL does not carry.
            let hole = usize::from(page::lower(ours))..usize::from(page::upper(ours));
            assert!(
                ours[hole.clone()].iter().all(|byte| *byte == 0),
                "{name}, block {blkno}"
            );
            assert!(
                ours[..hole.start] == on_disk[..hole.start],
                "{name}, block {blkno}"
            );
            assert!(ours[hole.end..] == on_disk[hole.end..], "{name}, block {blkno}");
        }
    }
}
