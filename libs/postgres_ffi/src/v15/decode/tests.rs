//! Records written byte by byte, and bytes that are none.

use proptest::prelude::*;

use super::*;

/// A record with these bytes behind the header.
fn record(body: &[u8]) -> Bytes {
    let header = RecordHeader {
        total_len: (RecordHeader::LEN + body.len()) as u32,
        xid: 7,
        prev: Lsn(0x1_0000_0028),
        info: 0x81,
        rmid: 10,
        crc: 0,
    };
    let mut raw = [&header.encode()[..], body].concat();
    let crc = record_crc(&raw);
    raw[RecordHeader::CRC_OFFSET..RecordHeader::LEN].copy_from_slice(&crc.to_le_bytes());
    raw.into()
}

fn decode(parts: &[&[u8]]) -> Result<DecodedRecord, DecodeError> {
    decode_record(record(&parts.concat()))
}

/// Relation 1663/5/16384 in a block header.
const REL: &[u8] = &[0x7f, 6, 0, 0, 5, 0, 0, 0, 0, 0x40, 0, 0];

#[test]
fn every_fragment() {
    let decoded = decode(&[
        &[0, 0x60, 3, 0],
        REL,
        &[9, 0, 0, 0],                      // block 0: data, will init
        &[2, 0x92, 0, 0, 4, 0, 2, 0, 0x03], // block 2: image with hole, same relation, fork 2
        &[1, 0, 0, 0],
        &[253, 0x34, 0x12],
        &[252, 5, 0, 0, 0],
        &[255, 2],
        b"abc",
        b"wxyz",
        b"MD",
    ])
    .unwrap();
    assert_eq!((decoded.origin_id, decoded.toplevel_xid), (0x1234, Some(5)));
    assert_eq!(&decoded.main_data[..], b"MD");
    assert_eq!(
        (decoded.rmgr_info(), decoded.header.prev),
        (0x80, Lsn(0x1_0000_0028))
    );
    let first = decoded.block(0).unwrap();
    assert_eq!(
        (first.spcnode, first.dbnode, first.relnode, first.blkno),
        (1663, 5, 16384, 9)
    );
    assert!(first.will_init && first.image.is_none());
    assert_eq!(&first.data[..], b"abc");
    let second = decoded.block(2).unwrap();
    assert_eq!(
        (second.relnode, second.forknum, second.blkno, second.will_init),
        (16384, 2, 1, false)
    );
    let image = second.image.as_ref().unwrap();
    assert_eq!(
        (&image.data[..], image.hole_offset, image.hole_length),
        (&b"wxyz"[..], 2, 8188)
    );
    assert!(decoded.block(1).is_none());
}

#[test]
fn no_main_data_and_long_main_data() {
    let decoded = decode(&[&[0, 0x20, 3, 0], REL, &[9, 0, 0, 0], b"abc"]).unwrap();
    assert!(decoded.main_data.is_empty());
    let long = vec![7; 300];
    let decoded = decode(&[&[254, 0x2c, 1, 0, 0], &long]).unwrap();
    assert_eq!(decoded.main_data, long);
    assert_eq!(decode(&[]).unwrap().blocks.len(), 0);
}

#[test]
fn what_is_refused() {
    let image = |len: u16, hole: u16, flags: u8, more: &[u8]| {
        let header = [
            &[0, 0x10, 0, 0][..],
            &len.to_le_bytes(),
            &hole.to_le_bytes(),
            &[flags],
            more,
        ]
        .concat();
        decode(&[&header, REL, &[0; 4], &vec![1; len.into()]])
    };
    let refused =
        |result: Result<DecodedRecord, DecodeError>| matches!(result, Err(DecodeError::Image { .. }));
    assert!(image(8192, 0, 0, &[]).is_ok());
    assert!(image(8000, 100, 0x01, &[]).is_ok());
    assert!(image(100, 100, 0x05, &[200, 0]).is_ok());
    assert!(image(100, 0, 0x08, &[]).is_ok());
    assert!(refused(image(8191, 0, 0, &[])), "short without a hole");
    assert!(refused(image(8192, 100, 0x01, &[])), "hole without length");
    assert!(refused(image(8000, 0, 0x01, &[])), "hole at 0");
    assert!(refused(image(8193, 0, 0, &[])), "longer than a page");
    assert!(refused(image(100, 100, 0x0d, &[200, 0])), "two compressions");
    assert!(refused(image(8192, 0, 0x04, &[])), "compression without gain");
    assert!(refused(image(100, 8000, 0x05, &[200, 0])), "hole behind the page");
    assert_eq!(
        decode(&[&[0, 0x20, 0, 0], REL, &[0; 4]]),
        Err(DecodeError::DataFlag { id: 0, len: 0 })
    );
    assert_eq!(decode(&[&[1, 0x80, 0, 0], REL]), Err(DecodeError::NoRelation(1)));
    assert_eq!(
        decode(&[&[33, 0, 0, 0], REL]),
        Err(DecodeError::UnknownBlockId(33))
    );
    let twice = decode(&[&[1, 0, 0, 0], REL, &[0; 4], &[1, 0, 0, 0], REL, &[0; 4]]);
    assert_eq!(twice, Err(DecodeError::BlockOrder(1)));
    assert_eq!(
        decode(&[&[255, 3], b"ab"]),
        Err(DecodeError::Payload { stated: 3, got: 2 })
    );
    assert_eq!(
        decode(&[&[254, 0xff, 0xff, 0xff, 0xff]]),
        Err(DecodeError::Payload {
            stated: 0xffff_ffff,
            got: 0
        })
    );
}

#[test]
fn checksum() {
    let good = record(&[255, 1, 9]);
    assert_eq!(check_crc(&good), Ok(()));
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 0x10;
        assert!(check_crc(&bad).is_err(), "byte {at}");
    }
    assert!(check_crc(&good[..23]).is_err());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200), start in 0u8..=35) {
        let _ = decode(&[&body]);
        let _ = decode(&[&[start], &body]);
        let _ = decode_record(Bytes::from(body.clone()));
    }

    #[test]
    fn header_round_trip(total_len: u32, xid: u32, prev: u64, info: u8, rmid: u8, crc: u32) {
        let header = RecordHeader { total_len, xid, prev: Lsn(prev), info, rmid, crc };
        prop_assert_eq!(RecordHeader::decode(&header.encode()), Ok(header));
    }
}
