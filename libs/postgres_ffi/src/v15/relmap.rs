//! `pg_filenode.map`: the relation numbers of catalogs that cannot look themselves up (`relmapper.c`).

use crate::cursor::Cursor;

/// Name of the file in a database's directory and in `global/`.
pub const RELMAPPER_FILENAME: &str = "pg_filenode.map";
/// Size of the file in bytes.
pub const RELMAP_FILE_SIZE: usize = 512;

const MAGIC: u32 = 0x0059_2717;
const MAPPINGS_MAX: u32 = 62;
/// The checksum covers what stands before it.
const CRC_OFFSET: usize = 504;

/// The bytes are not a map file.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
pub enum RelMapError {
    /// The length is wrong.
    #[error("pg_filenode.map has {0} bytes instead of {RELMAP_FILE_SIZE}")]
    Length(usize),
    /// The magic number or the number of mappings is wrong.
    #[error("pg_filenode.map has magic number {magic:#x} and {count} mappings")]
    Header {
        /// `magic`.
        magic: u32,
        /// `num_mappings`.
        count: u32,
    },
    /// The checksum is wrong.
    #[error("pg_filenode.map has checksum {stated:08X}, its bytes have {computed:08X}")]
    Crc {
        /// Checksum in the file.
        stated: u32,
        /// Checksum of the bytes.
        computed: u32,
    },
}

/// Checks a map file and gives its mappings: catalog OID and relation number.
pub fn parse(file: &[u8]) -> Result<Vec<(u32, u32)>, RelMapError> {
    let wrong_length = |_| RelMapError::Length(file.len());
    if file.len() != RELMAP_FILE_SIZE {
        return Err(RelMapError::Length(file.len()));
    }
    let mut input = Cursor::new(file);
    let magic = input.u32().map_err(wrong_length)?;
    let count = input.u32().map_err(wrong_length)?;
    if magic != MAGIC || count > MAPPINGS_MAX {
        return Err(RelMapError::Header { magic, count });
    }
    let stated = Cursor::new(&file[CRC_OFFSET..]).u32().map_err(wrong_length)?;
    let computed = crc32c::crc32c(&file[..CRC_OFFSET]);
    if stated != computed {
        return Err(RelMapError::Crc { stated, computed });
    }
    let numbers = input.u32s(2 * count as usize).map_err(wrong_length)?;
    let (pairs, _) = numbers.as_chunks::<2>();
    Ok(pairs
        .iter()
        .map(|[catalog, relation]| (*catalog, *relation))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_and_damage_to_it() {
        let mut file = vec![0; RELMAP_FILE_SIZE];
        file[..4].copy_from_slice(&MAGIC.to_le_bytes());
        file[4] = 2;
        for (at, number) in [(8, 1259u32), (12, 1259), (16, 1249), (20, 16400)] {
            file[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&file[..CRC_OFFSET]);
        file[CRC_OFFSET..508].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(parse(&file), Ok(vec![(1259, 1259), (1249, 16400)]));
        for at in 0..508 {
            let mut damaged = file.clone();
            damaged[at] ^= 0x80;
            assert!(parse(&damaged).is_err(), "byte {at}");
        }
        assert_eq!(parse(&file[..511]), Err(RelMapError::Length(511)));
    }
}
