//! The encoder against the decoder, at every kind of place.

use proptest::prelude::*;

use super::*;
use crate::c_struct::CValue;
use crate::v15::decode::decode_record;
use crate::v15::stream::{Checksums, RecordEnds, StreamError, WalStreamDecoder};
use crate::v15::wal_page;

/// Small segments, so that records often run over several.
const SEGMENT: usize = 32 * 1024;
const IDENTITY: WalIdentity = WalIdentity {
    system_id: 0x5eed_5eed_5eed_5eed,
    segment_size: SEGMENT,
};

fn image() -> impl Strategy<Value = BlockImage> {
    let whole = any::<u8>().prop_map(|fill| (ImageCompression::None, vec![fill; BLCKSZ], 0, 0));
    let hole = (1u16..8000, 1u16..=192).prop_map(|(offset, length)| {
        (
            ImageCompression::None,
            vec![7; BLCKSZ - usize::from(length)],
            offset,
            length,
        )
    });
    let compression = prop_oneof![
        Just(ImageCompression::Pglz),
        Just(ImageCompression::Lz4),
        Just(ImageCompression::Zstd),
    ];
    let hole_or_none = prop_oneof![Just((0, 0)), (1u16..4000, 1u16..4000)];
    let compressed = (
        compression,
        proptest::collection::vec(any::<u8>(), 1..300),
        hole_or_none,
    )
        .prop_map(|(compression, data, (offset, length))| (compression, data, offset, length));
    (prop_oneof![whole, hole, compressed], any::<bool>()).prop_map(
        |((compression, data, hole_offset, hole_length), apply)| BlockImage {
            data: data.into(),
            compression,
            hole_offset,
            hole_length,
            apply,
        },
    )
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn block() -> impl Strategy<Value = Block> {
    let numbers = (1663u32..1665, 1u32..3, 1u32..3, 0u8..4, any::<u32>());
    (
        numbers,
        any::<bool>(),
        proptest::option::weighted(0.3, image()),
        bytes(100),
    )
        .prop_map(
            |((spcnode, dbnode, relnode, forknum, blkno), will_init, image, data)| Block {
                id: 0,
                spcnode,
                dbnode,
                relnode,
                forknum,
                blkno,
                will_init,
                image,
                data,
            },
        )
}

pub(crate) fn record() -> impl Strategy<Value = DecodedRecord> {
    let blocks = prop_oneof![
        8 => proptest::collection::vec(block(), 0..3),
        1 => proptest::collection::vec(block(), 0..33),
    ];
    let main_data = prop_oneof![8 => bytes(100), 2 => bytes(1000), 1 => bytes(70_000)];
    let header = (any::<u32>(), (1u8..16).prop_map(|info| info << 4), 1u8..22);
    (header, blocks, main_data, 0u16..3, proptest::option::of(1u32..9)).prop_map(
        |((xid, info, rmid), blocks, main_data, origin_id, toplevel_xid)| DecodedRecord {
            header: RecordHeader {
                xid,
                info,
                rmid,
                ..RecordHeader::default()
            },
            blocks: (0..)
                .zip(blocks)
                .map(|(id, block)| Block { id, ..block })
                .collect(),
            main_data,
            origin_id,
            toplevel_xid,
        },
    )
}

/// The record as it comes back: with the header fields the writer filled in.
fn expected(record: &DecodedRecord, previous: Lsn) -> DecodedRecord {
    let mut record = record.clone();
    record.header.prev = previous;
    let raw = encode_record(&record);
    record.header = RecordHeader::decode(&raw).unwrap();
    record
}

struct Written {
    start: Lsn,
    wal: Vec<u8>,
    records: Vec<(RecordPlace, DecodedRecord)>,
}

fn write(start: Lsn, records: Vec<DecodedRecord>) -> Written {
    let mut writer = WalWriter::new(IDENTITY, start, Lsn(start.0 / 2));
    let mut previous = Lsn(start.0 / 2);
    let mut wal = Vec::new();
    let records = records
        .into_iter()
        .map(|record| {
            let expected = expected(&record, previous);
            let place = writer.append(record);
            wal.append(&mut writer.take());
            previous = place.start;
            (place, expected)
        })
        .collect();
    Written { start, wal, records }
}

/// Positions where a record may start: aligned, at the start of a page or behind its header.
fn boundary() -> impl Strategy<Value = Lsn> {
    (1u64..200_000).prop_filter_map("within a page header", |eighth| {
        let lsn = Lsn(eighth * 8);
        let offset = lsn.page_offset(BLCKSZ);
        (offset == 0 || offset >= 40).then_some(lsn)
    })
}

fn written() -> impl Strategy<Value = Written> {
    let near_page_end = (1u64..50, 1u64..8).prop_map(|(page, before)| Lsn(page * 8192 - before * 8));
    let page_start = (1u64..50).prop_map(|page| Lsn(page * 8192));
    let start = prop_oneof![boundary(), near_page_end, page_start];
    (start, proptest::collection::vec(record(), 1..12)).prop_map(|(start, records)| write(start, records))
}

impl std::fmt::Debug for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let places: Vec<_> = self.records.iter().map(|(place, _)| place).collect();
        write!(f, "{} bytes at {}: {places:?}", self.wal.len(), self.start)
    }
}

