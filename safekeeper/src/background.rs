//! What goes on without being asked: publishing, hearing of peers, removing old WAL.
//!
//! None of it is needed for accepting WAL. The broker may be away for any time; each task goes on with
//! what it has and tries again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use broker::{Broker, BrokerConfig, BrokerError, Publisher, TimelineInfoKey};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error, info};
use utils::id::NodeId;

use crate::timeline_map::TimelineMap;

/// How often active timelines are published.
const PUBLISH_PERIOD: Duration = Duration::from_secs(1);
/// How often old segments are looked for.
const REMOVAL_PERIOD: Duration = Duration::from_secs(5);
/// Pause before another try to reach the broker.
const BROKER_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Opens the WAL of all timelines, so that their end is known to those who ask.
pub async fn open_all(map: Arc<TimelineMap>) {
    for timeline in map.all() {
        if let Err(error) = timeline.open().await {
            error!("{:#}", anyhow::Error::new(error));
        }
    }
}

pub(crate) async fn connect(config: &BrokerConfig) -> Broker {
    let mut is_first = true;
    loop {
        match Broker::connect(config).await {
            Ok(broker) => return broker,
            Err(error) if is_first => info!("broker is away, retrying each second: {error}"),
            Err(error) => debug!("broker is still away: {error}"),
        }
        is_first = false;
        tokio::time::sleep(BROKER_RETRY_PAUSE).await;
    }
}

/// Publishes the state of all active timelines, for ever.
pub async fn publish(map: Arc<TimelineMap>, config: BrokerConfig) {
    let mut publisher = connect(&config).await.publisher();
    let mut ticks = interval(PUBLISH_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_away = false;
    loop {
        ticks.tick().await;
        match publish_once(&map, &mut publisher).await {
            Ok(()) if is_away => {
                info!("broker is back");
                is_away = false;
            }
            Ok(()) => {}
            Err(error) => {
                if !is_away {
                    info!("cannot publish to the broker, retrying each second: {error}");
                }
                is_away = true;
            }
        }
    }
}

/// Publishes the state of all active timelines, and no others.
async fn publish_once(map: &TimelineMap, publisher: &mut Publisher) -> Result<(), BrokerError> {
    let mut infos = HashMap::new();
    for timeline in map.all().into_iter().filter(|timeline| timeline.is_active()) {
        if let Some(info) = timeline.own_info(map.conf()) {
            infos.insert(timeline.id(), info);
        }
    }
    publisher.keep_only(|timeline| infos.contains_key(&timeline));
    publisher.tend().await?;
    for (timeline, info) in infos {
        let node = map.conf().id;
        publisher
            .publish(TimelineInfoKey { timeline, node }, &info)
            .await?;
    }
    Ok(())
}

/// Takes what other safekeepers publish, for ever.
pub async fn hear_peers(map: Arc<TimelineMap>, config: BrokerConfig) {
    let own: NodeId = map.conf().id;
    let mut updates = connect(&config).await.subscribe_all();
    loop {
        let update = updates.next().await;
        if update.key.node == own {
            continue;
        }
        let Ok(timeline) = map.get(update.key.timeline) else {
            continue;
        };
        if let Err(error) = timeline.record_peer(update.key.node, update.info).await {
            debug!("cannot take what {} published: {error}", update.key);
        }
    }
}

/// Removes segments that nobody needs and closes files that nobody writes, for ever.
pub async fn remove_old_wal(map: Arc<TimelineMap>) {
    let mut ticks = interval(REMOVAL_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for timeline in map.all() {
            timeline.close_idle_file();
            if !timeline.is_active() {
                continue;
            }
            let id = timeline.id();
            let removal = tokio::task::spawn_blocking(move || timeline.remove_old_wal());
            match removal.await {
                Ok(Ok(0)) => {}
                Ok(Ok(removed)) => info!("removed {removed} WAL segments of {id}"),
                Ok(Err(error)) => error!("cannot remove old WAL of {id}: {:#}", anyhow::Error::new(error)),
                Err(error) => error!("removal of old WAL of {id} panicked: {error}"),
            }
        }
    }
}
