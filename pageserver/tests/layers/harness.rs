//! A tenant on a real directory whose timelines are compared with models, and the random history they get.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pageserver::context::{StoreContext, StoreLimits};
use pageserver::tenant::{
    BranchSpec, Tenant, TenantManager, TenantManagerConfig, TenantState, TimelineListener,
};
use pageserver::timeline::memory_store::MemoryStore;
use pageserver::timeline::{ReadStore, Timeline, WriteBatch};
use pageserver_api::key::{Key, slru_block_key};
use pageserver_api::reltag::SlruKind;
use pageserver_api::tenant_config::{TenantConfig, TenantConfigOverrides};
use pageserver_api::value::{Value, WalRecord};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use remote_storage::{GenericRemoteStorage, LocalFs};
use utils::id::{TenantId, TimelineId};
use utils::lsn::{Lsn, RecordLsn};

/// Offsets on a page of the multixact offsets SLRU.
const OFFSETS_PER_PAGE: u32 = 2048;
/// Keys that hold whole values, and pages that records change.
const PLAIN_KEYS: u32 = 30;
const PAGES: u32 = 12;
/// Where the imported values stand.
pub const START: Lsn = Lsn(0x1000);

/// How long what is under way may take on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

struct NoListener;

impl TimelineListener for NoListener {
    fn timeline_active(&self, _timeline: &Arc<Timeline>) {}
}

/// Small layers, and nothing happens unless the test asks.
pub fn settings() -> TenantConfigOverrides {
    TenantConfigOverrides {
        checkpoint_distance: Some(1 << 40),
        compaction_target_size: Some(40_000),
        compaction_period: Some(Duration::ZERO),
        compaction_threshold: Some(3),
        gc_period: Some(Duration::ZERO),
        image_creation_threshold: Some(2),
        ..Default::default()
    }
}

pub async fn load(workdir: &Path) -> TenantManager {
    load_with(workdir, None).await
}

/// A directory as object storage.
pub async fn local_storage(dir: &Path) -> GenericRemoteStorage {
    GenericRemoteStorage::LocalFs(LocalFs::new(dir.to_owned()).await.unwrap())
}

/// A server in `workdir`, with all tenants that it finds there.
pub async fn load_with(workdir: &Path, remote: Option<GenericRemoteStorage>) -> TenantManager {
    let manager = TenantManager::new(TenantManagerConfig {
        workdir: workdir.to_owned(),
        default_tenant_config: TenantConfig::default(),
        context: StoreContext::with_remote(
            &StoreLimits {
                page_cache_bytes: 200_000,
                max_file_descriptors: 3,
                ..Default::default()
            },
            remote,
        ),
        listener: Arc::new(NoListener),
    });
    manager.load_all().await.unwrap();
    manager
}

fn plain_key(n: u32) -> Key {
    Key {
        field1: 2,
        field6: n + 1,
        ..Key::MIN
    }
}

fn page_key(n: u32) -> Key {
    slru_block_key(SlruKind::MultiXactOffsets, 0, n)
}

pub fn all_keys() -> Vec<Key> {
    let plain = (0..PLAIN_KEYS).map(plain_key);
    (0..PAGES).map(page_key).chain(plain).collect()
}

/// What a timeline was given: its model, and its records, which a safekeeper would still have.
#[derive(Default)]
pub struct Past {
    pub model: MemoryStore,
    pub records: Vec<(RecordLsn, WriteBatch)>,
}

impl Past {
    pub fn last(&self) -> RecordLsn {
        self.records.last().expect("the import is a record").0
    }

    /// The past of a branch at `lsn`.
    pub fn until(&self, lsn: Lsn) -> Past {
        let records = self
            .records
            .iter()
            .filter(|(at, _)| at.last <= lsn)
            .cloned()
            .collect();
        let model = MemoryStore::default();
        let values = self
            .model
            .versions()
            .into_iter()
            .filter(|(_, at, _)| *at <= lsn)
            .collect();
        model.put(WriteBatch { values });
        Past { model, records }
    }

    fn add(&mut self, at: RecordLsn, batch: WriteBatch) {
        self.model.put(batch.clone());
        self.records.push((at, batch));
    }

