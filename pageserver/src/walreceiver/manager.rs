//! The task that keeps one timeline supplied with WAL: follows the broker, and makes, judges and
//! replaces connections as [`selection`](super::selection) decides.

use std::sync::Arc;

use broker::Subscription;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};
use utils::id::NodeId;

use super::Source;
use super::connection::{ReceiveError, receive};
use super::selection::{Decision, Limits, Selection};
use super::status::ReceiverStatus;
use crate::pgdatadir;

/// A connection being made or in use.
struct Running {
    task: JoinHandle<Result<(), ReceiveError>>,
    cancel: CancellationToken,
}

/// Runs until the timeline stops.
pub async fn run(source: Source, mut updates: Subscription, status: Arc<ReceiverStatus>) {
    let stop = source.timeline.cancelled().clone();
    let counting = stop.run_until_cancelled(count_logical_size(&source, &status));
    let mut manager = Manager {
        source: source.clone(),
        status: Arc::clone(&status),
        selection: Selection::default(),
        running: None,
    };
    let receiving = stop.run_until_cancelled(manager.follow(&mut updates));
    tokio::join!(counting, receiving);
    manager.disconnect().await;
}

/// Counts the size that the timeline has before anything is received.
async fn count_logical_size(source: &Source, status: &ReceiverStatus) {
    let timeline = &source.timeline;
    let lsn = timeline.last_record().last;
    match pgdatadir::logical_size(&**timeline, lsn).await {
        Ok(bytes) => status.logical_size().set_initial(bytes),
        // The size is for people and quotas: the timeline is usable without.
        Err(error) => warn!("cannot count the logical size: {error}"),
    }
}

struct Manager {
    source: Source,
    status: Arc<ReceiverStatus>,
    selection: Selection,
    running: Option<Running>,
}

impl Manager {
    async fn follow(&mut self, updates: &mut Subscription) {
        loop {
            let config = self.source.timeline.config();
            let limits = Limits {
                lagging_wal_timeout: config.lagging_wal_timeout,
                max_lsn_wal_lag: config.max_lsn_wal_lag.get(),
            };
            let progress = self.running.as_ref().map(|_| self.status.progress());
            let wake_at = match self.selection.decide(Instant::now(), limits, progress) {
                Decision::Wait(until) => until,
                Decision::Disconnect { reason } => {
                    info!("disconnecting from the safekeeper: {reason}");
                    self.disconnect().await;
                    continue;
                }
                Decision::Connect {
                    node,
                    address,
                    reason,
                } => {
                    info!("connecting to safekeeper {node} at {address}: {reason}");
                    self.disconnect().await;
                    self.connect(node, address);
                    continue;
                }
            };
            tokio::select! {
                update = updates.next() => {
                    self.selection.heard(update.key.node, &update.info, Instant::now());
                }
                result = ended(&mut self.running) => self.on_end(result),
                () = sleep_until(wake_at) => {}
            }
        }
    }

    fn connect(&mut self, node: NodeId, address: String) {
        self.selection.connecting(node);
        self.status.connecting(self.source.timeline.last_record().last);
        let (source, status) = (self.source.clone(), Arc::clone(&self.status));
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        let span = info_span!("safekeeper", %node);
        let work = async move {
            let receiving = receive(&source, &address, &status);
            let result = token.run_until_cancelled(receiving).await;
            status.disconnected();
            // `None`: it was given up, which has been logged already.
            result.unwrap_or(Ok(()))
        };
        let task = tokio::spawn(work.instrument(span));
        self.running = Some(Running { task, cancel });
    }

    fn on_end(&mut self, result: Result<(), ReceiveError>) {
        self.running = None;
        self.selection.ended(Instant::now(), self.status.worked());
        match result {
            Ok(()) => info!("the stream from the safekeeper has ended"),
            Err(error) if error.is_expected() => info!("connection to the safekeeper ended: {error}"),
            Err(error) => error!("receiving WAL failed: {:#}", anyhow::Error::new(error)),
        }
    }

    /// Ends the connection and waits until it no longer writes to the timeline.
    async fn disconnect(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        running.cancel.cancel();
        let result = (&mut running.task).await.unwrap_or(Err(ReceiveError::Panicked));
        self.on_end(result);
    }
}

/// Waits for the end of the connection, for ever if there is none. Cancel-safe.
async fn ended(running: &mut Option<Running>) -> Result<(), ReceiveError> {
    match running {
        Some(running) => (&mut running.task).await.unwrap_or(Err(ReceiveError::Panicked)),
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
