//! The `metadata` file of a timeline (storage formats, section 5): 512 bytes, replaced as a whole.
//!
//! Header, big endian: CRC32C of the body `u32`, bytes of header and body `u16`, version `u16`. Then the body,
//! then zeros. The file is the commit point of a flush: what it says is on disk is on disk.

use std::path::Path;

use bytes::{Buf, BufMut};
use utils::crashsafe::{self, CrashsafeError};
use utils::id::TimelineId;
use utils::lsn::Lsn;

/// Name of the file in the timeline's directory.
pub const FILE_NAME: &str = "metadata";
/// Size of the file in bytes.
pub const FILE_LEN: usize = 512;

const HEADER_LEN: usize = 8;
const VERSION: u16 = 4;
/// The version without `pg_version`.
const VERSION_OLD: u16 = 3;
/// What version 3 stands for.
const PG_VERSION_OLD: u32 = 14;

/// What must be known of a timeline before its layers are read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TimelineMetadata {
    /// All versions at or below are in layer files; WAL is needed from here on. A multiple of 8.
    pub disk_consistent_lsn: Lsn,
    /// Start of the record that ends at `disk_consistent_lsn`, where known.
    pub prev_record_lsn: Option<Lsn>,
    /// Where this timeline branched off, if it did.
    pub ancestor: Option<(TimelineId, Lsn)>,
    /// Reads below are refused.
    pub latest_gc_cutoff_lsn: Lsn,
    /// End of the imported cluster's WAL; for a branch, the LSN of the branch point.
    pub initdb_lsn: Lsn,
    /// Major version of PostgreSQL.
    pub pg_version: u32,
}

/// The bytes are not a timeline's metadata.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum DecodeMetadataError {
    /// The length is not 512 bytes.
    #[error("timeline metadata has {0} bytes instead of 512")]
    Length(usize),
    /// The body does not match its checksum.
    #[error("checksum mismatch in timeline metadata: {found:08X} in the header, {computed:08X} computed")]
    Checksum {
        /// In the header.
        found: u32,
        /// Of the body.
        computed: u32,
    },
    /// Written by another program.
    #[error("timeline metadata has format version {0}, this server reads 3 and 4")]
    Version(u16),
    /// A field has an impossible value.
    #[error("timeline metadata is damaged: {0}")]
    Field(&'static str),
}

impl TimelineMetadata {
    /// What to go on from, of what is known here and in object storage.
    pub fn newer(self, there: TimelineMetadata) -> TimelineMetadata {
        let base = if there.disk_consistent_lsn > self.disk_consistent_lsn {
            there
        } else {
            self
        };
        TimelineMetadata {
            // Layers below either cutoff may be gone.
            latest_gc_cutoff_lsn: self.latest_gc_cutoff_lsn.max(there.latest_gc_cutoff_lsn),
            ..base
        }
    }

    /// The 512 bytes of the file.
    pub fn encode(&self) -> [u8; FILE_LEN] {
        assert!(self.disk_consistent_lsn.is_aligned(), "{self:?}");
        let mut body = Vec::with_capacity(FILE_LEN);
        body.put_u64(self.disk_consistent_lsn.0);
        body.put_u8(u8::from(self.prev_record_lsn.is_some()));
        if let Some(prev) = self.prev_record_lsn {
            body.put_u64(prev.0);
        }
        body.put_u8(u8::from(self.ancestor.is_some()));
        if let Some((id, _)) = self.ancestor {
            body.put_slice(&id.as_bytes());
        }
        body.put_u64(self.ancestor.map_or(0, |(_, lsn)| lsn.0));
        body.put_u64(self.latest_gc_cutoff_lsn.0);
        body.put_u64(self.initdb_lsn.0);
        body.put_u32(self.pg_version);

        let mut file = [0; FILE_LEN];
        let mut header = &mut file[..HEADER_LEN];
        header.put_u32(crc32c::crc32c(&body));
        header.put_u16((HEADER_LEN + body.len()) as u16);
        header.put_u16(VERSION);
        file[HEADER_LEN..HEADER_LEN + body.len()].copy_from_slice(&body);
        file
    }

