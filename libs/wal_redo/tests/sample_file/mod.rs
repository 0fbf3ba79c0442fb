//! Reader of `samples.zst`, which `wal_redo_check --samples` makes; the format is described there.

use postgres_ffi::cursor::{Cursor, Truncated};
use postgres_ffi::v15::record_ref::RecordRef;
use utils::lsn::Lsn;
use wal_redo::{PageBuf, PageTag};

/// A page before a record, and what has to come out.
pub struct Sample {
    /// End of the record.
    pub end: Lsn,
    /// Number of the page's block reference.
    pub block: u8,
    /// The record, without images for comparing.
    pub record: Vec<u8>,
    /// The page before.
    pub before: Box<PageBuf>,
    /// CRC32C of the page after.
    pub after_crc: u32,
}

impl Sample {
    fn read(input: &mut Cursor<'_>) -> Result<Self, Truncated> {
        let (end, block, len) = (input.lsn()?, input.u8()?, input.u32()?);
        Ok(Sample {
            end,
            block,
            record: input.bytes(len as usize)?.to_vec(),
            before: Box::new(input.array()?),
            after_crc: input.u32()?,
        })
    }

    /// Which page it is.
    pub fn tag(&self) -> PageTag {
        let record = RecordRef::parse(&self.record).unwrap();
        record.block(self.block).unwrap().into()
    }
}

/// All samples.
pub fn load() -> Vec<Sample> {
    const LEN_MAX: usize = 64 << 20;
    let raw = zstd::bulk::decompress(include_bytes!("../samples.zst"), LEN_MAX).unwrap();
    let mut input = Cursor::new(&raw);
    let mut samples = Vec::new();
    while input.left() > 0 {
        samples.push(Sample::read(&mut input).unwrap());
    }
    samples
}
