//! Real records and pages, one of each kind, with some bytes overwritten: redo gives an error or a page. The input is the
//! number of the sample (two bytes) and four bytes for each change: of what, where (two bytes), and the new value.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use utils::lsn::Lsn;
use wal_redo::apply;
use wal_redo::page::Page;

#[path = "../../tests/sample_file/mod.rs"]
#[allow(dead_code)] // What comes out of an undamaged sample is the tests' to check.
mod sample_file;

static SAMPLES: LazyLock<Vec<sample_file::Sample>> = LazyLock::new(sample_file::load);

/// Length of the page's header and its first line pointers, which decide most, in bytes.
const PAGE_START: usize = 64;
/// Where a page's contents begin that are worth damaging, behind its LSN and checksum.
const PAGE_FROM: usize = 10;

fuzz_target!(|data: &[u8]| {
    let Some((choice, changes)) = data.split_first_chunk::<2>() else {
        return;
    };
    let sample = &SAMPLES[usize::from(u16::from_le_bytes(*choice)) % SAMPLES.len()];
    let (mut record, mut page) = (sample.record.clone(), sample.before.clone());
    for [what, low, high, value] in changes.as_chunks().0 {
        let place = usize::from(u16::from_le_bytes([*low, *high]));
        match what % 4 {
            0 | 1 => {
                // The length is put right below.
                let at = 4 + place % (record.len() - 4);
                record[at] = *value;
            }
            2 => page[PAGE_FROM + place % (PAGE_START - PAGE_FROM)] = *value,
            _ => page[PAGE_FROM + place % (page.len() - PAGE_FROM)] = *value,
        }
    }
    // Otherwise the page may say that it has the change already.
    Page::new(&mut page).set_lsn(Lsn(0));
    let _ = apply(&mut page, &sample.tag(), sample.end, &record);
});
