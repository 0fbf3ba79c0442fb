//! The key space of a timeline: everything PostgreSQL stores, as (18-byte key, LSN) -> value.
//!
//! Layout of the fields (`docs` of the storage formats; the relation directory is our own):
//!
//! | object | f1 | f2 | f3 | f4 | f5 | f6 |
//! |---|---|---|---|---|---|---|
//! | database directory | 00 | 0 | 0 | 0 | 0 | 0 |
//! | relmap file | 00 | spc | db | 0 | 0 | 0 |
//! | relation directory entry | 00 | spc | db | 0 | fork + 1 | rel |
//! | relation block | 00 | spc | db | rel | fork | blk |
//! | relation size | 00 | spc | db | rel | fork | FFFFFFFF |
//! | SLRU directory | 01 | kind | 0 | 0 | 0 | 0 |
//! | SLRU block | 01 | kind | 1 | segno | 0 | blk |
//! | SLRU segment size | 01 | kind | 1 | segno | 0 | FFFFFFFF |
//! | two-phase directory | 02 | 0 | 0 | 0 | 0 | 0 |
//! | two-phase file | 02 | 0 | 0 | 0 | 0 | xid |
//! | pg_control | 03 | 0 | 0 | 0 | 0 | 0 |
//! | checkpoint | 03 | 0 | 0 | 0 | 0 | 1 |
//! | group of auxiliary files | 04 | 0 | 0 | hash, high | 0 | hash, low |
//! | replication origin | 05 | 0 | 0 | 0 | 0 | origin |
//!
//! A relation directory entry exists for each relation fork: its value is one byte, 1 while the fork
//! exists, 0 once it was dropped. PostgreSQL's relation number is never 0, which keeps f4 = 0 free
//! for what belongs to the database as a whole. Sorting the entries by fork first makes "all init
//! forks of a database" a short scan.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::reltag::{Fork, RelTag, SlruKind};

/// Address of one versioned value. Ordered field by field, which is the order of its 18 bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
#[allow(missing_docs)] // The fields have no meaning of their own: see the table in the module head.
pub struct Key {
    pub field1: u8,
    pub field2: u32,
    pub field3: u32,
    pub field4: u32,
    pub field5: u8,
    pub field6: u32,
}

/// The text is not 36 hexadecimal digits.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
#[error("'{0}' is not a key (expected 36 hexadecimal digits)")]
pub struct ParseKeyError(pub String);

/// `field6` of a size key; no relation has that many blocks.
pub const SIZE_FIELD6: u32 = u32::MAX;

/// Between keys of which one is shortly before the other.
const SHORT_DISTANCE: u32 = 8;

impl Key {
    /// Length of the binary form in bytes.
    pub const LEN: usize = 18;
    /// The lowest key.
    pub const MIN: Key = Key {
        field1: 0,
        field2: 0,
        field3: 0,
        field4: 0,
        field5: 0,
        field6: 0,
    };
    /// The exclusive end of the key space; no value is ever stored under it.
    pub const MAX: Key = Key {
        field1: u8::MAX,
        field2: u32::MAX,
        field3: u32::MAX,
        field4: u32::MAX,
        field5: u8::MAX,
        field6: u32::MAX,
    };

