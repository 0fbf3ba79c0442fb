//! The check finds what is wrong: WAL made here, right or with one thing changed.
#![allow(clippy::unwrap_used)] // The helpers belong to the tests.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use clap::Parser;
use postgres_ffi::v15::encode::{WalIdentity, WalWriter};
use postgres_ffi::v15::record::{Block, BlockImage, DecodedRecord, ImageCompression, RecordHeader};
use postgres_ffi::v15::rmgr::{
    RM_HEAP_ID, RM_XACT_ID, XLOG_HEAP_INIT_PAGE, XLOG_HEAP_INSERT, XLR_CHECK_CONSISTENCY,
};
use utils::lsn::Lsn;
use wal_redo::{PAGE_SIZE, PageBuf, apply_to_blocks};
use wal_redo_check::{Options, check};

const SEGMENT_SIZE: usize = 1 << 20;
const START: Lsn = Lsn(SEGMENT_SIZE as u64);

/// Insertion of a row at `offset`, the first one on a new page; the image is added later.
fn insert(offset: u16) -> DecodedRecord {
    let init = if offset == 1 { XLOG_HEAP_INIT_PAGE } else { 0 };
    let [low, high] = offset.to_le_bytes();
    DecodedRecord {
        header: RecordHeader {
            xid: 700,
            info: XLOG_HEAP_INSERT | init | XLR_CHECK_CONSISTENCY,
            rmid: RM_HEAP_ID,
            ..RecordHeader::default()
        },
        blocks: [Block {
            id: 0,
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
            forknum: 0,
            blkno: 3,
            will_init: init != 0,
            image: None,
            data: Bytes::from_static(&[1, 0, 2, 8, 24, 0, b'r', b'o', b'w']),
        }]
        .into_iter()
        .collect(),
        main_data: vec![low, high, 0].into(),
        origin_id: 0,
        toplevel_xid: None,
    }
}

fn new_writer() -> WalWriter {
    let identity = WalIdentity {
        system_id: 1,
        segment_size: SEGMENT_SIZE,
    };
    WalWriter::new(identity, START, Lsn(0))
}

/// Makes the change of the record that is to be written next.
fn replay(record: &DecodedRecord, writer: &WalWriter, page: &mut PageBuf) {
    let raw = postgres_ffi::v15::encode::encode_record(record);
    let parsed = postgres_ffi::v15::record_ref::RecordRef::parse(&raw).unwrap();
    apply_to_blocks(&parsed, Lsn(writer.position().0 + 8), [(0, page)]).unwrap();
}

fn image_to_compare(page: &PageBuf) -> BlockImage {
    BlockImage {
        data: Bytes::copy_from_slice(page),
        compression: ImageCompression::None,
        hole_offset: 0,
        hole_length: 0,
        apply: false,
    }
}

/// Writes the files of the WAL, the last one filled up with zeros.
fn write_segments(dir: &Path, mut writer: WalWriter) {
    let mut wal = writer.take();
    wal.resize(wal.len().next_multiple_of(SEGMENT_SIZE), 0);
    for (number, segment) in (1..).zip(wal.chunks(SEGMENT_SIZE)) {
        fs::write(dir.join(format!("00000001{number:016X}")), segment).unwrap();
    }
}

/// Writes WAL that inserts `rows` rows, each record with the image of its page; `change` may spoil a row's image.
fn write_wal(dir: &Path, rows: u16, change: impl Fn(u16, &mut PageBuf)) {
    let mut writer = new_writer();
    let mut page = [0; PAGE_SIZE];
    for offset in 1..=rows {
        let mut record = insert(offset);
        replay(&record, &writer, &mut page);
        let mut image = page;
        change(offset, &mut image);
        record.blocks[0].image = Some(image_to_compare(&image));
        writer.append(record);
    }
    write_segments(dir, writer);
}

fn options(dir: &Path, more: &[&str]) -> Options {
    let dir = dir.to_str().unwrap();
    Options::parse_from(["wal_redo_check", dir].iter().chain(more))
}

#[test]
fn right_wal_passes_over_several_segments() {
    let dir = tempfile::tempdir().unwrap();
    write_wal(dir.path(), 200, |_, _| ());
    let report = check(&options(dir.path(), &[])).unwrap();
    assert!(report.passed(), "{}", report.to_text());
    let text = report.to_text();
    assert!(text.contains("not exercised: Btree DEDUP"), "{text}");
    let last = text.lines().last().unwrap();
    assert!(
        last.starts_with("ok: 200 records") && last.contains(" 200 blocks equal, 0 mismatches"),
        "{last}"
    );
    // A chain that begins in the middle starts its pages from images.
    fs::remove_file(dir.path().join(format!("00000001{:016X}", 1))).unwrap();
    let report = check(&options(dir.path(), &["--json"])).unwrap();
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["passed"], true);
    assert_eq!(json["kinds"]["Heap/INSERT"]["started"], 1);
}

