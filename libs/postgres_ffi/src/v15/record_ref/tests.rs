//! The short way for plain records and the way for all of them.

use proptest::prelude::*;

use super::*;

/// A plain record of block 0 with so much data and main data.
fn plain(flags: u8, data: &[u8], main_data: &[u8]) -> Vec<u8> {
    let body = [
        &[0, flags],
        &(data.len() as u16).to_le_bytes()[..],
        &[0x7f, 6, 0, 0, 5, 0, 0, 0, 0, 0x40, 0, 0, 9, 0, 1, 0],
        &[XLR_BLOCK_ID_DATA_SHORT, main_data.len() as u8],
        data,
        main_data,
    ]
    .concat();
    let header = RecordHeader {
        total_len: (RecordHeader::LEN + body.len()) as u32,
        xid: 7,
        info: 0x20,
        rmid: 10,
        ..RecordHeader::default()
    };
    [&header.encode()[..], &body].concat()
}

/// Takes a record apart in the short way, if it is plain.
fn in_short(raw: &[u8]) -> Option<RecordRef<'_>> {
    let mut record = RecordRef::empty();
    record.read_plain(raw).then_some(record)
}

fn in_full(raw: &[u8]) -> Result<RecordRef<'_>, DecodeError> {
    let mut record = RecordRef::empty();
    record.read_any(raw)?;
    Ok(record)
}

proptest! {
    #[test]
    fn both_ways_give_the_same(
        data in proptest::collection::vec(any::<u8>(), 0..300),
        main_data in proptest::collection::vec(any::<u8>(), 0..256),
        will_init: bool,
        changes in proptest::collection::vec((0..64usize, any::<u8>()), 0..3),
    ) {
        let has_data = if data.is_empty() { 0 } else { BKPBLOCK_HAS_DATA };
        let init = if will_init { BKPBLOCK_WILL_INIT } else { 0 };
        let mut raw = plain(has_data | init | 1, &data, &main_data);
        let record = in_short(&raw);
        prop_assert!(record.is_some());
        prop_assert_eq!(record, in_full(&raw).ok());
        for (at, byte) in changes {
            if let Some(place) = raw.get_mut(at) {
                *place = byte;
            }
        }
        if let Some(record) = in_short(&raw) {
            prop_assert_eq!(Ok(record), in_full(&raw));
        }
    }
}
