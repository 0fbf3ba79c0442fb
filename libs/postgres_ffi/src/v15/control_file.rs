//! `global/pg_control` (`ControlFileData`): 8192 bytes, of which the first 296 mean something.

use utils::lsn::Lsn;

use super::checkpoint::CheckPoint;
use crate::c_struct;
use crate::c_struct::{CStruct, CValue};

/// Size of the file in bytes; zeros behind the data.
pub const CONTROL_FILE_SIZE: usize = 8192;
/// `PG_CONTROL_VERSION` of PostgreSQL 15.
pub const CONTROL_VERSION: u32 = 1300;
/// `state` of a cluster that was shut down: it starts without recovery (`DB_SHUTDOWNED`).
pub const DB_SHUTDOWNED: u32 = 1;
/// `state` of a running cluster (`DB_IN_PRODUCTION`).
pub const DB_IN_PRODUCTION: u32 = 6;

const CRC_OFFSET: usize = 288;

c_struct! {
    /// Contents of `pg_control`, without padding.
    pub struct ControlFile("ControlFileData", "sizeof(ControlFileData)" = 296) {
        /// Identifies the cluster; stands in the first page header of every WAL segment.
        system_identifier: u64 = 0 "system_identifier",
        /// Format of this file.
        control_version: u32 = 8 "pg_control_version",
        /// Format of the system catalogs.
        catalog_version: u32 = 12 "catalog_version_no",
        /// `DBState`.
        state: u32 = 16 "state",
        /// Time of the last change, seconds since 1970-01-01.
        time: i64 = 24 "time",
        /// Start of the last checkpoint record.
        checkpoint_lsn: Lsn = 32 "checkPoint",
        /// Copy of that record's body.
        checkpoint: CheckPoint = 40 "checkPointCopy",
        /// Fake LSN counter of unlogged relations.
        unlogged_lsn: Lsn = 128 "unloggedLSN",
        /// Recovery must go at least this far, 0 outside archive recovery.
        min_recovery_point: Lsn = 136 "minRecoveryPoint",
        /// PostgreSQL's timeline of that point.
        min_recovery_timeline: u32 = 144 "minRecoveryPointTLI",
        /// Start of the base backup being recovered from.
        backup_start: Lsn = 152 "backupStartPoint",
        /// End of the base backup being recovered from.
        backup_end: Lsn = 160 "backupEndPoint",
        /// Whether a backup-end record must come.
        backup_end_required: bool = 168 "backupEndRequired",
        /// Setting `wal_level`: 0 minimal, 1 replica, 2 logical.
        wal_level: i32 = 172 "wal_level",
        /// Setting `wal_log_hints`.
        wal_log_hints: bool = 176 "wal_log_hints",
        /// Setting `max_connections`.
        max_connections: i32 = 180 "MaxConnections",
        /// Setting `max_worker_processes`.
        max_worker_processes: i32 = 184 "max_worker_processes",
        /// Setting `max_wal_senders`.
        max_wal_senders: i32 = 188 "max_wal_senders",
        /// Setting `max_prepared_transactions`.
        max_prepared_transactions: i32 = 192 "max_prepared_xacts",
        /// Setting `max_locks_per_transaction`.
        max_locks_per_transaction: i32 = 196 "max_locks_per_xact",
        /// Setting `track_commit_timestamp`.
        track_commit_timestamp: bool = 200 "track_commit_timestamp",
        /// Alignment of tuples.
        max_align: u32 = 204 "maxAlign",
        /// 1234567.0, to detect another floating point format.
        float_format: f64 = 208 "floatFormat",
        /// Size of a data page in bytes.
        page_size: u32 = 216 "blcksz",
        /// Pages in a segment file of a relation.
        relation_segment_pages: u32 = 220 "relseg_size",
        /// Size of a WAL page in bytes.
        wal_page_size: u32 = 224 "xlog_blcksz",
        /// Size of a WAL segment in bytes.
        wal_segment_size: u32 = 228 "xlog_seg_size",
        /// Length of a name in the catalogs.
        name_data_len: u32 = 232 "nameDataLen",
        /// Most columns in an index.
        index_max_keys: u32 = 236 "indexMaxKeys",
        /// Chunk size of TOAST tables.
        toast_max_chunk_size: u32 = 240 "toast_max_chunk_size",
        /// Chunk size of large objects.
        large_object_chunk_size: u32 = 244 "loblksize",
        /// Whether 8-byte values are passed by value.
        float8_by_value: bool = 248 "float8ByVal",
        /// Version of data checksums, 0 if off.
        data_checksum_version: u32 = 252 "data_checksum_version",
        /// Random bytes for authentication of users that do not exist.
        mock_authentication_nonce: [u8; 32] = 256 "mock_authentication_nonce",
        /// CRC32C of all bytes before it.
        crc: u32 = 288 "crc",
    }
}

