//! The invariants of the module head, on the model store.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use pageserver_api::key;
use pageserver_api::reltag::{Fork, RelTag, SlruKind};
use pageserver_api::value::Value;
use postgres_ffi::v15::BLCKSZ;
use proptest::prelude::*;
use utils::lsn::Lsn;

use super::cache::MetadataCache;
use super::modification::{Modification, RelNode};
use super::read::*;
use super::{DataError, DbId};
use crate::timeline::memory_store::MemoryStore;
use crate::timeline::store::WriteBatch;

const DB: DbId = DbId {
    spcnode: 1663,
    dbnode: 5,
};

fn node(relnode: u32) -> RelNode {
    RelNode {
        spcnode: DB.spcnode,
        dbnode: DB.dbnode,
        relnode,
    }
}

fn page(tag: u8) -> Bytes {
    vec![tag; BLCKSZ].into()
}

/// A store with its one writer; `batched` changes are put only by `flush`.
#[derive(Default)]
struct Writer {
    store: MemoryStore,
    cache: MetadataCache,
    batch: WriteBatch,
}

impl Writer {
    fn new() -> Self {
        let mut writer = Writer::default();
        let mut m = writer.at(1);
        m.init_empty();
        m.finish();
        writer.flush();
        writer
    }

    fn at(&mut self, lsn: u64) -> Modification<'_, MemoryStore> {
        Modification::new(&self.store, &mut self.cache, &mut self.batch, Lsn(lsn))
    }

    fn flush(&mut self) {
        let mut seen = HashSet::new();
        for (key, lsn, _) in &self.batch.values {
            assert!(seen.insert((*key, *lsn)), "two values for {key} at {lsn}");
        }
        self.store.put(std::mem::take(&mut self.batch));
        self.cache.forget_old();
    }

    /// Writes one block as a record at `lsn` would.
    async fn write(&mut self, lsn: u64, rel: RelTag, block: u32, tag: u8) {
        let mut m = self.at(lsn);
        m.extend_rel(rel, block + 1, |added| added == block)
            .await
            .unwrap();
        m.put_page(rel, block, page(tag));
        m.finish();
    }
}

#[tokio::test]
async fn a_relation_made_anew_shows_nothing_of_its_predecessor() {
    let mut w = Writer::new();
    let rel = node(16384).fork(Fork::Main);
    for block in 0..4 {
        w.write(10 + u64::from(block), rel, block, 7).await;
    }
    w.flush();
    let mut m = w.at(20);
    m.drop_rels(&[node(16384)]).await.unwrap();
    m.finish();
    w.flush();
    assert_eq!(rel_size(&w.store, rel, Lsn(19)).await.unwrap(), Some(4));
    assert_eq!(rel_size(&w.store, rel, Lsn(20)).await.unwrap(), None);
    assert!(!rel_exists(&w.store, rel, Lsn(20)).await.unwrap());
    assert_eq!(rel_page(&w.store, rel, 1, Lsn(20)).await.unwrap(), zero_page());
    w.write(30, rel, 2, 9).await;
    w.flush();
    assert_eq!(rel_size(&w.store, rel, Lsn(30)).await.unwrap(), Some(3));
    let pages = rel_pages(&w.store, rel, 0..3, Lsn(30)).await.unwrap();
    assert_eq!(pages, [zero_page(), zero_page(), page(9)]);
    assert_eq!(rel_page(&w.store, rel, 3, Lsn(30)).await.unwrap(), zero_page());
    assert_eq!(rel_page(&w.store, rel, 1, Lsn(19)).await.unwrap(), page(7));
}