#[test]
fn a_single_byte_is_found() {
    let dir = tempfile::tempdir().unwrap();
    write_wal(dir.path(), 20, |offset, page| {
        if offset == 9 {
            page[PAGE_SIZE - 10] ^= 1;
        }
    });
    let report = check(&options(dir.path(), &[])).unwrap();
    assert!(!report.passed());
    let text = report.to_text();
    assert!(text.contains("FAILED: 20 records"), "{text}");
    assert!(
        text.contains("Heap INSERT on 1663/5/16384 fork 0 block 3: 8182: "),
        "{text}"
    );
    // Of another resource manager nothing was wrong.
    assert!(check(&options(dir.path(), &["--rmgr", "Gin"])).unwrap().passed());
}

#[test]
fn hint_bits_and_unused_space_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    write_wal(dir.path(), 20, |_, page| {
        page[20] = 77; // pd_prune_xid
        page[4000] = 1; // between the pointers
        page[PAGE_SIZE - 32 + 21] |= 1; // HEAP_XMIN_COMMITTED of the first row
    });
    assert!(check(&options(dir.path(), &[])).unwrap().passed());
}

#[test]
fn unknown_records_and_broken_wal_fail() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = new_writer();
    writer.append(DecodedRecord {
        header: RecordHeader {
            info: 0x70,
            rmid: RM_XACT_ID,
            ..RecordHeader::default()
        },
        blocks: Default::default(),
        main_data: Bytes::from_static(b"main"),
        ..insert(1)
    });
    let mut wal = writer.take();
    wal.resize(SEGMENT_SIZE, 0);
    fs::write(dir.path().join(format!("00000001{:016X}", 1)), &wal).unwrap();
    let report = check(&options(dir.path(), &[])).unwrap();
    assert_eq!((report.passed(), report.unknown_records), (false, 1));

    let dir = tempfile::tempdir().unwrap();
    write_wal(dir.path(), 200, |_, _| ());
    let first = dir.path().join(format!("00000001{:016X}", 1));
    let mut wal = fs::read(&first).unwrap();
    wal[100_000] ^= 1;
    fs::write(&first, wal).unwrap();
    let error = check(&options(dir.path(), &[])).unwrap_err();
    assert!(format!("{error:#}").contains("WAL is broken"), "{error:#}");
    assert!(check(&options(&dir.path().join("none"), &[])).is_err());
}

/// WAL of `FIRST` rows on each of some pages, then of many on others, then of the rest on the first ones. Only the last
/// record of each page has an image; that of page `spoilt` is wrong. Gives the pages as they are at the end.
fn write_wal_of_many_pages(dir: &Path, spoilt: Option<u32>) -> Vec<PageBuf> {
    const ROWS: u16 = 200;
    const FIRST: u16 = 20;
    let order = (0..10)
        .map(|blkno| (blkno, 1..=FIRST))
        .chain((10..200).map(|blkno| (blkno, 1..=ROWS)))
        .chain((FIRST + 1..=ROWS).flat_map(|row| (0..10).map(move |blkno| (blkno, row..=row))));
    let mut writer = new_writer();
    let mut pages = vec![[0; PAGE_SIZE]; 200];
    for (blkno, row) in order.flat_map(|(blkno, rows)| rows.map(move |row| (blkno, row))) {
        let mut record = insert(row);
        record.blocks[0].blkno = blkno;
        let page = &mut pages[blkno as usize];
        replay(&record, &writer, page);
        if row == ROWS {
            let mut image = *page;
            image[PAGE_SIZE - 10] ^= u8::from(spoilt == Some(blkno));
            record.blocks[0].image = Some(image_to_compare(&image));
        }
        writer.append(record);
        // The page's LSN is the record's end, which is known only now.
        page[..4].copy_from_slice(&((writer.position().0 >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(writer.position().0 as u32).to_le_bytes());
    }
    write_segments(dir, writer);
    pages
}

#[test]
fn pages_met_again_after_long_come_out_the_same() {
    for threads in ["1", "2"] {
        let dir = tempfile::tempdir().unwrap();
        let pages = write_wal_of_many_pages(dir.path(), None);
        let theirs = dir.path().join("data");
        fs::create_dir_all(theirs.join("base/5")).unwrap();
        fs::write(theirs.join("base/5/16384"), pages.concat()).unwrap();
        let more = ["--threads", threads, "--compare", theirs.to_str().unwrap()];
        let report = check(&options(dir.path(), &more)).unwrap();
        let text = report.to_text();
        assert!(report.passed(), "{text}");
        assert_eq!(report.final_pages_equal, 200, "{text}");
        assert!(text.contains(" 200 blocks equal, 0 mismatches"), "{text}");

        write_wal_of_many_pages(dir.path(), Some(3));
        let report = check(&options(dir.path(), &["--threads", threads])).unwrap();
        let text = report.to_text();
        assert!(text.contains("fork 0 block 3: 8182: "), "{text}");
        assert!(text.contains(" 199 blocks equal, 1 mismatches"), "{text}");
    }
}
