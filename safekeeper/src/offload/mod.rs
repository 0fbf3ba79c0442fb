//! WAL in object storage: full segments go there, and readers older than the local WAL are served from there.
//!
//! Segment `s` of a timeline is the object `<tenant>/<timeline>/<segment name>`. Only whole segments of committed
//! WAL are offloaded, oldest first, so `backup_lsn`, the end of the last of them, says that all before is there.
//!
//! One safekeeper offloads at a time, the leader elected through etcd ([`broker::Leadership`]). A lease cannot rule
//! out that a suspended former leader goes on for a moment: both then upload the same bytes under the same name.
//! Nothing is ever deleted there by a safekeeper.
//!
//! [`run`] keeps one task per timeline that has something to offload ([`task`]); [`archive`] reads back.

mod archive;
mod task;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use broker::{Broker, BrokerConfig};
use remote_storage::{GenericRemoteStorage, RemotePath};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use utils::id::TenantTimelineId;

use crate::background;
use crate::timeline::Timeline;
use crate::timeline_map::TimelineMap;

pub use archive::{Archive, ArchiveError};

/// How often timelines that have something to offload are looked for.
const SCAN_PERIOD: Duration = Duration::from_secs(1);

/// Name of a segment's object.
fn object_name(timeline: TenantTimelineId, segment_name: &str) -> RemotePath {
    let name = format!("{}/{}/{segment_name}", timeline.tenant_id, timeline.timeline_id);
    name.parse().expect("ids and segment names are good components")
}

/// Offloads the WAL of all timelines, for ever.
pub async fn run(map: Arc<TimelineMap>, storage: GenericRemoteStorage, config: BrokerConfig) {
    let broker = background::connect(&config).await;
    let mut tasks: HashMap<TenantTimelineId, JoinHandle<()>> = HashMap::new();
    let mut ticks = interval(SCAN_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tasks.retain(|_, task| !task.is_finished());
        for timeline in map.all() {
            if has_work(&timeline) {
                tasks
                    .entry(timeline.id())
                    .or_insert_with(|| spawn(timeline, &storage, &broker));
            }
        }
    }
}

fn spawn(timeline: Arc<Timeline>, storage: &GenericRemoteStorage, broker: &Broker) -> JoinHandle<()> {
    let task = task::Task::new(timeline, storage.clone(), broker.clone());
    tokio::spawn(task.run())
}

/// Whether there is something to offload, or soon will be.
fn has_work(timeline: &Timeline) -> bool {
    let snapshot = timeline.snapshot();
    snapshot.is_open
        && snapshot.positions.commit_lsn.is_valid()
        && timeline.needs_wal_backup()
        && !timeline.cancelled().is_cancelled()
}
