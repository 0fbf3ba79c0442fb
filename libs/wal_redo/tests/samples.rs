//! One real record of each kind and block, from a stock server's WAL: replayed as it is it must give the page that
//! was proved equal to PostgreSQL's; damaged in any way it must give an error or some page, never a panic.
#![allow(clippy::unwrap_used)] // The helpers belong to the tests.

mod sample_file;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::rmgr::record_name;
use proptest::prelude::*;
use utils::lsn::Lsn;
use wal_redo::apply;
use wal_redo::page::Page;

use sample_file::Sample;

static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(sample_file::load);

#[test]
fn every_sample_replays() {
    let mut kinds = BTreeSet::new();
    for sample in SAMPLES.iter() {
        let record = RecordRef::parse(&sample.record).unwrap();
        let kind = (
            record.header.rmid,
            record_name(record.header.rmid, record.header.info),
            sample.block,
        );
        let mut page = sample.before.clone();
        apply(&mut page, &sample.tag(), sample.end, &sample.record).unwrap();
        assert_eq!(crc32c::crc32c(&page[..]), sample.after_crc, "{kind:?}");
        // Once more: the page says that it has the change already, or is made anew.
        apply(&mut page, &sample.tag(), sample.end, &sample.record).unwrap();
        assert_eq!(crc32c::crc32c(&page[..]), sample.after_crc, "{kind:?} again");
        assert!(kinds.insert(kind), "{kind:?} twice");
    }
    // The lists of blocks in the modules' heads have about so many entries.
    assert!(kinds.len() > 110, "only {} kinds of blocks", kinds.len());
}

/// Bytes to overwrite: where, as a fraction of the length, and with what.
fn damage(max: usize) -> impl Strategy<Value = Vec<(f64, u8)>> {
    proptest::collection::vec((0.0..1.0, any::<u8>()), 0..max)
}

fn overwrite(bytes: &mut [u8], damage: &[(f64, u8)]) {
    for (place, value) in damage {
        let at = (place * bytes.len() as f64) as usize;
        if let Some(byte) = bytes.get_mut(at) {
            *byte = *value;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn damage_never_panics(
        choice: prop::sample::Index,
        in_headers in damage(2),
        in_payload in damage(6),
        in_header_of_page in damage(3),
        in_page in damage(10),
        cut in proptest::option::of(0.0..1.0),
    ) {
        let sample = &SAMPLES[choice.index(SAMPLES.len())];
        let mut record = sample.record.clone();
        let mut page = sample.before.clone();
        let parsed = RecordRef::parse(&sample.record).unwrap();
        let payload: usize = parsed.blocks.iter().map(|block| block.data.len()).sum();
        let (headers, payload) = record.split_at_mut(sample.record.len() - payload - parsed.main_data.len());
        // Few records with damaged headers get far; most of the damage is behind them.
        if in_payload.is_empty() {
            overwrite(headers, &in_headers);
        }
        overwrite(payload, &in_payload);
        // The page's pointers and first line pointers decide where redo reads and writes.
        overwrite(&mut page[8..64], &in_header_of_page);
        overwrite(&mut page[..], &in_page);
        if let Some(cut) = cut.filter(|_| in_payload.is_empty()) {
            record.truncate((cut * record.len() as f64) as usize);
        }
        if record.len() >= 4 {
            let len = record.len() as u32;
            record[..4].copy_from_slice(&len.to_le_bytes());
        }
        let _ = apply(&mut page, &sample.tag(), sample.end, &record);
    }

    /// Another kind's record for the same page: what a mixed-up history would give.
    #[test]
    fn foreign_pages_never_panic(record: prop::sample::Index, page: prop::sample::Index) {
        let record = &SAMPLES[record.index(SAMPLES.len())];
        let mut page = SAMPLES[page.index(SAMPLES.len())].before.clone();
        Page::new(&mut page).set_lsn(Lsn(0));
        let _ = apply(&mut page, &record.tag(), record.end, &record.record);
    }
}
