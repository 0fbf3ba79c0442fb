//! Keys read together are read as each alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use pageserver_api::key::Key;
use pageserver_api::value::{Value, WalRecord};
use proptest::prelude::*;
use utils::id::TenantTimelineId;

use super::*;
use crate::layers::cache::PageCache;
use crate::layers::writer::{DeltaLayerWriter, ImageLayerWriter, WrittenLayer};

const LSNS: Range<Lsn> = Lsn(100)..Lsn(200);

fn key(n: u32) -> Key {
    Key {
        field6: n,
        ..Key::MIN
    }
}

fn layer(dir: &Path, written: WrittenLayer) -> Arc<Layer> {
    let cache = Arc::new(PageCache::new(1 << 20, 4));
    Layer::local(
        &cache,
        dir,
        TenantTimelineId::default(),
        (written.name, written.file_len),
    )
}

/// A value that can be told from others; some are longer than a block should be.
fn value((kind, len): (u8, usize), n: u32, lsn: u64) -> Value {
    let mut bytes = format!("{n} at {lsn} ").into_bytes();
    bytes.resize(bytes.len() + len, b'.');
    match kind {
        0 => Value::Image(bytes.into()),
        1 => Value::WalRecord(WalRecord::ClogSetAborted {
            xids: vec![n; len / 8],
        }),
        _ => Value::WalRecord(WalRecord::Postgres {
            will_init: kind == 2,
            record: bytes.into(),
        }),
    }
}

type Versions = BTreeMap<(u32, u64), (u8, usize)>;

fn delta(dir: &Path, versions: &Versions) -> Arc<Layer> {
    let mut writer = DeltaLayerWriter::create(dir, TenantTimelineId::default(), Key::MIN, LSNS).unwrap();
    for ((n, lsn), spec) in versions {
        writer.add(key(*n), Lsn(*lsn), &value(*spec, *n, *lsn)).unwrap();
    }
    layer(dir, writer.finish(Key::MIN..Key::MAX).unwrap())
}

/// Everything that can be seen of a state.
fn shown(state: &ReadState) -> String {
    format!(
        "{} {} {} {:?} {:?}",
        state.key,
        state.upper,
        state.complete,
        state.base,
        state.records()
    )
}

/// What is found of `keys`, each with where its way down has come to, together or one by one.
async fn read(
    layer: &Layer,
    keys: &BTreeMap<u32, u64>,
    floor: Lsn,
    together: bool,
) -> Result<Vec<String>, LayerError> {
    let new = |(n, upper): (&u32, &u64)| ReadState::new(key(*n), Lsn(*upper));
    let mut states: Vec<ReadState> = keys.iter().map(new).collect();
    let mut run: Vec<Wanted<'_>> = states.iter_mut().map(|state| Wanted { state, floor }).collect();
    if together {
        layer.collect_run(&mut run).await?;
    } else {
        for wanted in &mut run {
            layer.collect(wanted.state, wanted.floor).await?;
        }
    }
    Ok(states.iter().map(shown).collect())
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn deltas(
        versions in proptest::collection::btree_map((0u32..24, 100u64..200), (0u8..12, 0usize..4000), 1..300),
        keys in proptest::collection::btree_map(0u32..24, 100u64..220, 1..RUN_KEYS_MAX),
        floor in 90u64..200,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let layer = delta(dir.path(), &versions);
        let found = block_on(read(&layer, &keys, Lsn(floor), true)).unwrap();
        prop_assert_eq!(found, block_on(read(&layer, &keys, Lsn(floor), false)).unwrap());
    }

    #[test]
    fn images(
        images in proptest::collection::btree_map(0u32..24, 0usize..20000, 1..24),
        keys in proptest::collection::btree_set(0u32..24, 1..RUN_KEYS_MAX),
    ) {
        let (dir, lsn) = (tempfile::tempdir().unwrap(), Lsn(100));
        let mut writer = ImageLayerWriter::create(dir.path(), TenantTimelineId::default(), Key::MIN, lsn).unwrap();
        for (n, len) in &images {
            writer.add(key(*n), &vec![*n as u8; *len]).unwrap();
        }
        let layer = layer(dir.path(), writer.finish(Key::MIN..Key::MAX).unwrap());
        let keys: BTreeSet<u32> = keys;
        let keys = keys.into_iter().map(|n| (n, 101)).collect();
        let found = block_on(read(&layer, &keys, lsn, true)).unwrap();
        prop_assert_eq!(found, block_on(read(&layer, &keys, lsn, false)).unwrap());
    }
}

#[tokio::test]
async fn neighbours_are_read_past_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let versions = (0..64).map(|n| ((n, 100), (0, 8000))).collect();
    let layer = delta(dir.path(), &versions);
    let keys: BTreeMap<u32, u64> = (8..8 + RUN_KEYS_MAX as u32).map(|n| (n, 200)).collect();
    read(&layer, &keys, Lsn(100), true).await.unwrap();
    let index_only = layer.cache_bytes();
    assert!(index_only < 16 * 1024, "{index_only} bytes are in the cache");
    read(&layer, &keys, Lsn(100), false).await.unwrap();
    assert!(layer.cache_bytes() > index_only + RUN_KEYS_MAX as u64 * 8000);
}

#[tokio::test]
async fn a_damaged_block_is_the_trouble_of_its_keys_only() {
    let dir = tempfile::tempdir().unwrap();
    // Each in a block of its own.
    let versions = (0..8).map(|n| ((n, 100), (0, 8200))).collect();
    let layer = delta(dir.path(), &versions);
    let mut raw = std::fs::read(layer.path()).unwrap();
    let text = b"5 at 100 ";
    let place = raw.windows(text.len()).position(|part| part == text).unwrap();
    raw[place + 20] ^= 1;
    std::fs::write(layer.path(), raw).unwrap();

    let keys: BTreeMap<u32, u64> = (0..8).map(|n| (n, 200)).collect();
    let error = read(&layer, &keys, Lsn(100), true).await.unwrap_err();
    assert!(matches!(error, LayerError::Damaged { .. }), "{error}");
    // What comes before it was found.
    let sound = keys.into_iter().filter(|(n, _)| *n != 5).collect();
    assert_eq!(read(&layer, &sound, Lsn(100), true).await.unwrap().len(), 7);
}
