//! The WAL a compute writes: valid records whose content no other compute writes.

use bytes::Bytes;
use postgres_ffi::v15::encode::{WalIdentity, WalWriter};
use postgres_ffi::v15::record::{Blocks, DecodedRecord, RecordHeader};
use utils::lsn::Lsn;

use crate::rng::Rng;

/// The smallest segments PostgreSQL allows: more boundaries in less WAL.
pub const SEGMENT_SIZE: usize = 1 << 20;
/// System identifier of the simulated cluster.
pub const SYSTEM_ID: u64 = 7;

/// Resource manager of logical messages, which mean nothing to anyone here.
const RM_LOGICALMSG_ID: u8 = 21;

/// WAL in a compute's local directory.
pub struct LocalWal {
    start: Lsn,
    bytes: Vec<u8>,
    writer: WalWriter,
    /// Written into every record.
    compute: u64,
    records: u64,
}

impl LocalWal {
    /// WAL that goes on from `start`, where a record or a page header may stand. The record before, if
    /// there is one, starts at `previous`.
    pub fn new(compute: u64, start: Lsn, previous: Lsn) -> LocalWal {
        let identity = WalIdentity {
            system_id: SYSTEM_ID,
            segment_size: SEGMENT_SIZE,
        };
        LocalWal {
            start,
            bytes: Vec::new(),
            writer: WalWriter::new(identity, start, previous),
            compute,
            records: 0,
        }
    }

    /// First position.
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// End of the last record.
    pub fn end(&self) -> Lsn {
        self.start + self.bytes.len() as u64
    }

    /// Writes a record with a random amount of data.
    pub fn write_record(&mut self, rng: &mut Rng) {
        let len = match rng.below(40) {
            0 => rng.between(8_000, 40_000),
            1..5 => rng.between(500, 3_000),
            // Records of the same few lengths, so that boundaries of different computes coincide.
            _ => 40 + 8 * rng.below(4),
        };
        self.records += 1;
        let mut data = Vec::with_capacity(len as usize);
        data.extend_from_slice(&self.compute.to_le_bytes());
        data.extend_from_slice(&self.records.to_le_bytes());
        data.resize(len as usize, self.compute as u8);
        self.writer.append(DecodedRecord {
            header: RecordHeader {
                total_len: 0,
                xid: 1,
                prev: Lsn::INVALID,
                info: 0,
                rmid: RM_LOGICALMSG_ID,
                crc: 0,
            },
            blocks: Blocks::new(),
            main_data: data.into(),
            origin_id: 0,
            toplevel_xid: None,
        });
        self.bytes.extend_from_slice(&self.writer.take());
    }

    /// The WAL from `begin` to `end`, which are both within it.
    pub fn slice(&self, begin: Lsn, end: Lsn) -> &[u8] {
        &self.bytes[(begin - self.start) as usize..(end - self.start) as usize]
    }

    /// The WAL from `begin` on, at most `bytes_max` of it.
    pub fn chunk(&self, begin: Lsn, bytes_max: u64) -> Bytes {
        let end = self.end().min(begin + bytes_max);
        Bytes::copy_from_slice(self.slice(begin, end))
    }
}