    /// The inverse of [`TimelineMetadata::encode`]; reads the version before, too.
    pub fn decode(file: &[u8]) -> Result<Self, DecodeMetadataError> {
        if file.len() != FILE_LEN {
            return Err(DecodeMetadataError::Length(file.len()));
        }
        let mut header = &file[..HEADER_LEN];
        let (found, size, version) = (header.get_u32(), header.get_u16(), header.get_u16());
        let body = file
            .get(HEADER_LEN..usize::from(size))
            .ok_or(DecodeMetadataError::Field("size"))?;
        let computed = crc32c::crc32c(body);
        if found != computed {
            return Err(DecodeMetadataError::Checksum { found, computed });
        }
        // The checksum does not cover it.
        if file[usize::from(size)..].iter().any(|byte| *byte != 0) {
            return Err(DecodeMetadataError::Field("zeros at the end"));
        }
        if !matches!(version, VERSION | VERSION_OLD) {
            return Err(DecodeMetadataError::Version(version));
        }
        decode_body(body, version)
    }

    /// Replaces the metadata file of the timeline directory `dir`, durably. Blocking.
    pub fn write(&self, dir: &Path) -> Result<(), CrashsafeError> {
        let path = dir.join(FILE_NAME);
        let temp = crashsafe::with_suffix(&path, crashsafe::TEMP_SUFFIX);
        crashsafe::write_atomically(&path, &temp, &self.encode())
    }
}

fn decode_body(mut body: &[u8], version: u16) -> Result<TimelineMetadata, DecodeMetadataError> {
    let short = |_| DecodeMetadataError::Field("length");
    let lsn = |body: &mut &[u8]| body.try_get_u64().map(Lsn).map_err(short);
    let flag = |body: &mut &[u8]| match body.try_get_u8().map_err(short)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeMetadataError::Field("option")),
    };
    let disk_consistent_lsn = lsn(&mut body)?;
    let prev_record_lsn = flag(&mut body)?.then(|| lsn(&mut body)).transpose()?;
    let ancestor_id = if flag(&mut body)? {
        let mut raw = [0; 16];
        body.try_copy_to_slice(&mut raw).map_err(short)?;
        Some(TimelineId::from(raw))
    } else {
        None
    };
    let ancestor_lsn = lsn(&mut body)?;
    let metadata = TimelineMetadata {
        disk_consistent_lsn,
        prev_record_lsn,
        ancestor: ancestor_id.map(|id| (id, ancestor_lsn)),
        latest_gc_cutoff_lsn: lsn(&mut body)?,
        initdb_lsn: lsn(&mut body)?,
        pg_version: match version {
            VERSION_OLD => PG_VERSION_OLD,
            _ => body.try_get_u32().map_err(short)?,
        },
    };
    if !body.is_empty() {
        return Err(DecodeMetadataError::Field("length"));
    }
    if !disk_consistent_lsn.is_aligned() {
        return Err(DecodeMetadataError::Field("disk_consistent_lsn"));
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> TimelineMetadata {
        TimelineMetadata {
            disk_consistent_lsn: Lsn(0x200),
            prev_record_lsn: Some(Lsn(0x100)),
            ancestor: None,
            latest_gc_cutoff_lsn: Lsn(0x80),
            initdb_lsn: Lsn(0x70),
            pg_version: 15,
        }
    }

    #[test]
    fn round_trip() {
        let branch = TimelineMetadata {
            prev_record_lsn: None,
            ancestor: Some((TimelineId::from([7; 16]), Lsn(0x90))),
            ..root()
        };
        for metadata in [root(), branch] {
            assert_eq!(TimelineMetadata::decode(&metadata.encode()), Ok(metadata));
        }
    }

    #[test]
    fn the_header_is_the_documented_one() {
        let file = root().encode();
        assert_eq!(u16::from_be_bytes([file[4], file[5]]), 54);
        assert_eq!(u16::from_be_bytes([file[6], file[7]]), 4);
        assert!(file[54..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_version_before_is_read() {
        let mut file = root().encode();
        let body_end = 54 - 4;
        file[body_end..54].fill(0);
        file[4..6].copy_from_slice(&(body_end as u16).to_be_bytes());
        file[6..8].copy_from_slice(&3u16.to_be_bytes());
        let checksum = crc32c::crc32c(&file[8..body_end]);
        file[..4].copy_from_slice(&checksum.to_be_bytes());
        let want = TimelineMetadata {
            pg_version: 14,
            ..root()
        };
        assert_eq!(TimelineMetadata::decode(&file), Ok(want));
    }

    #[test]
    fn any_changed_bit_is_found() {
        let file = root().encode();
        for bit in 0..FILE_LEN * 8 {
            let mut bad = file;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(TimelineMetadata::decode(&bad).is_err(), "bit {bit}");
        }
        assert_eq!(
            TimelineMetadata::decode(&file[..511]),
            Err(DecodeMetadataError::Length(511))
        );
    }
}