    /// The 18 bytes, big endian, which sort as the keys do.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut raw = [0; Self::LEN];
        raw[0] = self.field1;
        raw[1..5].copy_from_slice(&self.field2.to_be_bytes());
        raw[5..9].copy_from_slice(&self.field3.to_be_bytes());
        raw[9..13].copy_from_slice(&self.field4.to_be_bytes());
        raw[13] = self.field5;
        raw[14..18].copy_from_slice(&self.field6.to_be_bytes());
        raw
    }

    /// The inverse of [`Key::to_bytes`].
    pub fn from_bytes(raw: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| u32::from_be_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        Key {
            field1: raw[0],
            field2: word(1),
            field3: word(5),
            field4: word(9),
            field5: raw[13],
            field6: word(14),
        }
    }

    /// Whether `other` follows with few keys between: as blocks of the same relation fork do that a scan asks for.
    pub fn is_shortly_before(self, other: Key) -> bool {
        let parent = |key: Key| (key.field1, key.field2, key.field3, key.field4, key.field5);
        parent(self) == parent(other)
            && self.field6 < other.field6
            && other.field6 - self.field6 <= SHORT_DISTANCE
    }

    /// The least key above this one; `Key::MAX` has none and stays itself.
    pub fn next(self) -> Self {
        let mut raw = self.to_bytes();
        for byte in raw.iter_mut().rev() {
            let (sum, carry) = byte.overflowing_add(1);
            *byte = sum;
            if !carry {
                return Key::from_bytes(&raw);
            }
        }
        Key::MAX
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02X}{:08X}{:08X}{:08X}{:02X}{:08X}",
            self.field1, self.field2, self.field3, self.field4, self.field5, self.field6
        )
    }
}

impl FromStr for Key {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut raw = [0; Self::LEN];
        hex::decode_to_slice(text, &mut raw).map_err(|_| ParseKeyError(text.to_owned()))?;
        Ok(Key::from_bytes(&raw))
    }
}

const fn key(f1: u8, f2: u32, f3: u32, f4: u32, f5: u8, f6: u32) -> Key {
    Key {
        field1: f1,
        field2: f2,
        field3: f3,
        field4: f4,
        field5: f5,
        field6: f6,
    }
}

/// Map of all databases: value is a bincode map (spc, db) -> has relmap.
pub const DB_DIRECTORY: Key = key(0, 0, 0, 0, 0, 0);
/// Set of prepared transactions' xids.
pub const TWOPHASE_DIRECTORY: Key = key(2, 0, 0, 0, 0, 0);
/// The bytes of `global/pg_control` as imported.
pub const CONTROL_FILE: Key = key(3, 0, 0, 0, 0, 0);
/// The `CheckPoint` struct, kept up to date by ingest.
pub const CHECKPOINT: Key = key(3, 0, 0, 0, 0, 1);

/// `pg_filenode.map` of a database, 512 bytes.
pub fn relmap_key(spc: u32, db: u32) -> Key {
    key(0, spc, db, 0, 0, 0)
}

/// Directory entry of one relation fork.
pub fn rel_dir_entry_key(rel: RelTag) -> Key {
    key(0, rel.spcnode, rel.dbnode, 0, rel.fork as u8 + 1, rel.relnode)
}

/// Directory entries of all relations of one fork kind in a database.
pub fn rel_dir_fork_range(spc: u32, db: u32, fork: Fork) -> Range<Key> {
    key(0, spc, db, 0, fork as u8 + 1, 0)..key(0, spc, db, 0, fork as u8 + 2, 0)
}

/// Directory entries of all relations and forks of a database.
pub fn rel_dir_range(spc: u32, db: u32) -> Range<Key> {
    key(0, spc, db, 0, Fork::Main as u8 + 1, 0)..key(0, spc, db, 0, Fork::Init as u8 + 2, 0)
}

/// One 8192-byte block of a relation fork.
pub fn rel_block_key(rel: RelTag, block: u32) -> Key {
    key(0, rel.spcnode, rel.dbnode, rel.relnode, rel.fork as u8, block)
}

/// Number of blocks of a relation fork, `u32` little endian.
pub fn rel_size_key(rel: RelTag) -> Key {
    rel_block_key(rel, SIZE_FIELD6)
}

/// Everything that belongs to a database, from its relmap to the last block of its last relation.
pub fn database_range(spc: u32, db: u32) -> Range<Key> {
    key(0, spc, db, 0, 0, 0)..key(0, spc, db, u32::MAX, u8::MAX, u32::MAX)
}

