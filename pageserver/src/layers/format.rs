//! Inside of a layer file: format version 100, our own.
//!
//! ```text
//! summary, 512 bytes | blocks ...
//! ```
//! A block is a header of 16 bytes and a payload. Data blocks (level 0) hold the values in the order of their
//! keys; index blocks (level n) hold for each block of level n - 1 its first key and where it is. They stand in
//! the file in the order in which they became full; the summary says where the root is. All integers are big endian.
//!
//! | summary | bytes | | block header | bytes |
//! |---|---|---|---|---|
//! | magic (as documented: 5A61 delta, 5A60 image) | 2 | | CRC32C of the block's file offset (u64), the rest of this header, and the payload as stored | 4 |
//! | format version | 2 | | payload length as stored | 4 |
//! | tenant, timeline | 16 + 16 | | payload length decoded | 4 |
//! | key start, end | 18 + 18 | | level | 1 |
//! | LSN start, end (an image layer at L: L, L+1) | 8 + 8 | | encoding: 0 plain, 1 lz4 | 1 |
//! | root block: offset, length with header, level | 8 + 4 + 1 | | zero | 2 |
//! | number of values | 8 | | | |
//! | length of the file | 8 | | | |
//! | number of different keys; 0 where it was not counted, in files of before that | 8 | | | |
//! | zero up to byte 508, then CRC32C of all before | 4 | | | |
//!
//! The offset in a block's checksum finds blocks that were written to, or read from, the wrong place.

use bytes::{Buf, BufMut, Bytes};
use pageserver_api::key::Key;
use pageserver_api::layer_name::LayerFileName;
use utils::id::{TenantId, TenantTimelineId, TimelineId};
use utils::lsn::Lsn;

/// Length of the summary in bytes.
pub const SUMMARY_LEN: usize = 512;
/// Length of a block's header in bytes.
pub const BLOCK_HEADER_LEN: usize = 16;
/// Longest payload a block may claim, in bytes; PostgreSQL's records are shorter than 1 GiB.
pub const BLOCK_LEN_MAX: usize = (1 << 30) + (1 << 20);

const MAGIC_DELTA: u16 = 0x5A61;
const MAGIC_IMAGE: u16 = 0x5A60;
const VERSION: u16 = 100;
const ENCODING_PLAIN: u8 = 0;
const ENCODING_LZ4: u8 = 1;
/// A block is kept compressed if that saves at least one part in so many.
const LZ4_WORTH_PARTS: usize = 8;

/// Where a block is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlockPointer {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length with its header, in bytes.
    pub len: u32,
}

impl BlockPointer {
    /// Length of the encoded form.
    pub const LEN: usize = 12;

    /// Offset of the first byte behind it; the highest there is if the pointer makes no sense.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(u64::from(self.len))
    }

    /// As it stands in index blocks.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut raw = [0; Self::LEN];
        raw[..8].copy_from_slice(&self.offset.to_be_bytes());
        raw[8..].copy_from_slice(&self.len.to_be_bytes());
        raw
    }

    /// The inverse of [`BlockPointer::encode`]; `None` if the length is wrong.
    pub fn decode(mut raw: &[u8]) -> Option<Self> {
        (raw.len() == Self::LEN).then(|| BlockPointer {
            offset: raw.get_u64(),
            len: raw.get_u32(),
        })
    }
}

/// The first 512 bytes of a layer file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Summary {
    /// The timeline the layer belongs to.
    pub id: TenantTimelineId,
    /// Name of the layer.
    pub name: LayerFileName,
    /// The root of the index.
    pub root: BlockPointer,
    /// Levels of index blocks, at least 1.
    pub root_level: u8,
    /// Number of values.
    pub value_count: u64,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Number of different keys; 0 if it was not counted.
    pub key_count: u64,
}

