//! Writes the samples of the tests as seeds for the fuzz target: `fuzz_seeds fuzz/corpus/apply`.
#![allow(clippy::unwrap_used)] // A tool for developers; the sample file belongs to the tests.

#[path = "../tests/sample_file/mod.rs"]
mod sample_file;

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let dir = PathBuf::from(env::args().nth(1).expect("usage: fuzz_seeds DIR"));
    fs::create_dir_all(&dir).unwrap();
    for sample in sample_file::load() {
        let seed = [&sample.before[..], &sample.record].concat();
        let name = format!("{}_{}_{:08x}", sample.end.0, sample.tag().blkno, sample.after_crc);
        fs::write(dir.join(name), seed).unwrap();
    }
}