/// Set of the segment numbers an SLRU has.
pub fn slru_dir_key(kind: SlruKind) -> Key {
    key(1, kind as u32, 0, 0, 0, 0)
}

/// One 8192-byte block of an SLRU segment.
pub fn slru_block_key(kind: SlruKind, segno: u32, block: u32) -> Key {
    key(1, kind as u32, 1, segno, 0, block)
}

/// Number of blocks of an SLRU segment, `u32` little endian.
pub fn slru_segment_size_key(kind: SlruKind, segno: u32) -> Key {
    slru_block_key(kind, segno, SIZE_FIELD6)
}

/// State file of a prepared transaction, without its CRC.
pub fn twophase_file_key(xid: u32) -> Key {
    key(2, 0, 0, 0, 0, xid)
}

/// A group of auxiliary files: its key is made from the FNV-1a hash of its name. The value holds the name too.
pub fn aux_file_group_key(name: &[u8]) -> Key {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let hash = name.iter().fold(OFFSET_BASIS, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    });
    key(4, 0, 0, (hash >> 32) as u32, 0, hash as u32)
}

/// All groups of auxiliary files.
pub const AUX_FILE_GROUPS: Range<Key> = key(4, 0, 0, 0, 0, 0)..key(5, 0, 0, 0, 0, 0);

/// How far replication from an origin has come.
pub fn repl_origin_key(origin: u16) -> Key {
    key(5, 0, 0, 0, 0, origin as u32)
}

/// All replication origins.
pub const REPL_ORIGINS: Range<Key> = key(5, 0, 0, 0, 0, 0)..key(6, 0, 0, 0, 0, 0);

/// What a key addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs)] // Each variant is the inverse of the constructor function of the same name above.
pub enum KeyKind {
    DbDirectory,
    RelMap { spc: u32, db: u32 },
    RelDirEntry(RelTag),
    RelBlock { rel: RelTag, block: u32 },
    RelSize(RelTag),
    SlruDirectory(SlruKind),
    SlruBlock { kind: SlruKind, segno: u32, block: u32 },
    SlruSegmentSize { kind: SlruKind, segno: u32 },
    TwoPhaseDirectory,
    TwoPhaseFile { xid: u32 },
    ControlFile,
    Checkpoint,
    AuxFileGroup { hash: u64 },
    ReplOrigin { origin: u16 },
}