/// The bytes are not a control file of PostgreSQL 15.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
pub enum ControlFileError {
    /// The file is too short.
    #[error("pg_control has {0} bytes, at least 296 are needed")]
    Length(usize),
    /// Another major version.
    #[error("pg_control has version {0}, PostgreSQL 15 writes {CONTROL_VERSION}")]
    Version(u32),
    /// The checksum is wrong.
    #[error("pg_control has checksum {stated:08X}, its bytes have {computed:08X}")]
    Crc {
        /// Checksum in the file.
        stated: u32,
        /// Checksum of the bytes.
        computed: u32,
    },
}

impl ControlFile {
    /// Reads and checks the file's bytes; zeros behind the data may be missing.
    pub fn from_file(raw: &[u8]) -> Result<Self, ControlFileError> {
        let control = Self::decode(raw).map_err(|_| ControlFileError::Length(raw.len()))?;
        if control.control_version != CONTROL_VERSION {
            return Err(ControlFileError::Version(control.control_version));
        }
        let computed = crc32c::crc32c(&raw[..CRC_OFFSET]);
        if control.crc != computed {
            return Err(ControlFileError::Crc {
                stated: control.crc,
                computed,
            });
        }
        Ok(control)
    }

    /// The file's bytes, with the checksum made anew.
    pub fn to_file(&self) -> Vec<u8> {
        let mut raw = vec![0; CONTROL_FILE_SIZE];
        self.put(&mut raw);
        let crc = crc32c::crc32c(&raw[..CRC_OFFSET]);
        crc.put(&mut raw[CRC_OFFSET..]);
        raw
    }

    /// Makes this the control file of a cluster that was shut down with the checkpoint record at `lsn`, so that the
    /// server starts without recovery.
    pub fn set_shut_down(&mut self, lsn: Lsn, checkpoint: CheckPoint) {
        assert_eq!(
            checkpoint.redo, lsn,
            "redo of a shutdown checkpoint starts at the record"
        );
        self.state = DB_SHUTDOWNED;
        self.time = checkpoint.time;
        self.checkpoint_lsn = lsn;
        self.checkpoint = checkpoint;
        self.min_recovery_point = Lsn::INVALID;
        self.min_recovery_timeline = 0;
        self.backup_start = Lsn::INVALID;
        self.backup_end = Lsn::INVALID;
        self.backup_end_required = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control() -> ControlFile {
        let mut control = ControlFile::get(&[0; 296]);
        control.control_version = CONTROL_VERSION;
        control.system_identifier = 7_000_000_000_000_000_001;
        control.float_format = 1_234_567.0;
        control
    }

    #[test]
    fn round_trip_and_damage() {
        let mut control = control();
        let mut checkpoint = control.checkpoint.clone();
        checkpoint.redo = Lsn(0x16960e8);
        control.set_shut_down(Lsn(0x16960e8), checkpoint);
        let raw = control.to_file();
        assert_eq!(raw.len(), CONTROL_FILE_SIZE);
        let back = ControlFile::from_file(&raw).unwrap();
        assert_eq!(
            back,
            ControlFile {
                crc: back.crc,
                ..control
            }
        );
        for at in (0..8).chain(12..292) {
            let mut damaged = raw.clone();
            damaged[at] ^= 1;
            assert!(
                matches!(
                    ControlFile::from_file(&damaged),
                    Err(ControlFileError::Crc { .. })
                ),
                "byte {at}"
            );
        }
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(
            ControlFile::from_file(&[0; 295]),
            Err(ControlFileError::Length(295))
        );
        assert_eq!(
            ControlFile::from_file(&[0; 8192]),
            Err(ControlFileError::Version(0))
        );
    }
}
