//! What all timelines of the process share.

use std::sync::Arc;
use std::time::Duration;

use crate::layers::budget::MemoryBudget;

/// Shared by all tenants; made once at start.
#[derive(Debug)]
pub struct StoreContext {
    /// Memory of all in-memory layers.
    pub memory: Arc<MemoryBudget>,
    /// How long a read waits for WAL that its ancestors lack.
    pub wait_lsn_timeout: Duration,
}

/// Sizes that the configuration decides.
#[derive(Clone, Debug)]
pub struct StoreLimits {
    /// Memory of all in-memory layers before they are written out early, in bytes.
    pub in_memory_layer_bytes_max: u64,
    /// How long a read waits for WAL that its ancestors lack.
    pub wait_lsn_timeout: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        StoreLimits {
            in_memory_layer_bytes_max: 1024 * 1024 * 1024,
            wait_lsn_timeout: Duration::from_secs(60),
        }
    }
}

impl StoreContext {
    /// The shared parts, sized by `limits`.
    pub fn new(limits: &StoreLimits) -> Arc<Self> {
        Arc::new(StoreContext {
            memory: MemoryBudget::new(limits.in_memory_layer_bytes_max),
            wait_lsn_timeout: limits.wait_lsn_timeout,
        })
    }
}