impl Summary {
    /// The bytes at the start of the file.
    pub fn encode(&self) -> [u8; SUMMARY_LEN] {
        let mut raw = [0; SUMMARY_LEN];
        let mut out = &mut raw[..];
        out.put_u16(if self.name.is_delta() {
            MAGIC_DELTA
        } else {
            MAGIC_IMAGE
        });
        out.put_u16(VERSION);
        out.put_slice(&self.id.tenant_id.as_bytes());
        out.put_slice(&self.id.timeline_id.as_bytes());
        out.put_slice(&self.name.key_range().start.to_bytes());
        out.put_slice(&self.name.key_range().end.to_bytes());
        let lsns = self.name.lsn_range();
        out.put_u64(lsns.start.0);
        out.put_u64(lsns.end.0);
        out.put_slice(&self.root.encode());
        out.put_u8(self.root_level);
        out.put_u64(self.value_count);
        out.put_u64(self.file_len);
        out.put_u64(self.key_count);
        let checksum = crc32c::crc32c(&raw[..SUMMARY_LEN - 4]);
        raw[SUMMARY_LEN - 4..].copy_from_slice(&checksum.to_be_bytes());
        raw
    }

    /// The inverse of [`Summary::encode`].
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn decode(raw: &[u8; SUMMARY_LEN]) -> Result<Self, String> {
        let mut rest = &raw[..];
        let (magic, version) = (rest.get_u16(), rest.get_u16());
        if magic != MAGIC_DELTA && magic != MAGIC_IMAGE {
            return Err(format!("magic number {magic:04X} is not that of a layer file"));
        }
        if version != VERSION {
            return Err(format!(
                "format version {version} is unknown, this server reads {VERSION}"
            ));
        }
        let computed = crc32c::crc32c(&raw[..SUMMARY_LEN - 4]);
        let found = (&raw[SUMMARY_LEN - 4..]).get_u32();
        if found != computed {
            return Err(format!(
                "summary has checksum {found:08X}, computed {computed:08X}"
            ));
        }
        let tenant_id = TenantId::from(take::<16>(&mut rest));
        let timeline_id = TimelineId::from(take::<16>(&mut rest));
        let key_range = Key::from_bytes(&take(&mut rest))..Key::from_bytes(&take(&mut rest));
        let lsn_range = Lsn(rest.get_u64())..Lsn(rest.get_u64());
        let name = if magic == MAGIC_DELTA {
            LayerFileName::Delta { key_range, lsn_range }
        } else {
            LayerFileName::Image {
                key_range,
                lsn: lsn_range.start,
            }
        };
        Ok(Summary {
            id: TenantTimelineId::new(tenant_id, timeline_id),
            name,
            root: BlockPointer {
                offset: rest.get_u64(),
                len: rest.get_u32(),
            },
            root_level: rest.get_u8(),
            value_count: rest.get_u64(),
            file_len: rest.get_u64(),
            key_count: rest.get_u64(),
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let mut raw = [0; N];
    rest.copy_to_slice(&mut raw);
    raw
}

/// Whether blocks are compressed when it pays.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Compression {
    /// Never.
    Off,
    /// lz4.
    Lz4,
}

/// Header and payload of a block as they stand in the file at `offset`.
pub fn encode_block(payload: &[u8], level: u8, offset: u64, compression: Compression) -> Vec<u8> {
    let mut stored = vec![0; BLOCK_HEADER_LEN];
    let mut encoding = ENCODING_PLAIN;
    if compression == Compression::Lz4 {
        let bound = lz4_flex::block::get_maximum_output_size(payload.len());
        stored.resize(BLOCK_HEADER_LEN + bound, 0);
        let len = lz4_flex::block::compress_into(payload, &mut stored[BLOCK_HEADER_LEN..])
            .expect("the buffer has the size that the worst case needs");
        if len <= payload.len() - payload.len() / LZ4_WORTH_PARTS {
            encoding = ENCODING_LZ4;
            stored.truncate(BLOCK_HEADER_LEN + len);
        } else {
            stored.truncate(BLOCK_HEADER_LEN);
        }
    }
    if encoding == ENCODING_PLAIN {
        stored.extend_from_slice(payload);
    }
    assert!(
        payload.len() <= BLOCK_LEN_MAX,
        "a block of {} bytes",
        payload.len()
    );
    let stored_len = (stored.len() - BLOCK_HEADER_LEN) as u32;
    let mut header = &mut stored[4..BLOCK_HEADER_LEN];
    header.put_u32(stored_len);
    header.put_u32(payload.len() as u32);
    header.put_u8(level);
    header.put_u8(encoding);
    let checksum = block_checksum(&stored, offset);
    stored[..4].copy_from_slice(&checksum.to_be_bytes());
    stored
}

fn block_checksum(stored: &[u8], offset: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&offset.to_be_bytes()), &stored[4..])
}

