use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::test_wal::{SEGMENT_SIZE, SYSTEM_ID, WalBuilder};

fn server() -> ServerInfo {
    ServerInfo {
        pg_version: 150_004,
        system_id: SYSTEM_ID,
        wal_seg_size: SEGMENT_SIZE as u32,
    }
}

fn wal_dir(dir: &tempfile::TempDir) -> WalDir {
    WalDir {
        path: dir.path().to_owned(),
        segment_size: SEGMENT_SIZE,
    }
}

fn open(dir: &tempfile::TempDir, at: Lsn) -> WalStorage {
    WalStorage::open(wal_dir(dir), Sync::No, server(), at)
}

fn names(dir: &tempfile::TempDir) -> Vec<String> {
    let segments = wal_dir(dir).segments().unwrap();
    let name = |found: &SegmentFile| found.path.file_name().unwrap().to_str().unwrap().to_owned();
    segments.iter().map(name).collect()
}

/// Records up to about `bytes` bytes behind `start`.
fn some_wal(start: Lsn, bytes: usize) -> (WalBuilder, Vec<Lsn>) {
    let mut wal = WalBuilder::new(start);
    let mut ends = vec![start];
    while wal.bytes.len() < bytes {
        ends.push(wal.record(ends.len() * 37 % 9000));
    }
    (wal, ends)
}

fn read_back(dir: &tempfile::TempDir, begin: Lsn, end: Lsn) -> Vec<u8> {
    let mut reader = WalReader::new(wal_dir(dir), begin);
    let mut out = BytesMut::new();
    while reader.position() < end {
        if reader.try_read(end, 50_000, &mut out).unwrap().is_none() {
            reader.read(end, 50_000, &mut out).unwrap();
        }
    }
    out.to_vec()
}

#[test]
fn old_segments_leave_the_kernels_cache() {
    // Beside the program: where temporary files are, there may be nothing but memory.
    let program = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let start = Lsn(SEGMENT_SIZE as u64);
    let segments = 2 * SEGMENTS_CACHED;
    let mut storage = WalStorage::open(wal_dir(&dir), Sync::Yes, server(), start);
    let wal = vec![1; SEGMENT_SIZE * segments];
    storage.write(start, &wal).unwrap();
    storage.flush().unwrap();
    let is_cached = |segment: usize| {
        let at = start + (segment * SEGMENT_SIZE) as u64;
        let mut reader = WalReader::new(wal_dir(&dir), at);
        reader
            .try_read(at + 8192u64, 8192, &mut BytesMut::new())
            .unwrap()
            .is_some()
    };
    let cached: Vec<usize> = (0..segments).filter(|&segment| is_cached(segment)).collect();
    assert_eq!(cached, (segments - SEGMENTS_CACHED..segments).collect::<Vec<_>>());
    assert_eq!(read_back(&dir, start, start + wal.len() as u64), wal);
}

#[test]
fn segment_names() {
    for (segment_size, segno, name) in [
        (16 << 20, 1, "000000010000000000000001"),
        (16 << 20, 0x1FF, "0000000100000001000000FF"),
        (1 << 20, 0x1FFF, "000000010000000100000FFF"),
    ] {
        let dir = WalDir {
            path: PathBuf::new(),
            segment_size,
        };
        assert_eq!(dir.segment_name(segno), name);
        assert_eq!(dir.parse_segment_name(name), Some(segno));
        for bad in [
            "000000020000000000000001",
            "00000001000000000000000",
            "000000010000000000001000",
        ] {
            assert_eq!(dir.parse_segment_name(bad), None);
        }
    }
}

#[test]
fn writing_over_segments_and_reading_back() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT_SIZE as u64 * 3 + 8192 * 5 + 160);
    let (wal, ends) = some_wal(start, SEGMENT_SIZE * 3);
    let mut storage = open(&dir, start);
    let mut at = start;
    for chunk in wal.bytes.chunks(77_777) {
        storage.write(at, chunk).unwrap();
        at += chunk.len() as u64;
        if let Some(job) = storage.spare_job() {
            job.run().unwrap();
        }
        storage.flush().unwrap();
    }
    assert_eq!(read_back(&dir, start, wal.end()), wal.bytes);
    let names = names(&dir);
    assert_eq!(
        names[..3],
        [
            "000000010000000000000003",
            "000000010000000000000004",
            "000000010000000000000005"
        ]
    );
    assert_eq!(names[3], "000000010000000000000006.partial");
    assert_eq!(
        std::fs::metadata(dir.path().join(&names[3])).unwrap().len(),
        SEGMENT_SIZE as u64
    );

    for known in [start, ends[7], ends[ends.len() / 2], *ends.last().unwrap()] {
        let end = find_end(&wal_dir(&dir), known, Expected::Written).unwrap();
        assert_eq!(end, wal.end(), "from {known}");
    }
    assert_eq!(wal_dir(&dir).remove_before(5).unwrap(), 2);
    let mut reader = WalReader::new(wal_dir(&dir), start);
    let error = reader.read(wal.end(), 10, &mut BytesMut::new()).unwrap_err();
    assert!(
        error.to_string().starts_with("WAL segment is not found"),
        "{error}"
    );
}