    pub fn import(&mut self) {
        let mut batch = WriteBatch::default();
        for n in 0..PAGES {
            batch.put(page_key(n), START, Value::Image(vec![0; 8192].into()));
        }
        for n in 0..PLAIN_KEYS / 2 {
            batch.put(plain_key(n), START, Value::Image(format!("import {n}").into()));
        }
        let at = RecordLsn {
            last: START,
            prev: Lsn(START.0 - 0x80),
        };
        self.add(at, batch);
    }

    /// Adds a random record.
    pub fn grow(&mut self, rng: &mut SmallRng) {
        let prev = self.last().last;
        let last = Lsn(prev.0 + 8 * rng.random_range(1..20));
        let mut batch = WriteBatch::default();
        for _ in 0..rng.random_range(0..4) {
            if rng.random_bool(0.7) {
                let page = rng.random_range(0..PAGES) * rng.random_range(0..2);
                let multi = page * OFFSETS_PER_PAGE + rng.random_range(0..OFFSETS_PER_PAGE);
                let offset = rng.random();
                let record = WalRecord::MultixactOffsetCreate { multi, offset };
                batch.put(page_key(page), last, Value::WalRecord(record));
            } else if rng.random_bool(0.9) {
                let value = vec![rng.random::<u8>(); rng.random_range(0..600)];
                batch.put(
                    plain_key(rng.random_range(0..PLAIN_KEYS)),
                    last,
                    Value::Image(value.into()),
                );
            } else {
                let page: Vec<u8> = (0..8192).map(|_| rng.random()).collect();
                batch.put(
                    page_key(rng.random_range(0..PAGES)),
                    last,
                    Value::Image(page.into()),
                );
            }
        }
        self.add(RecordLsn { last, prev }, batch);
    }
}

/// A tenant and what its timelines are to hold.
pub struct Env {
    pub manager: TenantManager,
    pub tenant_id: TenantId,
    pub pasts: BTreeMap<TimelineId, Past>,
    pub main: TimelineId,
    pub rng: SmallRng,
    pub remote: Option<GenericRemoteStorage>,
}

impl Env {
    pub async fn new(workdir: &Path, seed: u64) -> Env {
        Self::with_remote(workdir, seed, None).await
    }

    pub async fn with_remote(workdir: &Path, seed: u64, remote: Option<GenericRemoteStorage>) -> Env {
        let manager = load_with(workdir, remote.clone()).await;
        let tenant_id = TenantId::generate();
        let tenant = manager.create_tenant(tenant_id, settings()).await.unwrap();
        let main = TimelineId::generate();
        let unfinished = tenant.create_timeline(main, 15).await.unwrap();
        let mut past = Past::default();
        past.import();
        feed(unfinished.timeline(), &past).await;
        let timeline = unfinished.finish().await.unwrap();
        timeline.wait_uploaded(PATIENCE).await.unwrap();
        Env {
            manager,
            tenant_id,
            pasts: BTreeMap::from([(main, past)]),
            main,
            rng: SmallRng::seed_from_u64(seed),
            remote,
        }
    }

    /// Waits until object storage has all that is in files, and nothing more.
    pub async fn wait_idle(&self) {
        for timeline in self.timelines() {
            let remote = timeline.remote().expect("the server has object storage");
            remote.wait_idle(PATIENCE).await.unwrap();
        }
    }

    /// Attaches the tenant and gives its timelines what they lack.
    pub async fn attach(&mut self) {
        self.manager.attach_tenant(self.tenant_id).await.unwrap();
        self.wait_active().await;
        self.feed_all().await;
    }

    pub async fn wait_active(&self) {
        let mut state = self.manager.get(self.tenant_id).unwrap().watch_state();
        let settled = |state: &TenantState| !matches!(state, TenantState::Loading | TenantState::Attaching);
        let state = tokio::time::timeout(PATIENCE, state.wait_for(settled))
            .await
            .unwrap();
        assert_eq!(*state.unwrap(), TenantState::Active);
    }

    /// What safekeepers would send.
    pub async fn feed_all(&self) {
        for timeline in self.timelines() {
            feed(&timeline, &self.pasts[&timeline.timeline_id]).await;
        }
    }