/// Length of the payload that the header of a block announces.
pub fn stored_len(header: &[u8; BLOCK_HEADER_LEN]) -> usize {
    (&header[4..8]).get_u32() as usize
}

/// Level and payload of the block `stored`, header included, that was read from `offset`.
///
/// # Errors
/// What is wrong, for people.
pub fn decode_block(stored: Bytes, offset: u64) -> Result<(u8, Bytes), String> {
    if stored.len() < BLOCK_HEADER_LEN {
        return Err(format!("a block of {} bytes", stored.len()));
    }
    let mut header = &stored[..BLOCK_HEADER_LEN];
    let (found, stored_len, raw_len) = (header.get_u32(), header.get_u32(), header.get_u32());
    let (level, encoding) = (header.get_u8(), header.get_u8());
    let computed = block_checksum(&stored, offset);
    if found != computed {
        return Err(format!("block has checksum {found:08X}, computed {computed:08X}"));
    }
    if stored_len as usize != stored.len() - BLOCK_HEADER_LEN || raw_len as usize > BLOCK_LEN_MAX {
        return Err(format!("block claims {stored_len} bytes, decoded {raw_len}"));
    }
    match encoding {
        ENCODING_PLAIN => Ok((level, stored.slice(BLOCK_HEADER_LEN..))),
        ENCODING_LZ4 => match lz4_flex::block::decompress(&stored[BLOCK_HEADER_LEN..], raw_len as usize) {
            Ok(payload) if payload.len() == raw_len as usize => Ok((level, payload.into())),
            Ok(payload) => Err(format!("block has {} bytes instead of {raw_len}", payload.len())),
            Err(error) => Err(format!("block cannot be decompressed: {error}")),
        },
        other => Err(format!("block has the unknown encoding {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary {
            id: TenantTimelineId::new(TenantId::generate(), TimelineId::generate()),
            name: LayerFileName::Delta {
                key_range: Key::MIN..Key::MAX,
                lsn_range: Lsn(8)..Lsn(17),
            },
            root: BlockPointer { offset: 512, len: 99 },
            root_level: 1,
            value_count: 3,
            file_len: 611,
            key_count: 2,
        }
    }

    #[test]
    fn a_summary_is_read_back_and_any_changed_bit_is_found() {
        let image = LayerFileName::Image {
            key_range: Key::MIN..Key::MAX,
            lsn: Lsn(8),
        };
        for summary in [
            summary(),
            Summary {
                name: image,
                ..summary()
            },
        ] {
            let raw = summary.encode();
            assert_eq!(Summary::decode(&raw).unwrap(), summary);
            for bit in 0..SUMMARY_LEN * 8 {
                let mut bad = raw;
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(Summary::decode(&bad).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_block_is_read_back_and_any_changed_bit_is_found() {
        let compressible = vec![7; 100];
        let not: Vec<u8> = (0..100)
            .map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        for (payload, smaller) in [(compressible, true), (not, false)] {
            for compression in [Compression::Off, Compression::Lz4] {
                let stored = encode_block(&payload, 3, 4096, compression);
                let decode_block = |stored: Vec<u8>, offset| decode_block(stored.into(), offset);
                let packed = stored.len() < payload.len();
                assert_eq!(packed, smaller && compression == Compression::Lz4);
                let (level, raw) = decode_block(stored.clone(), 4096).unwrap();
                assert_eq!((level, &raw[..]), (3, &payload[..]));
                assert!(
                    decode_block(stored.clone(), 8192)
                        .unwrap_err()
                        .contains("checksum")
                );
                for bit in 0..stored.len() * 8 {
                    let mut bad = stored.clone();
                    bad[bit / 8] ^= 1 << (bit % 8);
                    assert!(decode_block(bad, 4096).is_err(), "bit {bit}");
                }
                assert!(decode_block(stored[..stored.len() - 1].to_vec(), 4096).is_err());
            }
        }
    }
}
