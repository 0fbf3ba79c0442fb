//! Publishing: each timeline's state under a lease of its own, kept alive by each publication.

use std::collections::HashMap;

use etcd_client::PutOptions;
use safekeeper_api::timeline_info::SkTimelineInfo;
use utils::id::TenantTimelineId;

use crate::key::TimelineInfoKey;
use crate::{Broker, BrokerError};

/// How long a published state outlives its last publication, in seconds.
const LEASE_TTL_SECONDS: i64 = 10;

/// Publishes the timelines of one safekeeper. Keeps the leases, so use one per process.
pub struct Publisher {
    broker: Broker,
    leases: HashMap<TenantTimelineId, i64>,
}

impl Publisher {
    pub(crate) fn new(broker: Broker) -> Self {
        Publisher {
            broker,
            leases: HashMap::new(),
        }
    }

    /// Publishes the state of a timeline, to vanish [`LEASE_TTL_SECONDS`] after the last call.
    ///
    /// # Errors
    /// etcd is away or refused; the next call starts with a new lease.
    pub async fn publish(&mut self, key: TimelineInfoKey, info: &SkTimelineInfo) -> Result<(), BrokerError> {
        let result = self.try_publish(key, info).await;
        if result.is_err() {
            self.leases.remove(&key.timeline);
        }
        result
    }

    async fn try_publish(&mut self, key: TimelineInfoKey, info: &SkTimelineInfo) -> Result<(), BrokerError> {
        let value = serde_json::to_vec(info)?;
        let client = &mut self.broker.client;
        let lease = match self.leases.get(&key.timeline) {
            Some(lease) => {
                let (mut keeper, _answers) = client.lease_keep_alive(*lease).await?;
                keeper.keep_alive().await?;
                *lease
            }
            None => {
                let lease = client.lease_grant(LEASE_TTL_SECONDS, None).await?.id();
                self.leases.insert(key.timeline, lease);
                lease
            }
        };
        let options = PutOptions::new().with_lease(lease);
        client
            .put(key.encode(&self.broker.prefix), value, Some(options))
            .await?;
        Ok(())
    }

    /// Stops keeping a timeline's lease; what was published vanishes when the lease ends.
    pub fn forget(&mut self, timeline: TenantTimelineId) {
        self.leases.remove(&timeline);
    }
}