#[tokio::test]
async fn a_database_is_dropped_with_relations_still_in_the_batch() {
    let mut w = Writer::new();
    let mut m = w.at(10);
    m.create_database(DB).await.unwrap();
    m.put_relmap(DB, "map".into()).await.unwrap();
    m.finish();
    w.write(11, node(1).fork(Fork::Main), 0, 1).await;
    w.flush();
    w.write(12, node(2).fork(Fork::Init), 0, 1).await;
    let mut m = w.at(13);
    m.drop_rels(&[node(1)]).await.unwrap();
    m.finish();
    let mut m = w.at(14);
    m.drop_database(DB).await.unwrap();
    m.finish();
    w.flush();
    assert_eq!(list_rels(&w.store, DB, Lsn(12)).await.unwrap().len(), 2);
    assert_eq!(
        list_rels_of_fork(&w.store, DB, Fork::Init, Lsn(13))
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(list_rels(&w.store, DB, Lsn(14)).await.unwrap(), []);
    assert_eq!(
        databases(&w.store, Lsn(13)).await.unwrap().dbs,
        BTreeMap::from([(DB, true)])
    );
    assert!(databases(&w.store, Lsn(14)).await.unwrap().dbs.is_empty());
    assert_eq!(w.cache.take_grown_blocks(), 0);
}

#[tokio::test]
async fn slru_segments_come_and_go() {
    let mut w = Writer::new();
    let kind = SlruKind::MultiXactOffsets;
    let mut m = w.at(10);
    m.put_slru_page(kind, 3, 1, page(5)).await.unwrap();
    m.finish();
    let mut m = w.at(20);
    m.drop_slru_segments(kind, |segno| segno == 3).await.unwrap();
    m.finish();
    let mut m = w.at(30);
    m.put_slru_page(kind, 3, 2, page(6)).await.unwrap();
    m.finish();
    w.flush();
    for (lsn, segments, size) in [
        (9, vec![], 0),
        (10, vec![3], 2),
        (20, vec![], 0),
        (30, vec![3], 3),
    ] {
        let found = slru_segments(&w.store, kind, Lsn(lsn)).await.unwrap();
        assert_eq!(
            found.numbers.into_iter().collect::<Vec<_>>(),
            segments,
            "at {lsn}"
        );
        assert_eq!(
            slru_segment_size(&w.store, kind, 3, Lsn(lsn)).await.unwrap(),
            size,
            "at {lsn}"
        );
    }
    assert_eq!(
        slru_page(&w.store, kind, 3, 0, Lsn(10)).await.unwrap(),
        Some(zero_page())
    );
    assert_eq!(
        slru_page(&w.store, kind, 3, 1, Lsn(10)).await.unwrap(),
        Some(page(5))
    );
    assert_eq!(
        slru_page(&w.store, kind, 3, 1, Lsn(30)).await.unwrap(),
        Some(zero_page())
    );
}

#[tokio::test]
async fn prepared_transactions_come_and_go() {
    let mut w = Writer::new();
    let mut m = w.at(10);
    m.put_twophase(700, "state".into()).await.unwrap();
    m.finish();
    let mut m = w.at(20);
    m.drop_twophase(700).await.unwrap();
    m.drop_twophase(701).await.unwrap();
    m.finish();
    w.flush();
    assert_eq!(
        twophase_xids(&w.store, Lsn(10)).await.unwrap().numbers,
        [700].into()
    );
    assert_eq!(twophase_file(&w.store, 700, Lsn(10)).await.unwrap(), "state");
    assert!(twophase_xids(&w.store, Lsn(20)).await.unwrap().numbers.is_empty());
}

#[tokio::test]
async fn damaged_values_are_errors() {
    let w = Writer::new();
    let rel = node(9).fork(Fork::Main);
    w.store.put_image(key::rel_dir_entry_key(rel), Lsn(5), vec![2]);
    w.store.put_image(key::rel_size_key(rel), Lsn(5), vec![2]);
    w.store.put_image(key::DB_DIRECTORY, Lsn(5), vec![2]);
    assert!(matches!(
        rel_exists(&w.store, rel, Lsn(5)).await,
        Err(DataError::Damaged { .. })
    ));
    assert!(matches!(
        rel_page(&w.store, rel, 0, Lsn(5)).await,
        Err(DataError::Damaged { .. })
    ));
    assert!(matches!(
        databases(&w.store, Lsn(5)).await,
        Err(DataError::Damaged { .. })
    ));
    let gone = relmap(&w.store, DB, Lsn(5)).await;
    assert!(matches!(gone, Ok(None)));
    assert!(matches!(
        control_file(&w.store, Lsn(5)).await,
        Err(DataError::Missing { .. })
    ));
}

#[tokio::test]
async fn creating_a_relation_costs_the_same_among_many() {
    let mut w = Writer::new();
    let mut lsn = 10;
    let cost = |values: &[(key::Key, Lsn, Value)]| -> usize {
        values
            .iter()
            .map(|(_, _, v)| {
                let mut raw = Vec::new();
                v.encode(&mut raw);
                raw.len()
            })
            .sum()
    };
    let mut create = async |w: &mut Writer, relnode: u32| {
        lsn += 1;
        let mut m = w.at(lsn);
        m.create_rel(node(relnode).fork(Fork::Main)).await.unwrap();
        m.finish();
        let bytes = cost(&w.batch.values);
        w.flush();
        bytes
    };
    // The first one of a database also makes the database known.
    create(&mut w, 1).await;
    let known = databases(&w.store, Lsn(1_000_000)).await.unwrap().dbs;
    assert_eq!(known.into_iter().collect::<Vec<_>>(), [(DB, false)]);
    let second = create(&mut w, 2).await;
    for relnode in 3..5000 {
        create(&mut w, relnode).await;
    }
    assert_eq!(create(&mut w, 6000).await, second);
    assert_eq!(list_rels(&w.store, DB, Lsn(1_000_000)).await.unwrap().len(), 5000);
}

/// What a client may do to a few relation forks.
#[derive(Clone, Debug)]
enum Op {
    Write { relnode: u32, block: u32 },
    Truncate { relnode: u32, blocks: u32 },
    Drop { relnode: u32 },
    Flush,
    NewWriter,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1u32..4, 0u32..6).prop_map(|(relnode, block)| Op::Write { relnode, block }),
        2 => (1u32..4, 0u32..6).prop_map(|(relnode, blocks)| Op::Truncate { relnode, blocks }),
        1 => (1u32..4).prop_map(|relnode| Op::Drop { relnode }),
        2 => Just(Op::Flush),
        1 => Just(Op::NewWriter),
    ]
}