#[test]
fn spares_do_not_stay_behind() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT_SIZE as u64);
    let (wal, _) = some_wal(start, SEGMENT_SIZE - 20_000);
    let mut storage = open(&dir, start);
    assert!(storage.spare_job().is_none());
    storage.write(start, &wal.bytes).unwrap();
    let job = storage.spare_job().unwrap();
    assert!(storage.spare_job().is_none());
    job.run().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    drop(storage);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever was there before: after a truncation and new WAL, the disk holds the new WAL and
    /// nothing behind it, also for one who opens it anew.
    #[test]
    fn truncation_leaves_nothing_of_the_old_wal(
        len in 10_000usize..SEGMENT_SIZE * 5 / 2,
        cut in any::<prop::sample::Index>(),
        new_len in 0usize..300_000,
        reopen in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let start = Lsn(SEGMENT_SIZE as u64 + 8192 + 24);
        let (old, ends) = some_wal(start, len);
        let mut storage = open(&dir, start);
        storage.write(start, &old.bytes).unwrap();
        if reopen {
            storage = open(&dir, old.end());
        }
        let to = ends[cut.index(ends.len())];
        storage.truncate(to).unwrap();
        prop_assert_eq!(find_end(&wal_dir(&dir), start, Expected::Nothing).unwrap(), to);
        let (new, _) = some_wal(to, new_len);
        storage.write(to, &new.bytes).unwrap();
        prop_assert_eq!(read_back(&dir, start, to), &old.bytes[..(to - start) as usize]);
        prop_assert_eq!(read_back(&dir, to, new.end()), &new.bytes[..]);
        let last = wal_dir(&dir).segments().unwrap().pop();
        if let Some(last) = last && last.is_partial {
            let raw = std::fs::read(&last.path).unwrap();
            let begin = (new.end().0 - last.segno * SEGMENT_SIZE as u64) as usize;
            prop_assert!(raw[begin..].iter().all(|byte| *byte == 0));
            prop_assert_eq!(raw.len(), SEGMENT_SIZE);
        }
    }

    /// Damage before the known end is an error that names the segment; behind it, it ends the WAL.
    #[test]
    fn damage_is_found(at in any::<prop::sample::Index>(), bit in 0u8..8, known in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let start = Lsn(SEGMENT_SIZE as u64);
        let mut wal = WalBuilder::new(start);
        // No padding, which is nobody's: every flipped bit is damage.
        let ends: Vec<_> = (0..60).map(|_| wal.record(40 * 8)).collect();
        open(&dir, start).write(start, &wal.bytes).unwrap();
        let path = wal_dir(&dir).partial_path(1);
        let mut raw = std::fs::read(&path).unwrap();
        let at = at.index(wal.bytes.len());
        // Not the server's identity, and not what a page header leaves unused.
        let in_page = at % 8192;
        prop_assume!(at >= 40 && (in_page >= 24 || (8..20).contains(&in_page)));
        raw[at] ^= 1u8 << bit;
        std::fs::write(&path, raw).unwrap();
        let known = ends[known.index(ends.len())];
        let found = find_end(&wal_dir(&dir), known, Expected::Written);
        let damaged = start + at as u64;
        if damaged < known {
            let error = found.unwrap_err().to_string();
            prop_assert!(error.contains("000000010000000000000001.partial"), "{}", error);
        } else {
            let end = found.unwrap();
            prop_assert!(end >= known && end <= damaged, "{} {}", end, damaged);
        }
    }
}

#[test]
fn durable_wal_that_is_gone_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let known = Lsn(SEGMENT_SIZE as u64 * 2 + 8192 + 24);
    let error = find_end(&wal_dir(&dir), known, Expected::Written).unwrap_err();
    assert!(
        error.to_string().contains("000000010000000000000002 is missing"),
        "{error}"
    );
    assert_eq!(find_end(&wal_dir(&dir), known, Expected::Nothing).unwrap(), known);
}

#[test]
fn the_end_may_be_that_of_a_segment() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT_SIZE as u64 + 8192 * 9 + 24);
    let mut wal = WalBuilder::new(start);
    let before = wal.record(100);
    let end = wal.switch();
    let mut storage = open(&dir, start);
    storage.write(start, &wal.bytes).unwrap();
    assert_eq!(names(&dir), ["000000010000000000000001"]);
    for known in [start, before, end] {
        assert_eq!(find_end(&wal_dir(&dir), known, Expected::Written).unwrap(), end);
    }
    storage.truncate(before).unwrap();
    assert_eq!(names(&dir), ["000000010000000000000001.partial"]);
    assert_eq!(
        find_end(&wal_dir(&dir), start, Expected::Written).unwrap(),
        before
    );
}

#[test]
fn every_segment_of_what_was_found_is_made_durable() {
    let dir = tempfile::tempdir().unwrap();
    let start = Lsn(SEGMENT_SIZE as u64 * 2 - 64);
    let mut wal = WalBuilder::new(start);
    let end = wal.record(1000);
    open(&dir, start).write(start, &wal.bytes).unwrap();
    make_durable(&wal_dir(&dir), start, end).unwrap();

    let missing = wal_dir(&dir).partial_path(2);
    std::fs::remove_file(missing).unwrap();
    let error = make_durable(&wal_dir(&dir), start, end).unwrap_err().to_string();
    assert!(error.contains("000000010000000000000002"), "{error}");
    make_durable(&wal_dir(&dir), start, start).unwrap();
}
