//! One replayed block of each kind, kept for tests: a page before, a record without its image, and a checksum of
//! the page after, which was equal to PostgreSQL's.
//!
//! The file is one Zstandard frame of samples, each: end of the record (`u64`), number of the block reference
//! (`u8`), length of the record (`u32`), record, page before, CRC32C of the page after (`u32`). Little endian.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use bytes::Bytes;
use postgres_ffi::v15::decode::decode_record;
use postgres_ffi::v15::encode::encode_record;
use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::rmgr::record_name;
use utils::lsn::Lsn;
use wal_redo::PageBuf;

/// Records longer than this are not kept.
const RECORD_LEN_MAX: usize = 4096;
const COMPRESSION_LEVEL: i32 = 19;

/// What a sample is one of: resource manager, kind of record, number of the block reference.
type Kind = (u8, &'static str, u8);

/// Samples by their kind.
#[derive(Default)]
pub struct Samples(BTreeMap<Kind, Vec<u8>>);

fn kind_of(record: &RecordRef<'_>, block: u8) -> Kind {
    let kind = record_name(record.header.rmid, record.header.info);
    (record.header.rmid, kind, block)
}

impl Samples {
    /// Whether there is no sample of this kind yet.
    pub fn wants(&self, record: &RecordRef<'_>, block: u8) -> bool {
        !self.0.contains_key(&kind_of(record, block))
    }

    /// Keeps a block that was replayed as it should be.
    pub fn keep(&mut self, raw: &[u8], block: u8, end: Lsn, before: &PageBuf, after: &PageBuf) -> Result<()> {
        let mut record = decode_record(Bytes::copy_from_slice(raw))?;
        for block in &mut record.blocks {
            block.image.take_if(|image| !image.apply);
        }
        let without_image = encode_record(&record);
        if without_image.len() > RECORD_LEN_MAX {
            return Ok(());
        }
        let kind = kind_of(&RecordRef::parse(&without_image)?, block);
        let mut sample = Vec::new();
        sample.extend_from_slice(&end.0.to_le_bytes());
        sample.push(block);
        sample.extend_from_slice(&(without_image.len() as u32).to_le_bytes());
        sample.extend_from_slice(&without_image);
        sample.extend_from_slice(before);
        sample.extend_from_slice(&crc32c::crc32c(after).to_le_bytes());
        self.0.insert(kind, sample);
        Ok(())
    }

    /// Adds the samples of another thread.
    pub fn merge(&mut self, other: Samples) {
        for (kind, sample) in other.0 {
            self.0.entry(kind).or_insert(sample);
        }
    }

    /// Writes all to a file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let all: Vec<u8> = self.0.values().flatten().copied().collect();
        let compressed = zstd::bulk::compress(&all, COMPRESSION_LEVEL).context("cannot compress samples")?;
        fs::write(path, compressed).with_context(|| format!("cannot write {}", path.display()))
    }
}