/// The model: what every relation looks like, block by block.
type Model = BTreeMap<u32, Vec<u8>>;

async fn run(ops: Vec<Op>) {
    let mut w = Writer::new();
    let mut model = Model::new();
    let mut history: Vec<(Lsn, Model)> = Vec::new();
    for (step, op) in ops.into_iter().enumerate() {
        let lsn = 10 + step as u64;
        let tag = step as u8 | 0x80;
        match op {
            Op::Write { relnode, block } => {
                w.write(lsn, node(relnode).fork(Fork::Main), block, tag).await;
                let blocks = model.entry(relnode).or_default();
                if blocks.len() <= block as usize {
                    blocks.resize(block as usize + 1, 0);
                }
                blocks[block as usize] = tag;
            }
            Op::Truncate { relnode, blocks } => {
                let mut m = w.at(lsn);
                m.truncate_rel(node(relnode).fork(Fork::Main), blocks)
                    .await
                    .unwrap();
                m.finish();
                if let Some(rel) = model.get_mut(&relnode) {
                    rel.truncate(blocks as usize);
                }
            }
            Op::Drop { relnode } => {
                let mut m = w.at(lsn);
                m.drop_rels(&[node(relnode)]).await.unwrap();
                m.finish();
                model.remove(&relnode);
            }
            Op::Flush => w.flush(),
            Op::NewWriter => {
                w.flush();
                w.cache = MetadataCache::default();
            }
        }
        history.push((Lsn(lsn), model.clone()));
    }
    w.flush();
    for (lsn, model) in history {
        for relnode in 1..4 {
            let rel = node(relnode).fork(Fork::Main);
            let want = model.get(&relnode);
            assert_eq!(
                rel_size(&w.store, rel, lsn).await.unwrap(),
                want.map(|rel| rel.len() as u32),
                "{lsn}"
            );
            for block in 0..6 {
                let tag = want.and_then(|rel| rel.get(block)).copied().unwrap_or(0);
                assert_eq!(
                    rel_page(&w.store, rel, block as u32, lsn).await.unwrap(),
                    page(tag),
                    "{lsn}"
                );
            }
        }
        let live: Vec<u32> = list_rels(&w.store, DB, lsn)
            .await
            .unwrap()
            .into_iter()
            .map(|rel| rel.relnode)
            .collect();
        assert_eq!(live, model.into_keys().collect::<Vec<_>>());
    }
}

proptest! {
    #[test]
    fn every_lsn_shows_the_relations_as_they_were(ops in proptest::collection::vec(op(), 0..40)) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run(ops));
    }
}
