//! The same WAL once more, into a real timeline with small layers, by a `WalIngest` that is made anew now and then: what is
//! read from it must be what the model store gives.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use pageserver::context::{StoreContext, StoreLimits};
use pageserver::ingest::WalIngest;
use pageserver::tenant::{TenantManager, TenantManagerConfig, TimelineListener};
use pageserver::timeline::memory_store::MemoryStore;
use pageserver::timeline::{ReadStore, Timeline, WriteBatch};
use pageserver_api::key::Key;
use pageserver_api::tenant_config::TenantConfig;
use postgres_ffi::v15::stream::WalStreamDecoder;
use utils::id::{TenantId, TimelineId};
use utils::lsn::{Lsn, RecordLsn};

/// Bytes after which a layer is written out.
const CHECKPOINT_DISTANCE: u64 = 4 * 1024 * 1024;
/// Records after which ingest is stopped and started again.
const RECORDS_PER_WRITER: usize = 7000;
/// Keys compared in one read.
const KEYS_PER_READ: usize = 512;

struct NoListener;

impl TimelineListener for NoListener {
    fn timeline_active(&self, _timeline: &Arc<Timeline>) {}
}

/// A timeline that starts with what `model` holds at `start`.
async fn timeline(workdir: &Path, model: &MemoryStore, start: RecordLsn) -> Arc<Timeline> {
    let config = TenantConfig {
        checkpoint_distance: CHECKPOINT_DISTANCE,
        ..TenantConfig::default()
    };
    let manager = TenantManager::new(TenantManagerConfig {
        workdir: workdir.to_owned(),
        default_tenant_config: config,
        context: StoreContext::new(&StoreLimits::default()),
        listener: Arc::new(NoListener),
    });
    let tenant = manager
        .create_tenant(TenantId::generate(), Default::default())
        .await
        .unwrap();
    let unfinished = tenant.create_timeline(TimelineId::generate(), 15).await.unwrap();
    let mut writer = unfinished.timeline().writer().await;
    let values = model
        .versions()
        .into_iter()
        .filter(|(_, lsn, _)| *lsn <= start.last)
        .collect();
    writer.put(WriteBatch { values }).await.unwrap();
    writer.advance(start);
    drop(writer);
    unfinished.finish().await.unwrap()
}

/// Ingests `wal`, which follows `start`, up to `end`, and compares at `lsns`. Gives the number of values compared.
pub async fn compare_with_layers(
    workdir: &Path,
    model: &MemoryStore,
    (start, end): (RecordLsn, RecordLsn),
    wal: Vec<u8>,
    lsns: &[Lsn],
) -> usize {
    let timeline = timeline(workdir, model, start).await;
    let mut decoder = WalStreamDecoder::new(start.last);
    decoder.feed_bytes(wal.into());
    while timeline.last_record().last < end.last {
        let mut ingest = WalIngest::new(timeline.writer().await, timeline.last_record())
            .await
            .unwrap();
        for _ in 0..RECORDS_PER_WRITER {
            let (last, raw) = decoder.next_record().unwrap().expect("the model has read it");
            ingest
                .ingest_record(
                    RecordLsn {
                        last,
                        prev: decoder.record_start(),
                    },
                    raw,
                )
                .await
                .unwrap();
            if last >= end.last {
                break;
            }
        }
        ingest.commit().await.unwrap();
    }
    let keys: BTreeSet<Key> = model.versions().into_iter().map(|(key, _, _)| key).collect();
    let keys: Vec<Key> = keys.into_iter().collect();
    let mut compared = 0;
    for lsn in lsns {
        for keys in keys.chunks(KEYS_PER_READ) {
            let ours = timeline.get_many(keys, *lsn).await.unwrap();
            let model = model.get_many(keys, *lsn).await.unwrap();
            for ((key, ours), model) in keys.iter().zip(ours).zip(model) {
                assert!(ours == model, "{key} at {lsn}");
                compared += 1;
            }
        }
    }
    timeline.stop().await;
    compared
}
