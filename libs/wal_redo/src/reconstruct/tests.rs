use pageserver_api::key::{rel_block_key, relmap_key, slru_block_key};
use pageserver_api::reltag::SlruKind;
use postgres_ffi::v15::rmgr::{RM_HEAP_ID, XLOG_HEAP_INIT_PAGE, XLOG_HEAP_INSERT};

use super::*;
use crate::page::HEADER_LEN;

pub(crate) const REL: RelTag = RelTag {
    spcnode: 1663,
    dbnode: 5,
    relnode: 16384,
    fork: Fork::Main,
};

/// A record with one block and no image.
pub(crate) fn record(rmid: u8, info: u8, rel: RelTag, blkno: u32, data: &[u8], main: &[u8]) -> Bytes {
    let mut raw = vec![0; 24];
    let init = if info & XLOG_HEAP_INIT_PAGE != 0 { 0x40 } else { 0 };
    raw.extend_from_slice(&[0, rel.fork as u8 | 0x20 | init]);
    raw.extend_from_slice(&(data.len() as u16).to_le_bytes());
    for word in [rel.spcnode, rel.dbnode, rel.relnode, blkno] {
        raw.extend_from_slice(&word.to_le_bytes());
    }
    raw.extend_from_slice(&[255, main.len() as u8]);
    raw.extend_from_slice(data);
    raw.extend_from_slice(main);
    let len = raw.len() as u32;
    raw[..4].copy_from_slice(&len.to_le_bytes());
    raw[4..8].copy_from_slice(&700u32.to_le_bytes());
    raw[16] = info;
    raw[17] = rmid;
    raw.into()
}

fn insert(offset: u8, info: u8) -> WalRecord {
    let data = [1, 0, 0x02, 0x08, 24, 0, b'r', b'o', b'w'];
    WalRecord::Postgres {
        will_init: info & XLOG_HEAP_INIT_PAGE != 0,
        record: record(
            RM_HEAP_ID,
            XLOG_HEAP_INSERT | info,
            REL,
            7,
            &data,
            &[offset, 0, 0],
        ),
    }
}

#[test]
fn rows_are_added_in_order() {
    let records = [
        (Lsn(0x1_0000_0010), insert(1, XLOG_HEAP_INIT_PAGE)),
        (Lsn(0x1_0000_0020), insert(2, 0)),
    ];
    let value = reconstruct(rel_block_key(REL, 7), None, &records).unwrap();
    let mut raw = <PageBuf>::try_from(&value[..]).unwrap();
    let page = Page::new(&mut raw);
    assert_eq!((page.lsn(), page.max_offset()), (Lsn(0x1_0000_0020), 2));
    let row = page.item(2).unwrap();
    assert_eq!(row[..4], 700u32.to_le_bytes());
    assert_eq!(row[12..18], [0, 0, 7, 0, 2, 0]);
    assert_eq!(&row[23..], b"\0row");

    // What the page has already is passed over; an initialising record makes all before it pointless.
    let key = rel_block_key(REL, 7);
    assert_eq!(
        reconstruct(key, Some(value.clone()), &records[1..]),
        Ok(value.clone())
    );
    assert_eq!(
        reconstruct(key, Some(Bytes::from(vec![9; PAGE_SIZE])), &records),
        Ok(value)
    );
}

#[test]
fn errors_name_the_place() {
    let key = rel_block_key(REL, 7);
    let records = [(Lsn(0x20), insert(3, XLOG_HEAP_INIT_PAGE))];
    assert_eq!(
        reconstruct(key, None, &records).unwrap_err().to_string(),
        "cannot replay record ending at 0/20 (Heap info 0x80) on block 7 of fork 0 of 1663/5/16384: \
         the record does not fit the page: item 3 is beyond the first free one"
    );
    let error = reconstruct(key, None, &[(Lsn(0x20), insert(1, 0))]).unwrap_err();
    assert_eq!(error.fault, Fault::NoBase);
    let error = reconstruct(rel_block_key(REL, 8), None, &records).unwrap_err();
    assert_eq!(error.fault, Fault::NotReferenced);
    let error = reconstruct(relmap_key(1663, 5), None, &records).unwrap_err();
    assert_eq!(error.fault, Fault::WrongKind);
}

