//! WAL receivers: one per active timeline, which finds a safekeeper through the broker and feeds the
//! timeline with what it sends.
//!
//! Nothing here is lost when it dies: WAL is asked for from the timeline's last record on, and
//! safekeepers keep it until the feedback says that it is durable here.

mod connection;
mod manager;
pub mod selection;
mod status;

use std::collections::HashMap;
use std::sync::Arc;

use broker::Broker;
use parking_lot::Mutex;
use postgres_client::Secret;
use tracing::{Instrument, info_span};
use utils::id::TenantTimelineId;

pub use connection::ReceiveError;
pub use status::{LogicalSize, ReceiverStatus, WalSource};

use crate::tenant::TimelineListener;
use crate::timeline::Timeline;

/// What a receiver works with.
#[derive(Clone)]
struct Source {
    timeline: Arc<Timeline>,
    /// Shown to safekeepers that ask for one.
    token: Option<Secret>,
}

/// All receivers of the server. Starts one for each timeline that becomes active.
pub struct WalReceivers {
    broker: Broker,
    token: Option<Secret>,
    running: Arc<Mutex<HashMap<TenantTimelineId, Arc<ReceiverStatus>>>>,
}

impl WalReceivers {
    /// Finds safekeepers through `broker` and shows them `token`.
    pub fn new(broker: Broker, token: Option<Secret>) -> Self {
        WalReceivers {
            broker,
            token,
            running: Arc::default(),
        }
    }

    /// State of a timeline's receiver, if it is active.
    pub fn status(&self, id: TenantTimelineId) -> Option<Arc<ReceiverStatus>> {
        self.running.lock().get(&id).cloned()
    }
}

impl TimelineListener for WalReceivers {
    fn timeline_active(&self, timeline: &Arc<Timeline>) {
        let id = timeline.id();
        let status = Arc::new(ReceiverStatus::default());
        self.running.lock().insert(id, Arc::clone(&status));
        let source = Source {
            timeline: Arc::clone(timeline),
            token: self.token.clone(),
        };
        let updates = self.broker.subscribe_timeline(id);
        let running = Arc::clone(&self.running);
        // Whoever made the timeline active has long gone when the receiver ends.
        let span =
            info_span!(parent: None, "wal_receiver", tenant = %id.tenant_id, timeline = %id.timeline_id);
        let work = async move {
            manager::run(source, updates, status).await;
            running.lock().remove(&id);
        };
        timeline.spawn(work.instrument(span));
    }
}
