//! Replication origins: how far a subscriber has come with each of its publishers.
//!
//! PostgreSQL keeps them in memory, writes them to `pg_logical/replorigin_checkpoint` at each checkpoint, and brings them up to
//! date by replaying commit records. A compute replays nothing, so ingest does the latter and the base backup brings the file.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};
use utils::lsn::Lsn;

/// Position at the origin of the last transaction applied, by the origin's number.
pub type ReplOrigins = BTreeMap<u16, Lsn>;

/// Path of the file, relative to the data directory.
pub const CHECKPOINT_PATH: &str = "pg_logical/replorigin_checkpoint";

/// First word of the file.
const MAGIC: u32 = 0x1257_DADE;
/// A `ReplicationStateOnDisk`: number, 6 bytes of padding, position.
const ENTRY_LEN: usize = 16;

/// The bytes are not a `replorigin_checkpoint` file.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
#[error("not a file of replication origins, or damaged")]
pub struct DecodeOriginsError;

/// The file, as PostgreSQL writes it at a checkpoint.
pub fn encode_checkpoint(origins: &ReplOrigins) -> Vec<u8> {
    let mut raw = Vec::with_capacity(8 + origins.len() * ENTRY_LEN);
    raw.put_u32_le(MAGIC);
    for (origin, remote_lsn) in origins {
        raw.put_u16_le(*origin);
        raw.put_bytes(0, 6);
        raw.put_u64_le(remote_lsn.0);
    }
    let crc = crc32c::crc32c(&raw);
    raw.put_u32_le(crc);
    raw
}

/// The inverse of [`encode_checkpoint`].
pub fn decode_checkpoint(raw: &[u8]) -> Result<ReplOrigins, DecodeOriginsError> {
    let (mut body, crc) = raw.split_last_chunk::<4>().ok_or(DecodeOriginsError)?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc)
        || body.try_get_u32_le() != Ok(MAGIC)
        || !body.len().is_multiple_of(ENTRY_LEN)
    {
        return Err(DecodeOriginsError);
    }
    let mut origins = ReplOrigins::new();
    while body.has_remaining() {
        let origin = body.get_u16_le();
        body.advance(6);
        origins.insert(origin, Lsn(body.get_u64_le()));
    }
    Ok(origins)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trip(items in proptest::collection::btree_map(any::<u16>(), any::<u64>(), 0..10), flip in any::<usize>()) {
            let origins: ReplOrigins = items.into_iter().map(|(origin, lsn)| (origin, Lsn(lsn))).collect();
            let mut raw = encode_checkpoint(&origins);
            prop_assert_eq!(decode_checkpoint(&raw), Ok(origins));
            let at = flip % raw.len();
            raw[at] ^= 1;
            prop_assert_eq!(decode_checkpoint(&raw), Err(DecodeOriginsError));
        }
    }
}
