//! The simplest [`ReadStore`]: a sorted map. The reference that [`super::Timeline`] is tested against,
//! and the store that tests of the code above use. Never used by the server.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use pageserver_api::key::Key;
use pageserver_api::value::{Value, WalRecord, WalRecordRef};
use parking_lot::RwLock;
use utils::lsn::Lsn;

use super::store::{ReadError, ReadStore, WriteBatch};

/// All versions of all keys, in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    versions: RwLock<BTreeMap<(Key, Lsn), Value>>,
}

impl MemoryStore {
    /// Stores all values of the batch; they are visible at once.
    pub fn put(&self, batch: WriteBatch) {
        let mut versions = self.versions.write();
        for (key, lsn, value) in batch.values {
            versions.insert((key, lsn), value);
        }
    }

    /// Stores the whole value of one key.
    pub fn put_image(&self, key: Key, lsn: Lsn, image: impl Into<Bytes>) {
        self.versions
            .write()
            .insert((key, lsn), Value::Image(image.into()));
    }

    /// Every version stored, ascending by key and LSN.
    pub fn versions(&self) -> Vec<(Key, Lsn, Value)> {
        let versions = self.versions.read();
        versions
            .iter()
            .map(|((key, lsn), value)| (*key, *lsn, value.clone()))
            .collect()
    }

    fn read(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, ReadError> {
        let mut base = None;
        let mut records: Vec<(Lsn, WalRecord)> = Vec::new();
        {
            let versions = self.versions.read();
            for ((_, at), value) in versions.range((key, Lsn(0))..=(key, lsn)).rev() {
                match value {
                    Value::Image(image) => base = Some(image.clone()),
                    Value::WalRecord(record) => records.push((*at, record.clone())),
                }
                if value.will_init() {
                    break;
                }
            }
        }
        let records: Vec<(Lsn, WalRecordRef<'_>)> = records
            .iter()
            .rev()
            .map(|(at, record)| (*at, record.into()))
            .collect();
        super::reconstruct(key, lsn, base, &records)
    }
}

impl ReadStore for MemoryStore {
    async fn get(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, ReadError> {
        self.read(key, lsn)
    }

    async fn get_many(&self, keys: &[Key], lsn: Lsn) -> Result<Vec<Option<Bytes>>, ReadError> {
        keys.iter().map(|key| self.read(*key, lsn)).collect()
    }

    async fn scan(&self, range: Range<Key>, lsn: Lsn) -> Result<Vec<(Key, Bytes)>, ReadError> {
        let mut keys: Vec<Key> = {
            let versions = self.versions.read();
            let within = versions.range((range.start, Lsn(0))..(range.end, Lsn(0)));
            within.map(|((key, _), _)| *key).collect()
        };
        keys.dedup();
        let mut found = Vec::new();
        for key in keys {
            if let Some(value) = self.read(key, lsn)? {
                found.push((key, value));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        Key {
            field6: n,
            ..Key::MIN
        }
    }

    #[tokio::test]
    async fn the_latest_version_at_or_below_the_lsn_is_read() {
        let store = MemoryStore::default();
        store.put_image(key(1), Lsn(10), "a");
        store.put_image(key(1), Lsn(20), "b");
        store.put_image(key(3), Lsn(15), "c");
        assert_eq!(store.get(key(1), Lsn(9)).await.unwrap(), None);
        assert_eq!(store.get(key(1), Lsn(10)).await.unwrap().unwrap(), "a");
        let many = store.get_many(&[key(3), key(1), key(2)], Lsn(20)).await.unwrap();
        assert_eq!(many, [Some("c".into()), Some("b".into()), None]);
        let scanned = store.scan(key(1)..key(3), Lsn(19)).await.unwrap();
        assert_eq!(scanned, [(key(1), Bytes::from("a"))]);
    }
}
