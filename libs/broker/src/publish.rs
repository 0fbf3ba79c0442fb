//! Publishing: the states of a process' timelines, all under one lease, which lasts as long as the process publishes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use etcd_client::PutOptions;
use safekeeper_api::timeline_info::SkTimelineInfo;
use utils::id::TenantTimelineId;

use crate::key::TimelineInfoKey;
use crate::{Broker, BrokerError};

/// How long a published state outlives its last publication.
const LEASE_TTL: Duration = Duration::from_secs(10);
/// How often the lease is prolonged.
const KEEP_PERIOD: Duration = Duration::from_secs(3);

/// Publishes the timelines of one safekeeper. Keeps a lease, so use one per process.
pub struct Publisher {
    broker: Broker,
    lease: Option<Lease>,
    published: HashMap<TenantTimelineId, Published>,
}

#[derive(Clone, Copy)]
struct Lease {
    id: i64,
    /// It lasts for [`LEASE_TTL`] from then on, at least.
    kept_at: Instant,
}

struct Published {
    key: TimelineInfoKey,
    /// When it is to vanish.
    ends_at: Option<Instant>,
}

impl Publisher {
    pub(crate) fn new(broker: Broker) -> Self {
        Publisher {
            broker,
            lease: None,
            published: HashMap::new(),
        }
    }

    /// Publishes the state of a timeline, to vanish 10 seconds after the process has published or
    /// [tended](Self::tend) for the last time, or was first seen not to [keep](Self::keep_only) the timeline.
    ///
    /// # Errors
    /// etcd is away or refused; the next call starts with a new lease.
    pub async fn publish(&mut self, key: TimelineInfoKey, info: &SkTimelineInfo) -> Result<(), BrokerError> {
        let value = serde_json::to_vec(info)?;
        let lease = self.lease().await?;
        let put = self.broker.client.put(
            key.encode(&self.broker.prefix),
            value,
            Some(PutOptions::new().with_lease(lease)),
        );
        if let Err(error) = put.await {
            self.lease = None;
            return Err(error.into());
        }
        self.published
            .insert(key.timeline, Published { key, ends_at: None });
        Ok(())
    }

    /// Timelines other than these are published no more; their states vanish 10 seconds later.
    pub fn keep_only(&mut self, keeps: impl Fn(TenantTimelineId) -> bool) {
        for (timeline, published) in &mut self.published {
            if !keeps(*timeline) {
                published
                    .ends_at
                    .get_or_insert_with(|| Instant::now() + LEASE_TTL);
            }
        }
    }

    /// To be called every second or so: lets vanish what was forgotten, and keeps the rest.
    ///
    /// # Errors
    /// etcd is away or refused.
    pub async fn tend(&mut self) -> Result<(), BrokerError> {
        let now = Instant::now();
        let ended = |published: &&Published| published.ends_at.is_some_and(|end| end <= now);
        while let Some(key) = self.published.values().find(ended).map(|published| published.key) {
            let name = key.encode(&self.broker.prefix);
            self.broker.client.delete(name, None).await?;
            self.published.remove(&key.timeline);
        }
        if !self.published.is_empty() {
            self.lease().await?;
        }
        Ok(())
    }

    /// The lease, prolonged if it is time for that, or a new one.
    async fn lease(&mut self) -> Result<i64, BrokerError> {
        let now = Instant::now();
        // A lease that could not be prolonged is not tried again.
        if let Some(lease) = self.lease.take_if(|lease| now - lease.kept_at >= KEEP_PERIOD)
            && now - lease.kept_at < LEASE_TTL
        {
            self.broker.client.lease_keep_alive(lease.id).await?;
            self.lease = Some(Lease {
                kept_at: now,
                ..lease
            });
        }
        if let Some(lease) = self.lease {
            return Ok(lease.id);
        }
        let granted = self.broker.client.lease_grant(LEASE_TTL.as_secs() as i64, None);
        let id = granted.await?.id();
        self.lease = Some(Lease { id, kept_at: now });
        Ok(id)
    }
}
