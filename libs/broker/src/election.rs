//! Leader election: who of a timeline's safekeepers offloads its WAL.
//!
//! The leader is whoever holds the key `<prefix>/<tenant>/<timeline>/safekeeper/wal_backup/leader`, which is put
//! only where there is none and lives as long as its lease. A leader that dies loses it when the lease ends, one
//! that resigns at once.
//!
//! A lease measures time on etcd's clock: a leader that was suspended may take itself for one when another is
//! already at work. What leaders do must bear that; uploading the same final WAL twice does.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use utils::id::{NodeId, TenantTimelineId};

use crate::{Broker, BrokerError};

/// Leadership held. Lost [`lease_ttl`](Leadership::lease_ttl) after the last [`keep`](Leadership::keep).
pub struct Leadership {
    broker: Broker,
    lease: i64,
    ttl: Duration,
}

/// What came of standing for election.
pub enum Election {
    /// We lead.
    Won(Box<Leadership>),
    /// Another does; its number, if it is still known.
    Lost(Option<NodeId>),
}

fn leader_key(prefix: &str, timeline: TenantTimelineId) -> String {
    format!("{prefix}/{timeline}/safekeeper/wal_backup/leader")
}

impl Broker {
    /// The leader of a timeline, if it has one.
    pub async fn leader(&self, timeline: TenantTimelineId) -> Result<Option<NodeId>, BrokerError> {
        let mut client = self.client.clone();
        let answer = client.get(leader_key(&self.prefix, timeline), None).await?;
        let value = answer.kvs().first().and_then(|kv| kv.value_str().ok());
        Ok(value.and_then(|text| text.parse().ok()).map(NodeId))
    }

    /// Makes `node` the leader of a timeline if it has none, for `ttl` (whole seconds) at first.
    ///
    /// # Errors
    /// etcd is away. What was asked for may have been done; then it ends with the lease.
    pub async fn stand_for_leader(
        &self,
        timeline: TenantTimelineId,
        node: NodeId,
        ttl: Duration,
    ) -> Result<Election, BrokerError> {
        // Most of those who ask find a leader: no lease for them.
        if let Some(leader) = self.leader(timeline).await? {
            return Ok(Election::Lost(Some(leader)));
        }
        let mut client = self.client.clone();
        let ttl = Duration::from_secs(ttl.as_secs().max(1));
        let ttl_seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let lease = client.lease_grant(ttl_seconds, None).await?.id();
        let leadership = Leadership {
            broker: self.clone(),
            lease,
            ttl,
        };
        let key = leader_key(&self.prefix, timeline);
        let put = TxnOp::put(
            key.clone(),
            node.to_string(),
            Some(PutOptions::new().with_lease(lease)),
        );
        let if_none = Compare::create_revision(key, CompareOp::Equal, 0);
        let done = client.txn(Txn::new().when([if_none]).and_then([put])).await?;
        if done.succeeded() {
            return Ok(Election::Won(Box::new(leadership)));
        }
        leadership.resign().await?;
        Ok(Election::Lost(None))
    }
}

impl Leadership {
    /// How long leadership lasts without being kept.
    pub fn lease_ttl(&self) -> Duration {
        self.ttl
    }

    /// Prolongs the lease. `false`: it has ended, and another may lead.
    ///
    /// # Errors
    /// etcd is away; whether the lease goes on is not known.
    pub async fn keep(&self) -> Result<bool, BrokerError> {
        let mut client = self.broker.client.clone();
        // Opening the stream is a first request, and it waits for the answer.
        match client.lease_keep_alive(self.lease).await {
            Ok(_) => Ok(true),
            Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets another lead at once.
    ///
    /// # Errors
    /// etcd is away; then leadership ends with the lease.
    pub async fn resign(self) -> Result<(), BrokerError> {
        let mut client = self.broker.client.clone();
        client.lease_revoke(self.lease).await?;
        Ok(())
    }
}
