//! Payload of a block: sorted keys of one length, each with a value.
//!
//! ```text
//! count u16 | key length u8 | prefix length u8 | prefix | suffixes | value ends u32 | values
//! ```
//! What all keys of the block begin with is stored once; the rest of each key is a suffix of the same length,
//! so that a key is found by binary search without unpacking anything.

use std::ops::Range;

use bytes::{BufMut, Bytes};

const HEADER_LEN: usize = 4;
/// Keys one block can number.
const COUNT_MAX: usize = u16::MAX as usize;

/// Collects keys and values of one block.
#[derive(Debug, Default)]
pub struct BlockBuilder {
    keys: Vec<u8>,
    key_len: usize,
    ends: Vec<u32>,
    values: Vec<u8>,
}

impl BlockBuilder {
    /// For keys of `key_len` bytes.
    pub fn new(key_len: usize) -> Self {
        assert!(
            key_len > 0 && key_len <= usize::from(u8::MAX),
            "keys of {key_len} bytes"
        );
        BlockBuilder {
            key_len,
            ..Default::default()
        }
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether nothing can be added.
    pub fn is_full(&self) -> bool {
        self.ends.len() == COUNT_MAX
    }

    /// Bytes of the payload at most.
    pub fn len(&self) -> usize {
        HEADER_LEN + self.keys.len() + 4 * self.ends.len() + self.values.len()
    }

    /// The first key added.
    pub fn first_key(&self) -> &[u8] {
        &self.keys[..self.key_len]
    }

    /// Adds a key above all before; `write` appends its value.
    pub fn add(&mut self, key: &[u8], write: impl FnOnce(&mut Vec<u8>)) {
        assert!(!self.is_full() && key.len() == self.key_len);
        let last = self.keys.len().saturating_sub(self.key_len);
        assert!(self.is_empty() || key > &self.keys[last..], "keys must ascend");
        self.keys.extend_from_slice(key);
        write(&mut self.values);
        self.ends
            .push(u32::try_from(self.values.len()).expect("a block stays below 4 GiB"));
    }

    /// The payload; the builder is empty again.
    pub fn finish(&mut self) -> Vec<u8> {
        let count = self.ends.len();
        assert!(count > 0, "empty blocks are not written");
        let last = &self.keys[(count - 1) * self.key_len..];
        // The keys ascend, so what the first and the last share, all share.
        let prefix = self
            .first_key()
            .iter()
            .zip(last)
            .take_while(|(a, b)| a == b)
            .count();
        let mut out = Vec::with_capacity(self.len());
        out.put_u16(count as u16);
        out.put_u8(self.key_len as u8);
        out.put_u8(prefix as u8);
        out.put_slice(&self.keys[..prefix]);
        for key in self.keys.chunks_exact(self.key_len) {
            out.put_slice(&key[prefix..]);
        }
        for end in &self.ends {
            out.put_u32(*end);
        }
        out.put_slice(&self.values);
        self.keys.clear();
        self.ends.clear();
        self.values.clear();
        out
    }
}

/// A checked payload. Cloning shares the memory.
#[derive(Clone, Debug)]
pub struct Block {
    level: u8,
    key_len: u8,
    prefix_len: u8,
    count: u16,
    payload: Bytes,
}

impl Block {
    /// Takes a payload whose keys have `key_len` bytes; checks everything that access relies on.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn new(level: u8, key_len: usize, payload: Bytes) -> Result<Self, String> {
        let header = payload.first_chunk::<HEADER_LEN>().ok_or("block has no header")?;
        let block = Block {
            level,
            count: u16::from_be_bytes([header[0], header[1]]),
            key_len: header[2],
            prefix_len: header[3],
            payload,
        };
        if usize::from(block.key_len) != key_len || block.prefix_len > block.key_len || block.count == 0 {
            return Err("block has an impossible header".to_owned());
        }
        if block.payload.len() < block.values_start() {
            return Err("block is shorter than its keys".to_owned());
        }
        let mut last_end = 0;
        for at in 0..block.key_count() {
            let end = block.value_end(at);
            if end < last_end {
                return Err("values of the block overlap".to_owned());
            }
            last_end = end;
        }
        if block.payload.len() != block.values_start() + last_end {
            return Err("block is not as long as its values".to_owned());
        }
        Ok(block)
    }

    /// 0 for data, above that the distance to it.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Number of keys, at least 1.
    pub fn key_count(&self) -> usize {
        usize::from(self.count)
    }

