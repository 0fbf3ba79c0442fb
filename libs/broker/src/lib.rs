//! How safekeepers and pageservers find each other: short-lived facts in etcd.
//!
//! A safekeeper publishes the state of each of its active timelines once per second, under one lease
//! that ends seconds after the safekeeper does. Pageservers watch one timeline, safekeepers all.
//!
//! Nothing here is needed for correctness: what is read may be old, and etcd may be away. Whoever
//! uses it retries for ever, and goes on with what it has.

mod election;
mod key;
mod publish;
mod subscribe;

pub use election::{Election, Leadership};
pub use key::{BadKey, TimelineInfoKey};
pub use publish::Publisher;
pub use subscribe::{Subscription, Update};

use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use utils::id::TenantTimelineId;

/// Prefix of all keys unless configured otherwise.
pub const DEFAULT_PREFIX: &str = "neon";

/// How long one request to etcd may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after a failure before the next try.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Where etcd is and which part of its key space is ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BrokerConfig {
    /// Client URLs, such as `http://127.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// First component of all keys.
    pub prefix: String,
}

/// A request to etcd failed.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// etcd is away, or refused.
    #[error("etcd request failed: {0}")]
    Etcd(#[from] etcd_client::Error),
    /// The value cannot be written as JSON.
    #[error("cannot encode value")]
    Encode(#[from] serde_json::Error),
}

/// A handle on the broker. Cheap to clone; the connections are shared and mend themselves.
#[derive(Clone)]
pub struct Broker {
    client: Client,
    prefix: String,
}

impl Broker {
    /// A handle for `config`. Does not wait for etcd to be there: the requests will say.
    ///
    /// # Errors
    /// An endpoint is not a URL.
    pub async fn connect(config: &BrokerConfig) -> Result<Self, BrokerError> {
        let endpoints: Vec<&str> = config
            .endpoints
            .iter()
            .map(|url| url.trim_end_matches('/'))
            .collect();
        let options = ConnectOptions::new()
            .with_timeout(REQUEST_TIMEOUT)
            .with_connect_timeout(REQUEST_TIMEOUT);
        let client = Client::connect(endpoints, Some(options)).await?;
        Ok(Broker {
            client,
            prefix: config.prefix.clone(),
        })
    }

    /// For publishing the state of this process' timelines.
    pub fn publisher(&self) -> Publisher {
        Publisher::new(self.clone())
    }

    /// Follows all safekeepers of one timeline. What is there already comes first.
    pub fn subscribe_timeline(&self, timeline: TenantTimelineId) -> Subscription {
        Subscription::start(self.clone(), key::timeline_prefix(&self.prefix, timeline))
    }

    /// Follows all safekeepers of all timelines. What is there already comes first.
    pub fn subscribe_all(&self) -> Subscription {
        Subscription::start(self.clone(), format!("{}/", self.prefix))
    }
}