impl Key {
    /// What this key addresses; `None` if no value is ever stored under it.
    pub fn kind(self) -> Option<KeyKind> {
        let Key {
            field1: f1,
            field2: f2,
            field3: f3,
            field4: f4,
            field5: f5,
            field6: f6,
        } = self;
        let rel = |fork: u8, relnode: u32| {
            Fork::try_from(fork).ok().map(|fork| RelTag {
                spcnode: f2,
                dbnode: f3,
                relnode,
                fork,
            })
        };
        let slru = || SlruKind::try_from(f2).ok();
        match (f1, f4, f5, f6) {
            (0, 0, 0, 0) if f2 == 0 && f3 == 0 => Some(KeyKind::DbDirectory),
            (0, 0, 0, 0) => Some(KeyKind::RelMap { spc: f2, db: f3 }),
            (0, 0, 0, _) => None,
            (0, 0, fork, relnode) => rel(fork - 1, relnode).map(KeyKind::RelDirEntry),
            (0, relnode, fork, SIZE_FIELD6) => rel(fork, relnode).map(KeyKind::RelSize),
            (0, relnode, fork, block) => rel(fork, relnode).map(|rel| KeyKind::RelBlock { rel, block }),
            (1, 0, 0, 0) if f3 == 0 => slru().map(KeyKind::SlruDirectory),
            (1, segno, 0, SIZE_FIELD6) if f3 == 1 => {
                slru().map(|kind| KeyKind::SlruSegmentSize { kind, segno })
            }
            (1, segno, 0, block) if f3 == 1 => slru().map(|kind| KeyKind::SlruBlock { kind, segno, block }),
            (2, 0, 0, 0) => Some(KeyKind::TwoPhaseDirectory),
            (2, 0, 0, xid) => Some(KeyKind::TwoPhaseFile { xid }),
            (3, 0, 0, 0) => Some(KeyKind::ControlFile),
            (3, 0, 0, 1) => Some(KeyKind::Checkpoint),
            (4, high, 0, low) if (f2, f3) == (0, 0) => Some(KeyKind::AuxFileGroup {
                hash: u64::from(high) << 32 | u64::from(low),
            }),
            (5, 0, 0, origin) if (f2, f3) == (0, 0) => {
                let origin = origin.try_into().ok()?;
                Some(KeyKind::ReplOrigin { origin })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rel() -> RelTag {
        RelTag {
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
            fork: Fork::Vm,
        }
    }

    #[test]
    fn every_constructor_has_its_kind() {
        let slru = SlruKind::MultiXactMembers;
        for (key, kind) in [
            (DB_DIRECTORY, KeyKind::DbDirectory),
            (relmap_key(1664, 0), KeyKind::RelMap { spc: 1664, db: 0 }),
            (rel_dir_entry_key(rel()), KeyKind::RelDirEntry(rel())),
            (
                rel_block_key(rel(), 7),
                KeyKind::RelBlock { rel: rel(), block: 7 },
            ),
            (rel_size_key(rel()), KeyKind::RelSize(rel())),
            (slru_dir_key(slru), KeyKind::SlruDirectory(slru)),
            (
                slru_block_key(slru, 3, 4),
                KeyKind::SlruBlock {
                    kind: slru,
                    segno: 3,
                    block: 4,
                },
            ),
            (
                slru_segment_size_key(slru, 3),
                KeyKind::SlruSegmentSize { kind: slru, segno: 3 },
            ),
            (TWOPHASE_DIRECTORY, KeyKind::TwoPhaseDirectory),
            (twophase_file_key(9), KeyKind::TwoPhaseFile { xid: 9 }),
            (CONTROL_FILE, KeyKind::ControlFile),
            (CHECKPOINT, KeyKind::Checkpoint),
            // The published test vector of the hash.
            (
                aux_file_group_key(b"foobar"),
                KeyKind::AuxFileGroup {
                    hash: 0x8594_4171_f739_67e8,
                },
            ),
            (
                repl_origin_key(u16::MAX),
                KeyKind::ReplOrigin { origin: u16::MAX },
            ),
        ] {
            assert_eq!(key.kind(), Some(kind));
            assert_eq!(key.to_string().parse::<Key>().unwrap(), key);
            assert_eq!(Key::from_bytes(&key.to_bytes()), key);
        }
        assert_eq!(Key::MAX.kind(), None);
    }

    #[test]
    fn ranges_hold_what_they_name() {
        let entry = rel_dir_entry_key(rel());
        assert!(rel_dir_fork_range(1663, 5, Fork::Vm).contains(&entry));
        assert!(!rel_dir_fork_range(1663, 5, Fork::Init).contains(&entry));
        assert!(rel_dir_range(1663, 5).contains(&entry));
        assert!(database_range(1663, 5).contains(&rel_size_key(rel())));
        assert!(!rel_dir_range(1663, 5).contains(&rel_block_key(rel(), 0)));
        assert!(AUX_FILE_GROUPS.contains(&aux_file_group_key(b"statistics")));
        assert!(REPL_ORIGINS.contains(&repl_origin_key(u16::MAX)));
    }

    #[test]
    fn successor_carries() {
        let key = key(0, 1, 2, 3, 4, u32::MAX);
        assert_eq!(
            key.next(),
            Key {
                field5: 5,
                field6: 0,
                ..key
            }
        );
        assert_eq!(Key::MAX.next(), Key::MAX);
    }
}
