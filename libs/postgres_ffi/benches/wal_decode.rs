//! How fast WAL is taken apart: the ingest path of the pageserver, and the safekeeper's search for record ends.
//!
//! The WAL is laid out like that of TPC-B without full-page images (small records: two heap-only updates, an update
//! elsewhere, an insert, an index insert, a commit), and once with an image in every sixteenth record.
//!
//! Reference, MB per second of CPU time, median of 25 (slowest, fastest); 2 cores of a Xeon, many other processes at
//! work on them, 2026-11-22:
//!
//! |                     | small            | images             |
//! |---------------------|------------------|--------------------|
//! | stream              | 1581 (1209-2278) | 3798 (3077-5378)   |
//! | stream and decode   | 608 (550-735)    | 2672 (2090-3387)   |
//! | stream and parse    | 1018 (840-1211)  | 3289 (2596-4752)   |
//! | record ends         | 3772 (from 2546) | 5053 (3745-9038)   |
//! | same, no checksums  | 3746 (from 2291) | 6170 (5091-12466)  |

#![allow(
    missing_docs,
    reason = "criterion's macros make public items without documentation"
)]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use postgres_ffi::v15::decode::decode_record;
use postgres_ffi::v15::encode::{WalIdentity, WalWriter};
use postgres_ffi::v15::record::{Block, BlockImage, DecodedRecord, ImageCompression, RecordHeader};
use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::rmgr::{
    RM_BTREE_ID, RM_HEAP_ID, RM_XACT_ID, XLOG_BTREE_INSERT_LEAF, XLOG_HEAP_HOT_UPDATE, XLOG_HEAP_INSERT,
    XLOG_HEAP_UPDATE, XLOG_XACT_COMMIT,
};
use postgres_ffi::v15::stream::{Checksums, RecordEnds, WalStreamDecoder};
use postgres_ffi::v15::{BLCKSZ, WAL_SEGMENT_SIZE};
use utils::lsn::Lsn;

const START: Lsn = Lsn(WAL_SEGMENT_SIZE as u64);
/// What a safekeeper sends in one message.
const PIECE: usize = 128 * 1024;

/// Lengths of main data and of the data of each block.
struct Shape {
    rmid: u8,
    info: u8,
    main_data: usize,
    blocks: &'static [usize],
}

const TRANSACTION: [Shape; 6] = [
    Shape {
        rmid: RM_HEAP_ID,
        info: XLOG_HEAP_HOT_UPDATE,
        main_data: 14,
        blocks: &[15],
    },
    Shape {
        rmid: RM_HEAP_ID,
        info: XLOG_HEAP_HOT_UPDATE,
        main_data: 14,
        blocks: &[15],
    },
    Shape {
        rmid: RM_HEAP_ID,
        info: XLOG_HEAP_UPDATE,
        main_data: 14,
        blocks: &[35, 0],
    },
    Shape {
        rmid: RM_HEAP_ID,
        info: XLOG_HEAP_INSERT,
        main_data: 3,
        blocks: &[31],
    },
    Shape {
        rmid: RM_BTREE_ID,
        info: XLOG_BTREE_INSERT_LEAF,
        main_data: 2,
        blocks: &[16],
    },
    Shape {
        rmid: RM_XACT_ID,
        info: XLOG_XACT_COMMIT,
        main_data: 8,
        blocks: &[],
    },
];

fn record(number: u32, shape: &Shape, with_image: bool) -> DecodedRecord {
    let block = |(id, data): (usize, &usize)| Block {
        id: id as u8,
        spcnode: 1663,
        dbnode: 5,
        relnode: 16384,
        forknum: 0,
        blkno: number.wrapping_mul(2_654_435_761) >> 16,
        will_init: false,
        image: with_image.then(|| BlockImage {
            data: Bytes::from(vec![7; BLCKSZ - 600]),
            compression: ImageCompression::None,
            hole_offset: 400,
            hole_length: 600,
            apply: true,
        }),
        data: Bytes::from(vec![1; *data]),
    };
    DecodedRecord {
        header: RecordHeader {
            rmid: shape.rmid,
            info: shape.info,
            xid: number / 6,
            ..RecordHeader::default()
        },
        blocks: shape.blocks.iter().enumerate().map(block).collect(),
        main_data: Bytes::from(vec![2; shape.main_data]),
        origin_id: 0,
        toplevel_xid: None,
    }
}

fn wal(records: u32, images: bool) -> Bytes {
    let identity = WalIdentity {
        system_id: 1,
        segment_size: WAL_SEGMENT_SIZE,
    };
    let mut writer = WalWriter::new(identity, START, Lsn(8));
    for number in 0..records {
        let shape = &TRANSACTION[number as usize % TRANSACTION.len()];
        writer.append(record(number, shape, images && number % 16 == 0));
    }
    writer.take().into()
}

/// Feeds `wal` in pieces and hands every record to `each`.
fn for_each_record(wal: &Bytes, mut each: impl FnMut(Bytes)) {
    let mut decoder = WalStreamDecoder::new(START);
    for from in (0..wal.len()).step_by(PIECE) {
        decoder.feed(&wal[from..wal.len().min(from + PIECE)]);
        while let Some((_, record)) = decoder.next_record().expect("the WAL is sound") {
            each(record);
        }
    }
}

fn follow(wal: &Bytes, checksums: Checksums) -> Lsn {
    let mut ends = RecordEnds::new(START, WAL_SEGMENT_SIZE, checksums);
    for piece in wal.chunks(PIECE) {
        ends.feed(piece).expect("the WAL is sound");
    }
    ends.last_end()
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal");
    for (name, wal) in [("small", wal(200_000, false)), ("images", wal(60_000, true))] {
        group.throughput(Throughput::Bytes(wal.len() as u64));
        group.bench_with_input(BenchmarkId::new("stream", name), &wal, |bencher, wal| {
            bencher.iter(|| for_each_record(wal, |record| drop(black_box(record))));
        });
        group.bench_with_input(
            BenchmarkId::new("stream_and_decode", name),
            &wal,
            |bencher, wal| {
                bencher.iter(|| for_each_record(wal, |record| drop(black_box(decode_record(record)))));
            },
        );
        group.bench_with_input(
            BenchmarkId::new("stream_and_parse", name),
            &wal,
            |bencher, wal| {
                bencher.iter(|| for_each_record(wal, |record| drop(black_box(RecordRef::parse(&record)))));
            },
        );
        group.bench_with_input(BenchmarkId::new("record_ends", name), &wal, |bencher, wal| {
            bencher.iter(|| follow(wal, Checksums::Verify));
        });
        group.bench_with_input(
            BenchmarkId::new("record_ends_unchecked", name),
            &wal,
            |bencher, wal| {
                bencher.iter(|| follow(wal, Checksums::Skip));
            },
        );
    }
    group.finish();
}

criterion_group!(wal_decode, benches);
criterion_main!(wal_decode);
