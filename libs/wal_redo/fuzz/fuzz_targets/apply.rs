//! Redo on any record and any page: never a panic, never an endless loop.
//!
//! Input: the page, then the record. The record's length is made right, since nothing else gets far. Seeds are the
//! samples of the tests: `cargo run -p wal_redo --example fuzz_seeds -- libs/wal_redo/fuzz/corpus/apply`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postgres_ffi::v15::record_ref::RecordRef;
use utils::lsn::Lsn;
use wal_redo::{PAGE_SIZE, PageBuf, apply_to_blocks};

fuzz_target!(|input: &[u8]| {
    let Some((page, record)) = input.split_first_chunk::<PAGE_SIZE>() else {
        return;
    };
    let mut record = record.to_vec();
    let len = record.len() as u32;
    if let Some(total_len) = record.first_chunk_mut::<4>() {
        *total_len = len.to_le_bytes();
    }
    let Ok(record) = RecordRef::parse(&record) else {
        return;
    };
    for block in &record.blocks {
        let mut page: PageBuf = *page;
        let _ = apply_to_blocks(&record, Lsn(u64::MAX), [(block.id, &mut page)]);
    }
});