    pub fn tenant(&self) -> Arc<Tenant> {
        self.manager.get_active(self.tenant_id).unwrap()
    }

    pub fn timeline(&self, id: TimelineId) -> Arc<Timeline> {
        self.tenant().get_timeline(id).unwrap()
    }

    pub fn timelines(&self) -> Vec<Arc<Timeline>> {
        self.tenant().timelines()
    }

    pub fn random_timeline(&mut self) -> Arc<Timeline> {
        let timelines = self.timelines();
        Arc::clone(&timelines[self.rng.random_range(0..timelines.len())])
    }

    /// New records for a timeline.
    pub async fn write(&mut self, timeline: &Arc<Timeline>, records: usize) {
        let past = self.pasts.get_mut(&timeline.timeline_id).unwrap();
        for _ in 0..records {
            past.grow(&mut self.rng);
        }
        feed(timeline, past).await;
    }

    pub async fn branch(&mut self, ancestor: &Timeline) {
        let past = &self.pasts[&ancestor.timeline_id];
        let floor = ancestor
            .ancestor()
            .map_or(ancestor.latest_gc_cutoff_lsn(), |(_, lsn)| lsn);
        let floor = floor.max(ancestor.latest_gc_cutoff_lsn());
        let at = Lsn(self.rng.random_range(floor.0..=past.last().last.0)).align_up();
        let timeline_id = TimelineId::generate();
        let spec = BranchSpec {
            timeline_id,
            ancestor_id: ancestor.timeline_id,
            start_lsn: Some(at),
            wait_timeout: Duration::ZERO,
        };
        let mut past = past.until(at);
        past.add(
            RecordLsn {
                last: at,
                prev: Lsn(0),
            },
            WriteBatch::default(),
        );
        let branch = self.tenant().branch(spec).await.unwrap();
        branch.wait_uploaded(PATIENCE).await.unwrap();
        self.pasts.insert(timeline_id, past);
    }

    /// Compares every timeline with its model at `samples` random LSNs and at its last record.
    pub async fn check(&mut self, samples: usize) {
        for timeline in self.timelines() {
            let past = &self.pasts[&timeline.timeline_id];
            assert_eq!(timeline.last_record().last, past.last().last, "{timeline:?}");
            let oldest = timeline.latest_gc_cutoff_lsn().0;
            for _ in 0..samples {
                let lsn = Lsn(self.rng.random_range(oldest..=past.last().last.0));
                compare(&timeline, &past.model, lsn, &mut self.rng).await;
            }
            compare(&timeline, &past.model, past.last().last, &mut self.rng).await;
        }
    }
}

/// Gives the timeline all records it does not have yet, as a WAL receiver would after any restart.
pub async fn feed(timeline: &Arc<Timeline>, past: &Past) {
    let mut writer = timeline.writer().await;
    let have = timeline.last_record().last;
    for (at, batch) in past.records.iter().filter(|(at, _)| at.last > have) {
        writer.put(batch.clone()).await.unwrap();
        writer.advance(*at);
    }
}

async fn compare(timeline: &Timeline, model: &MemoryStore, lsn: Lsn, rng: &mut SmallRng) {
    let keys = all_keys();
    let want = model.get_many(&keys, lsn).await.unwrap();
    let found = timeline.get_many(&keys, lsn).await.unwrap();
    for ((key, found), want) in keys.iter().zip(&found).zip(&want) {
        assert!(found == want, "{key} at {lsn} of {timeline:?}");
    }
    let key = keys[rng.random_range(0..keys.len())];
    assert!(
        timeline.get(key, lsn).await.unwrap() == model.get(key, lsn).await.unwrap(),
        "{key} at {lsn}"
    );
    let (a, b) = (
        keys[rng.random_range(0..keys.len())],
        keys[rng.random_range(0..keys.len())],
    );
    let range = a.min(b)..a.max(b);
    let want = model.scan(range.clone(), lsn).await.unwrap();
    let found = timeline.scan(range.clone(), lsn).await.unwrap();
    assert!(found == want, "scan of {range:?} at {lsn} of {timeline:?}");
}
