//! Layers: finding one among many, reading a page from each kind, and taking new versions.
//!
//! Reference, 2026-11-22, 2 cores shared with other work (load 15), profile dev (opt-level 1), so upper bounds; a
//! release run on an idle machine is still to be made: lookup 2.5 µs, rebuild 106 ms, image layer 5.5 µs, delta
//! layer 4.7 µs, in-memory layer 0.44 µs, put 231 MiB/s.

// Benchmarks, like tests, may stop at the first surprise.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashSet;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pageserver::layers::budget::MemoryBudget;
use pageserver::layers::cache::PageCache;
use pageserver::layers::file::Layer;
use pageserver::layers::in_memory::InMemoryLayer;
use pageserver::layers::map::LayerMap;
use pageserver::layers::read_state::ReadState;
use pageserver::layers::writer::{DeltaLayerWriter, ImageLayerWriter};
use pageserver_api::key::{Key, rel_block_key};
use pageserver_api::layer_name::LayerFileName;
use pageserver_api::reltag::{Fork, RelTag};
use pageserver_api::value::{Value, WalRecord};
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

/// Key ranges of the layer map, and layers over each: 50,000 layers.
const COLUMNS: u32 = 500;
const DEPTH: u64 = 100;
/// Blocks of the relation that is read.
const BLOCKS: u32 = 4000;
/// Bytes of a typical record.
const RECORD_BYTES: usize = 120;

fn block_key(block: u32) -> Key {
    let rel = RelTag {
        spcnode: 1663,
        dbnode: 5,
        relnode: 16384,
        fork: Fork::Main,
    };
    rel_block_key(rel, block)
}

/// Images below nine deltas, again and again, each delta shifted so that bounds do not line up.
fn many_layers() -> Vec<Arc<Layer>> {
    let cache = Arc::new(PageCache::new(0, 1));
    let name = |column: u32, row: u64| {
        let shift = if row.is_multiple_of(10) { 0 } else { row as u32 % 7 };
        let key_range = block_key(column * 100 + shift)..block_key((column + 1) * 100 + shift);
        let start = Lsn(row * 1000 + 8);
        if row.is_multiple_of(10) {
            LayerFileName::Image {
                key_range,
                lsn: start,
            }
        } else {
            LayerFileName::Delta {
                key_range,
                lsn_range: start..Lsn(start.0 + 1000),
            }
        }
    };
    let names = (0..COLUMNS).flat_map(|column| (0..DEPTH).map(move |row| name(column, row)));
    names
        .map(|name| Layer::local(&cache, Path::new(""), TenantTimelineId::default(), (name, 1)))
        .collect()
}

/// Newest image and newest delta at a place, by looking at every layer.
fn newest_covering(names: &[LayerFileName], key: Key, upper: Lsn) -> (Option<Lsn>, Option<Lsn>) {
    let mut newest = (None, None);
    for name in names {
        if name.key_range().contains(&key) && name.lsn_range().start < upper {
            let kind = if name.is_delta() {
                &mut newest.1
            } else {
                &mut newest.0
            };
            *kind = (*kind).max(Some(name.lsn_range().end));
        }
    }
    newest
}

fn layer_map(c: &mut Criterion) {
    let layers = many_layers();
    let map = LayerMap::default().changed(layers.clone(), &HashSet::new());
    let mut n = 0u32;
    let mut any_place = move || {
        n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let lsn = Lsn(8 + u64::from(n >> 8) % (DEPTH * 1000));
        (block_key((n >> 4) % (COLUMNS * 100)), lsn)
    };
    c.bench_function("layer map: lookup among 50,000 layers", |b| {
        b.iter(|| {
            let (key, lsn) = any_place();
            map.next(key, lsn).map(|next| next.floor)
        });
    });
    let names: Vec<LayerFileName> = layers.iter().map(|layer| layer.name().clone()).collect();
    let mut slow = c.benchmark_group("layer map");
    slow.sample_size(10);
    slow.bench_function("peer: search through all 50,000 layers", |b| {
        b.iter(|| {
            let (key, lsn) = any_place();
            newest_covering(&names, key, lsn)
        });
    });
    slow.bench_function("rebuild with 50,000 layers", |b| {
        b.iter(|| {
            LayerMap::default()
                .changed(black_box(layers.clone()), &HashSet::new())
                .len()
        });
    });
}

fn record() -> Value {
    Value::WalRecord(WalRecord::Postgres {
        will_init: false,
        record: vec![7; RECORD_BYTES].into(),
    })
}

fn point_reads(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let cache = Arc::new(PageCache::new(256 << 20, 10));
    let id = TenantTimelineId::default();
    let page: Vec<u8> = (0..8192u32)
        .map(|n| if n < 4000 { ((n * n) >> 7) as u8 } else { 0 })
        .collect();

    let mut images = ImageLayerWriter::create(dir.path(), id, Key::MIN, Lsn(8)).unwrap();
    let mut deltas = DeltaLayerWriter::create(dir.path(), id, Key::MIN, Lsn(9)..Lsn(1000)).unwrap();
    let memory = InMemoryLayer::new(Lsn(9), &MemoryBudget::new(u64::MAX));
    for block in 0..BLOCKS {
        images.add(block_key(block), &page).unwrap();
        deltas
            .add(block_key(block), Lsn(16), &Value::Image(page.clone().into()))
            .unwrap();
        memory.put(vec![(
            block_key(block),
            Lsn(16),
            Value::Image(page.clone().into()),
        )]);
    }
    for layer in [
        images.finish(Key::MIN..Key::MAX).unwrap(),
        deltas.finish(Key::MIN..Key::MAX).unwrap(),
    ] {
        let kind = if layer.name.is_delta() { "delta" } else { "image" };
        let layer = Layer::local(&cache, dir.path(), id, (layer.name, layer.file_len));
        let mut block = 0;
        c.bench_function(&format!("point read: {kind} layer, cached"), |b| {
            b.iter(|| {
                block = (block + 1117) % BLOCKS;
                let mut state = ReadState::new(block_key(block), Lsn(1000));
                runtime.block_on(layer.collect(&mut state, Lsn(9))).unwrap();
                state.base.unwrap().len()
            });
        });
    }
    let mut block = 0;
    c.bench_function("point read: in-memory layer", |b| {
        b.iter(|| {
            block = (block + 1117) % BLOCKS;
            let mut state = ReadState::new(block_key(block), Lsn(1000));
            memory.collect(&mut state);
            state.base.unwrap().len()
        });
    });
}

fn put(c: &mut Criterion) {
    let mut group = c.benchmark_group("put into the open layer");
    group.throughput(Throughput::Bytes(u64::from(BLOCKS) * RECORD_BYTES as u64));
    group.bench_function("records of 120 bytes, 100 a batch", |b| {
        let batches = || {
            let value = |n: u32| {
                (
                    block_key(n.wrapping_mul(2_654_435_761) % BLOCKS),
                    Lsn(8 + u64::from(n)),
                    record(),
                )
            };
            let values: Vec<_> = (0..BLOCKS).map(value).collect();
            values.chunks(100).map(<[_]>::to_vec).collect::<Vec<_>>()
        };
        b.iter_batched(
            || {
                (
                    InMemoryLayer::new(Lsn(8), &MemoryBudget::new(u64::MAX)),
                    batches(),
                )
            },
            |(layer, batches)| {
                batches.into_iter().for_each(|batch| layer.put(batch));
                layer
            },
            BatchSize::LargeInput,
        );
    });
}

criterion_group!(benches, layer_map, point_reads, put);
criterion_main!(benches);