/// Cuts `wal` into pieces whose lengths come from `lengths`, over and over.
fn pieces<'a>(wal: &'a [u8], lengths: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = wal;
    let mut lengths = lengths.iter().cycle();
    std::iter::from_fn(move || {
        let len = (*lengths.next()?).min(rest.len());
        let (piece, later) = rest.split_at(len);
        rest = later;
        (!piece.is_empty()).then_some(piece)
    })
}

proptest! {
    #[test]
    fn record_round_trip(record in record()) {
        let raw = encode_record(&record);
        let decoded = decode_record(raw.into()).unwrap();
        prop_assert_eq!(decoded, expected(&record, Lsn(0)));
    }

    #[test]
    fn stream_round_trip(written in written(), lengths in proptest::collection::vec(1usize..20_000, 1..20)) {
        let mut decoder = WalStreamDecoder::with_segment_size(written.start, SEGMENT);
        let mut ends = RecordEnds::new(written.start, SEGMENT, Checksums::Verify);
        let mut expected = written.records.iter();
        for piece in pieces(&written.wal, &lengths) {
            decoder.feed(piece);
            ends.feed(piece).unwrap();
            while let Some((end, raw)) = decoder.next_record().unwrap() {
                let (place, record) = expected.next().unwrap();
                prop_assert_eq!((decoder.record_start(), end), (place.start, place.end));
                prop_assert_eq!(&decode_record(raw).unwrap(), record);
            }
            prop_assert_eq!((ends.last_start(), ends.last_end()), (decoder.record_start(), decoder.decoded_lsn()));
            prop_assert_eq!(ends.fed_lsn(), decoder.fed_lsn());
        }
        prop_assert!(expected.next().is_none());
        prop_assert_eq!(decoder.fed_lsn(), Lsn(written.start.0 + written.wal.len() as u64));
    }

    #[test]
    fn every_record_end_is_a_start(written in written()) {
        for (place, _) in &written.records {
            let offset = (place.end.0 - written.start.0) as usize;
            let mut decoder = WalStreamDecoder::with_segment_size(place.end, SEGMENT);
            decoder.feed(&written.wal[offset..]);
            let next = written.records.iter().find(|(next, _)| next.start >= place.end);
            let found = decoder.next_record().unwrap().map(|(end, _)| end);
            prop_assert_eq!(found, next.map(|(next, _)| next.end));
        }
    }

    #[test]
    fn damage_is_found(written in written(), at: prop::sample::Index, bit in 0u8..8) {
        let mut wal = written.wal.clone();
        let at = at.index(wal.len());
        wal[at] ^= 1 << bit;
        let mut decoder = WalStreamDecoder::with_segment_size(written.start, SEGMENT);
        let mut ends = RecordEnds::new(written.start, SEGMENT, Checksums::Verify);
        decoder.feed(&wal);
        let seen = ends.feed(&wal);
        let mut sound = written.records.iter();
        let result = loop {
            match decoder.next_record() {
                Ok(Some((end, raw))) => {
                    let (place, record) = sound.next().unwrap();
                    // Padding and some header fields are not under the checksum; the record must be right all the same.
                    prop_assert_eq!(place.end, end);
                    prop_assert_eq!(&decode_record(raw).unwrap(), record);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        prop_assert_eq!(ends.last_end(), decoder.decoded_lsn());
        prop_assert_eq!(seen.map(|_| ()), result);
        prop_assert_eq!(decoder.next_record().is_err(), result.is_err());
    }

    #[test]
    fn random_bytes_never_panic(
        start: u64, raw in proptest::collection::vec(any::<u8>(), 0..3000), lengths in proptest::collection::vec(1usize..500, 1..5),
    ) {
        let mut decoder = WalStreamDecoder::new(Lsn(start));
        let mut ends = RecordEnds::new(Lsn(start), SEGMENT, Checksums::Skip);
        for piece in pieces(&raw, &lengths) {
            decoder.feed(piece);
            let _ = decoder.next_record();
            let _ = ends.feed(piece);
        }
    }

    #[test]
    fn shutdown_checkpoints(lsn in boundary(), previous in 0u64..100) {
        let lsn = Lsn(lsn.0 + 100 * SEGMENT as u64);
        let made = shutdown_checkpoint(IDENTITY, lsn, Lsn(previous), &CheckPoint::get(&[9; 88]));
        prop_assert_eq!(made.segments[0].0, lsn.0 / SEGMENT as u64);
        prop_assert!(made.segments.iter().all(|(_, segment)| segment.len() == SEGMENT));
        prop_assert_eq!(made.segments.len() as u64, (made.place.end.0 - 1) / SEGMENT as u64 - lsn.0 / SEGMENT as u64 + 1);
        let wal: Vec<u8> = made.segments.iter().flat_map(|(_, segment)| segment.clone()).collect();
        let from = lsn.segment_offset(SEGMENT);
        let mut decoder = WalStreamDecoder::with_segment_size(lsn, SEGMENT);
        decoder.feed(&wal[from..]);
        let (end, raw) = decoder.next_record().unwrap().unwrap();
        prop_assert_eq!((decoder.record_start(), end), (made.place.start, made.place.end));
        let record = decode_record(raw).unwrap();
        prop_assert_eq!((record.header.prev, record.header.rmid, record.header.info), (Lsn(previous), 0, 0));
        let body = CheckPoint::decode(&record.main_data).unwrap();
        prop_assert_eq!(body.redo, made.place.start);
        prop_assert_eq!(body, made.checkpoint);
        // Every page before the record, and its own, has a valid header, and the headers lead to the record.
        let mut at = 0;
        for page in (0..=from).step_by(BLCKSZ).filter(|page| wal.len() > *page) {
            let address = Lsn(lsn.segment_start(SEGMENT).0 + page as u64);
            let header = PageHeader::decode(&wal[page..]).unwrap();
            prop_assert_eq!(header.check(address, SEGMENT), Ok(()));
            prop_assert_eq!(header.is_contrecord(), header.rem_len != 0);
            at = page + wal_page::header_len(address, SEGMENT);
            let left = page + BLCKSZ - at;
            prop_assert!(page + BLCKSZ > from || header.rem_len as usize >= left);
            at += header.rem_len as usize;
        }
        prop_assert_eq!(Lsn(lsn.segment_start(SEGMENT).0 + at as u64), made.place.start);
    }
}

#[test]
fn a_segment_switch_ends_with_its_segment() {
    let switch = DecodedRecord {
        header: RecordHeader {
            info: 0x40,
            ..RecordHeader::default()
        },
        ..expected_noop()
    };
    let start = Lsn(SEGMENT as u64 + 1000);
    let mut writer = WalWriter::new(IDENTITY, start, Lsn(8));
    let place = writer.append(switch);
    let mut wal = writer.take();
    let end = Lsn(2 * SEGMENT as u64);
    wal.resize((end.0 - start.0) as usize, 0);
    let mut writer = WalWriter::new(IDENTITY, end, place.start);
    let after = writer.append(expected_noop());
    wal.append(&mut writer.take());
    for len in [1, 7, 100, 8192, wal.len()] {
        let mut decoder = WalStreamDecoder::with_segment_size(start, SEGMENT);
        let mut found = Vec::new();
        for piece in wal.chunks(len) {
            decoder.feed(piece);
            while let Some((end, raw)) = decoder.next_record().unwrap() {
                assert!(decoder.fed_lsn() >= end);
                found.push((decoder.record_start(), end, raw.len()));
            }
        }
        assert_eq!(found, [(place.start, end, 24), (after.start, after.end, 24)]);
    }
}

fn expected_noop() -> DecodedRecord {
    DecodedRecord {
        header: RecordHeader {
            info: 0x20,
            ..RecordHeader::default()
        },
        blocks: SmallVec::new(),
        main_data: Bytes::new(),
        origin_id: 0,
        toplevel_xid: None,
    }
}

#[test]
fn an_overwritten_record_is_left_out() {
    let start = Lsn(3 * SEGMENT as u64 - 64);
    let lost = DecodedRecord {
        main_data: Bytes::from(vec![1; 200]),
        ..expected_noop()
    };
    let mut writer = WalWriter::new(IDENTITY, start, Lsn(8));
    writer.append(lost);
    let mut wal = writer.take()[..64].to_vec();
    let mut writer = WalWriter::new(IDENTITY, Lsn(start.0 + 64), Lsn(8));
    let place = writer.append(expected_noop());
    let mut replacement = writer.take();
    replacement[2] |= 8;
    wal.append(&mut replacement);
    let mut decoder = WalStreamDecoder::with_segment_size(start, SEGMENT);
    decoder.feed(&wal);
    let (end, raw) = decoder.next_record().unwrap().unwrap();
    assert_eq!(
        (decoder.record_start(), end, raw.len()),
        (place.start, place.end, 24)
    );
    let mut ends = RecordEnds::new(start, SEGMENT, Checksums::Verify);
    assert_eq!(ends.feed(&wal), Ok(place.end));
}

#[test]
fn where_no_record_can_start() {
    for start in [
        Lsn(8192 + 8),
        Lsn(8192 + 100),
        Lsn(SEGMENT as u64 + 24),
        Lsn(u64::MAX - 7),
        Lsn(u64::MAX - 8191),
    ] {
        let mut decoder = WalStreamDecoder::with_segment_size(start, SEGMENT);
        decoder.feed(&[0; 100]);
        assert_eq!(decoder.next_record(), Err(StreamError::Start(start)));
    }
}

#[test]
fn zeros_are_the_end() {
    let start = Lsn(8192 + 24);
    let mut decoder = WalStreamDecoder::with_segment_size(start, SEGMENT);
    decoder.feed(&[0; 3]);
    assert_eq!(decoder.next_record(), Ok(None));
    decoder.feed(&[0; 1]);
    assert_eq!(decoder.next_record(), Err(StreamError::Length { start, len: 0 }));
}
