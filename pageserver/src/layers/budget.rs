//! Memory all in-memory layers of the process take together, and the bound that forces them to disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// See the module head.
#[derive(Debug)]
pub struct MemoryBudget {
    used: AtomicU64,
    bytes_max: u64,
    exceeded: Notify,
}

impl MemoryBudget {
    /// A budget of `bytes_max`, nothing of it used.
    pub fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(MemoryBudget {
            used: AtomicU64::new(0),
            bytes_max,
            exceeded: Notify::new(),
        })
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether more is used than there should be, so that layers must be written out.
    pub fn is_exceeded(&self) -> bool {
        self.used() > self.bytes_max
    }

    /// The size from which on a layer is worth writing out when memory is short, in bytes.
    pub fn worthwhile_bytes(&self) -> u64 {
        self.bytes_max / 64
    }

    /// Waits until the bound is exceeded (again).
    pub async fn wait_exceeded(&self) {
        self.exceeded.notified().await;
    }
}

/// The part of the budget that one layer uses; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl Reservation {
    /// Nothing yet.
    pub fn new(budget: &Arc<MemoryBudget>) -> Self {
        Reservation {
            budget: Arc::clone(budget),
            bytes: 0,
        }
    }

    /// Bytes reserved.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes more. Never fails: when it is too much, those who can make room are woken.
    pub fn grow(&mut self, bytes: u64) {
        self.bytes += bytes;
        let before = self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        let max = self.budget.bytes_max;
        if before <= max && before + bytes > max {
            self.budget.exceeded.notify_waiters();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let before = self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        assert!(before >= self.bytes, "more memory was given back than taken");
    }
}
