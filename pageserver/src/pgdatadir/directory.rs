//! Values of the directory keys: the map of databases, and the sets of prepared transactions and of
//! SLRU segments.
//!
//! Binary form (storage formats, section 4): `u64` item count, then the items, all big endian. They are
//! stored whole on each change: databases, prepared transactions and segments are few.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes};

/// A database in a tablespace. The shared relations are database 0 of tablespace 1664; database 0 of a tablespace that
/// a user has made stands for the tablespace itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct DbId {
    /// Tablespace OID.
    pub spcnode: u32,
    /// Database OID.
    pub dbnode: u32,
}

/// All databases of a cluster, by tablespace; the value tells whether the database has a relation map
/// file (and thus `PG_VERSION`) in that tablespace.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DbDirectory {
    /// Database -> has a relation map.
    pub dbs: BTreeMap<DbId, bool>,
}

/// A set of transaction ids or segment numbers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NumberSet {
    /// The members.
    pub numbers: BTreeSet<u32>,
}

/// The bytes are not a directory.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
pub enum DecodeDirectoryError {
    /// The length does not fit the item count.
    #[error("directory of {count} items has {len} bytes")]
    BadLength {
        /// Number of items announced.
        count: u64,
        /// Length in bytes.
        len: usize,
    },
    /// A flag is neither 0 nor 1.
    #[error("directory holds the flag {0}")]
    BadFlag(u8),
}

/// Checks that `raw` is a count and exactly that many items of `item_len` bytes; leaves the items in `raw`.
fn check_items(raw: &mut &[u8], item_len: usize) -> Result<(), DecodeDirectoryError> {
    let len = raw.len();
    if len < 8 {
        return Err(DecodeDirectoryError::BadLength { count: 0, len });
    }
    let count = raw.get_u64();
    let fits = usize::try_from(count)
        .ok()
        .and_then(|count| count.checked_mul(item_len))
        == Some(raw.len());
    if fits {
        Ok(())
    } else {
        Err(DecodeDirectoryError::BadLength { count, len })
    }
}

impl DbDirectory {
    const ITEM_LEN: usize = 9;

    /// Binary form.
    pub fn encode(&self) -> Bytes {
        let mut raw = Vec::with_capacity(8 + self.dbs.len() * Self::ITEM_LEN);
        raw.put_u64(self.dbs.len() as u64);
        for (db, has_relmap) in &self.dbs {
            raw.put_u32(db.spcnode);
            raw.put_u32(db.dbnode);
            raw.put_u8(u8::from(*has_relmap));
        }
        raw.into()
    }

    /// The inverse of [`DbDirectory::encode`].
    pub fn decode(mut raw: &[u8]) -> Result<Self, DecodeDirectoryError> {
        check_items(&mut raw, Self::ITEM_LEN)?;
        let mut dbs = BTreeMap::new();
        while raw.has_remaining() {
            let db = DbId {
                spcnode: raw.get_u32(),
                dbnode: raw.get_u32(),
            };
            let has_relmap = match raw.get_u8() {
                0 => false,
                1 => true,
                flag => return Err(DecodeDirectoryError::BadFlag(flag)),
            };
            dbs.insert(db, has_relmap);
        }
        Ok(DbDirectory { dbs })
    }
}

impl NumberSet {
    /// Binary form.
    pub fn encode(&self) -> Bytes {
        let mut raw = Vec::with_capacity(8 + self.numbers.len() * 4);
        raw.put_u64(self.numbers.len() as u64);
        for number in &self.numbers {
            raw.put_u32(*number);
        }
        raw.into()
    }

    /// The inverse of [`NumberSet::encode`].
    pub fn decode(mut raw: &[u8]) -> Result<Self, DecodeDirectoryError> {
        check_items(&mut raw, 4)?;
        let mut numbers = BTreeSet::new();
        while raw.has_remaining() {
            numbers.insert(raw.get_u32());
        }
        Ok(NumberSet { numbers })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn databases_round_trip(items in proptest::collection::vec(any::<(u32, u32, bool)>(), 0..20)) {
            let dbs = items.into_iter().map(|(spcnode, dbnode, map)| (DbId { spcnode, dbnode }, map)).collect();
            let directory = DbDirectory { dbs };
            let raw = directory.encode();
            prop_assert_eq!(DbDirectory::decode(&raw), Ok(directory));
            for len in 0..raw.len() {
                prop_assert!(DbDirectory::decode(&raw[..len]).is_err());
            }
        }

        #[test]
        fn numbers_round_trip(numbers in proptest::collection::btree_set(any::<u32>(), 0..20)) {
            let set = NumberSet { numbers };
            let raw = set.encode();
            prop_assert_eq!(NumberSet::decode(&raw), Ok(set));
            for len in 0..raw.len() {
                prop_assert!(NumberSet::decode(&raw[..len]).is_err());
            }
        }

        #[test]
        fn random_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = DbDirectory::decode(&raw);
            let _ = NumberSet::decode(&raw);
        }
    }

    #[test]
    fn a_flag_is_zero_or_one() {
        let mut raw = DbDirectory {
            dbs: [(
                DbId {
                    spcnode: 1,
                    dbnode: 2,
                },
                true,
            )]
            .into(),
        }
        .encode()
        .to_vec();
        *raw.last_mut().unwrap() = 2;
        assert_eq!(DbDirectory::decode(&raw), Err(DecodeDirectoryError::BadFlag(2)));
    }
}