    /// Memory it takes in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.payload.len() + std::mem::size_of::<Self>()
    }

    fn prefix(&self) -> &[u8] {
        &self.payload[HEADER_LEN..HEADER_LEN + usize::from(self.prefix_len)]
    }

    fn suffix_len(&self) -> usize {
        usize::from(self.key_len - self.prefix_len)
    }

    fn suffix(&self, at: usize) -> &[u8] {
        let start = HEADER_LEN + usize::from(self.prefix_len) + at * self.suffix_len();
        &self.payload[start..start + self.suffix_len()]
    }

    fn ends_start(&self) -> usize {
        HEADER_LEN + usize::from(self.prefix_len) + self.key_count() * self.suffix_len()
    }

    fn values_start(&self) -> usize {
        self.ends_start() + 4 * self.key_count()
    }

    fn value_end(&self, at: usize) -> usize {
        let start = self.ends_start() + 4 * at;
        let raw = &self.payload[start..start + 4];
        u32::from_be_bytes([raw[0], raw[1], raw[2], raw[3]]) as usize
    }

    /// Where in the payload value number `at` is.
    pub fn value_range(&self, at: usize) -> Range<usize> {
        let start = if at == 0 { 0 } else { self.value_end(at - 1) };
        self.values_start() + start..self.values_start() + self.value_end(at)
    }

    /// Copies key number `at` to `out`, which has its length.
    pub fn key_into(&self, at: usize, out: &mut [u8]) {
        let (prefix, suffix) = out.split_at_mut(usize::from(self.prefix_len));
        prefix.copy_from_slice(self.prefix());
        suffix.copy_from_slice(self.suffix(at));
    }

    /// Whether the first key is below `key`, which has its length.
    pub fn starts_below(&self, key: &[u8]) -> bool {
        let (prefix, suffix) = key.split_at(usize::from(self.prefix_len));
        (self.prefix(), self.suffix(0)) < (prefix, suffix)
    }

    /// The last eight bytes of key number `at`, which is no shorter, as an integer.
    pub fn key_tail(&self, at: usize) -> u64 {
        if let Some(tail) = self.suffix(at).last_chunk() {
            return u64::from_be_bytes(*tail);
        }
        let mut key = [0; u8::MAX as usize];
        let key = &mut key[..usize::from(self.key_len)];
        self.key_into(at, key);
        u64::from_be_bytes(*key.last_chunk().expect("the key has eight bytes"))
    }

    /// The memory that [`Block::value_range`] is about.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Value number `at`.
    pub fn value(&self, at: usize) -> Bytes {
        self.payload.slice(self.value_range(at))
    }

    /// Value number `at`, borrowed.
    pub fn value_ref(&self, at: usize) -> &[u8] {
        &self.payload[self.value_range(at)]
    }

    /// Number of keys below `key`, which has their length.
    pub fn count_below(&self, key: &[u8]) -> usize {
        let (prefix, suffix) = key.split_at(usize::from(self.prefix_len));
        match prefix.cmp(self.prefix()) {
            std::cmp::Ordering::Less => return 0,
            std::cmp::Ordering::Greater => return self.key_count(),
            std::cmp::Ordering::Equal => {}
        }
        let (mut low, mut high) = (0, self.key_count());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.suffix(middle) < suffix {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_and_values_come_back(
            entries in proptest::collection::btree_map(
                proptest::array::uniform4(0u8..4), proptest::collection::vec(any::<u8>(), 0..9), 1..60),
            probe in proptest::array::uniform4(0u8..4),
        ) {
            let entries: BTreeMap<[u8; 4], Vec<u8>> = entries;
            let mut builder = BlockBuilder::new(4);
            for (key, value) in &entries {
                builder.add(key, |out| out.extend_from_slice(value));
            }
            let bound = builder.len();
            let payload = builder.finish();
            prop_assert!(payload.len() <= bound && builder.is_empty());
            let block = Block::new(0, 4, payload.into()).unwrap();
            prop_assert_eq!(block.key_count(), entries.len());
            for (at, (key, value)) in entries.iter().enumerate() {
                let mut found = [0; 4];
                block.key_into(at, &mut found);
                prop_assert_eq!((&found, &block.value(at)[..]), (key, &value[..]));
                prop_assert_eq!(block.value_ref(at), &value[..]);
            }
            prop_assert_eq!(block.count_below(&probe), entries.range(..probe).count());
            prop_assert_eq!(block.starts_below(&probe), block.count_below(&probe) > 0);
        }

        #[test]
        fn the_tail_of_a_key_is_read_whatever_its_prefix(tails in proptest::collection::btree_set(any::<u64>(), 1..9)) {
            let mut builder = BlockBuilder::new(9);
            for tail in &tails {
                let mut key = [7; 9];
                key[1..].copy_from_slice(&tail.to_be_bytes());
                builder.add(&key, |_| {});
            }
            let block = Block::new(0, 9, builder.finish().into()).unwrap();
            let found: std::collections::BTreeSet<u64> = (0..tails.len()).map(|at| block.key_tail(at)).collect();
            prop_assert_eq!(found, tails);
        }

        #[test]
        fn random_payloads_never_panic(raw in proptest::collection::vec(0u8..6, 0..80)) {
            if let Ok(block) = Block::new(0, 4, raw.into()) {
                for at in 0..block.key_count() {
                    block.value(at);
                }
                block.count_below(&[1; 4]);
            }
        }
    }
}
