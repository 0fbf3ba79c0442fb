//! Subscriptions: the present state of a key range, then each change, across reconnections.

use etcd_client::{EventType, GetOptions, KeyValue, WatchOptions};
use safekeeper_api::timeline_info::SkTimelineInfo;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::key::TimelineInfoKey;
use crate::{Broker, BrokerError, RETRY_PAUSE};

/// Updates that may wait for a slow subscriber; beyond it the watch itself waits.
const QUEUE_UPDATES_MAX: usize = 1024;

/// A safekeeper published the state of a timeline.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Update {
    /// Which timeline on which safekeeper.
    pub key: TimelineInfoKey,
    /// Its state.
    pub info: SkTimelineInfo,
}

/// A stream of updates that never ends by itself. Dropping it ends the watch.
pub struct Subscription {
    updates: mpsc::Receiver<Update>,
    _cancel: DropGuard,
}

impl Subscription {
    pub(crate) fn start(broker: Broker, range: String) -> Self {
        let (sender, updates) = mpsc::channel(QUEUE_UPDATES_MAX);
        let cancel = CancellationToken::new();
        let task_cancel = cancel.clone();
        tokio::spawn(async move {
            task_cancel
                .run_until_cancelled(follow_for_ever(broker, range, sender))
                .await;
        });
        Subscription {
            updates,
            _cancel: cancel.drop_guard(),
        }
    }

    /// The next update. Cancel-safe.
    pub async fn next(&mut self) -> Update {
        match self.updates.recv().await {
            Some(update) => update,
            // The task ends only with the subscription or the runtime.
            None => std::future::pending().await,
        }
    }
}

async fn follow_for_ever(mut broker: Broker, range: String, sender: mpsc::Sender<Update>) {
    let mut away = false;
    while !sender.is_closed() {
        match follow(&mut broker, &range, &sender, &mut away).await {
            Ok(()) => tracing::debug!("watch of '{range}' ended, watching again"),
            Err(error) if away => tracing::debug!("watch of '{range}' failed again: {error}"),
            Err(error) => tracing::info!("watch of '{range}' failed, retrying each second: {error}"),
        }
        away = true;
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Reads the range, then watches it from the revision read, until the watch breaks.
async fn follow(
    broker: &mut Broker,
    range: &str,
    sender: &mpsc::Sender<Update>,
    away: &mut bool,
) -> Result<(), BrokerError> {
    let present = broker
        .client
        .get(range, Some(GetOptions::new().with_prefix()))
        .await?;
    for pair in present.kvs() {
        forward(&broker.prefix, pair, sender).await;
    }
    let next_revision = present.header().map_or(0, |header| header.revision() + 1);
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(next_revision);
    let mut watch = broker.client.watch(range, Some(options)).await?;
    *away = false;
    while let Some(answer) = watch.message().await? {
        if answer.canceled() {
            return Ok(());
        }
        for event in answer.events() {
            if let (EventType::Put, Some(pair)) = (event.event_type(), event.kv()) {
                forward(&broker.prefix, pair, sender).await;
            }
        }
    }
    Ok(())
}

async fn forward(prefix: &str, pair: &KeyValue, sender: &mpsc::Sender<Update>) {
    let Ok(key) = TimelineInfoKey::decode(prefix, &String::from_utf8_lossy(pair.key())) else {
        tracing::debug!("ignoring broker key {:?}", String::from_utf8_lossy(pair.key()));
        return;
    };
    match serde_json::from_slice(pair.value()) {
        // A closed channel means that the subscriber has gone; the task is cancelled with it.
        Ok(info) => drop(sender.send(Update { key, info }).await),
        Err(error) => tracing::error!("malformed broker value for {key}: {error}"),
    }
}