#[test]
fn clog_keeps_the_latest_commit_time() {
    let key = slru_block_key(SlruKind::Clog, 1, 2);
    let first = (32 + 2) * 32768;
    let commit = |xids: &[u32], timestamp| WalRecord::ClogSetCommitted {
        xids: xids.to_vec(),
        timestamp,
    };
    let base = Bytes::from(vec![0; PAGE_SIZE]);
    let records = [
        (Lsn(8), commit(&[first, first + 5], 1000)),
        (
            Lsn(16),
            WalRecord::ClogSetAborted {
                xids: vec![first + 6],
            },
        ),
        (Lsn(24), commit(&[first + 32767], 900)),
    ];
    let value = reconstruct(key, Some(base.clone()), &records).unwrap();
    assert_eq!(value[..2], [0b01, 0b10_01_00]);
    assert_eq!(value[PAGE_SIZE - 1], 0b01_00_00_00);
    assert_eq!(value[PAGE_SIZE..], 1000i64.to_be_bytes());
    let later = reconstruct(key, Some(value), &[(Lsn(32), commit(&[first + 1], 2000))]).unwrap();
    assert_eq!(later[0], 0b01_01);
    assert_eq!(later[PAGE_SIZE..], 2000i64.to_be_bytes());
    let error = reconstruct(key, Some(base), &[(Lsn(8), commit(&[3], 0))]).unwrap_err();
    assert_eq!(error.fault, Fault::Record("a transaction of another page"));
}

#[test]
fn multixact_members_may_span_pages() {
    let records = [(
        Lsn(8),
        WalRecord::MultixactMembersCreate {
            offset: 1635,
            members: vec![(11, 4), (12, 5), (13, 1)],
        },
    )];
    let base = || Some(Bytes::from(vec![0; PAGE_SIZE]));
    let page = |block| slru_block_key(SlruKind::MultiXactMembers, 0, block);
    let first = reconstruct(page(0), base(), &records).unwrap();
    let second = reconstruct(page(1), base(), &records).unwrap();
    assert_eq!(
        first[408 * 20..409 * 20],
        [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0]
    );
    assert_eq!(second[..12], [5, 1, 0, 0, 12, 0, 0, 0, 13, 0, 0, 0]);
    assert!(reconstruct(page(2), base(), &records).is_err());
}

#[test]
fn multixact_offset_has_four_bytes() {
    let key = slru_block_key(SlruKind::MultiXactOffsets, 0, 1);
    let record = WalRecord::MultixactOffsetCreate {
        multi: 2049,
        offset: 0x0102_0304,
    };
    let value = reconstruct(key, Some(Bytes::from(vec![0; PAGE_SIZE])), &[(Lsn(8), record)]).unwrap();
    assert_eq!(value[..8], [0, 0, 0, 0, 4, 3, 2, 1]);
}

#[test]
fn visibility_bits_are_cleared_on_their_own_page_only() {
    let rel = RelTag {
        fork: Fork::Vm,
        ..REL
    };
    let record = WalRecord::ClearVisibilityMapFlags {
        new_heap_block: Some(5),
        old_heap_block: Some(visibility::HEAP_PAGES_PER_PAGE + 4),
        flags: visibility::ALL_FROZEN,
    };
    let base = Some(Bytes::from(vec![0xff; PAGE_SIZE]));
    let records = [(Lsn(8), record)];
    let first = reconstruct(rel_block_key(rel, 0), base.clone(), &records).unwrap();
    let second = reconstruct(rel_block_key(rel, 1), base.clone(), &records).unwrap();
    assert_eq!(first[HEADER_LEN..HEADER_LEN + 3], [0xff, 0b1111_0111, 0xff]);
    assert_eq!(second[HEADER_LEN..HEADER_LEN + 3], [0xff, 0b1111_1101, 0xff]);
    let error = reconstruct(rel_block_key(REL, 0), base, &records).unwrap_err();
    assert_eq!(error.fault, Fault::WrongKind);
}
