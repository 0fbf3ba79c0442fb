//! Decoder and acceptor on any bytes. See the harness.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../harness.rs"]
mod harness;

fuzz_target!(|input: &[u8]| harness::run(input));
