//! What all timelines of the process share.

use std::sync::Arc;
use std::time::Duration;

use remote_storage::GenericRemoteStorage;
use tokio::sync::Semaphore;

use crate::disk_space::DiskSpace;
use crate::layers::budget::MemoryBudget;
use crate::layers::cache::PageCache;
use crate::timeline::page_memory::PageMemory;

/// Shared by all tenants; made once at start.
#[derive(Debug)]
pub struct StoreContext {
    /// Memory of all in-memory layers.
    pub memory: Arc<MemoryBudget>,
    /// Blocks and open files of all layer files.
    pub cache: Arc<PageCache>,
    /// Pages that were reconstructed a moment ago.
    pub pages: PageMemory,
    /// Whether there is room on the disk.
    pub disk: Arc<DiskSpace>,
    /// How long a read waits for WAL that its ancestors lack.
    pub wait_lsn_timeout: Duration,
    /// Where layers are kept for good; `None` keeps them on the local disk only.
    pub remote: Option<GenericRemoteStorage>,
    /// Turns of compaction and garbage collection.
    pub housekeeping: Semaphore,
}

/// Timelines that are compacted or collected at the same time.
const HOUSEKEEPING_JOBS_MAX: usize = 2;

/// Sizes that the configuration decides.
#[derive(Clone, Debug)]
pub struct StoreLimits {
    /// Memory of all in-memory layers before they are written out early, in bytes.
    pub in_memory_layer_bytes_max: u64,
    /// Memory of cached blocks of layer files and of reconstructed pages, half for each, in bytes.
    pub page_cache_bytes: u64,
    /// Layer files that may be open at once.
    pub max_file_descriptors: usize,
    /// How long a read waits for WAL that its ancestors lack.
    pub wait_lsn_timeout: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        StoreLimits {
            in_memory_layer_bytes_max: 1024 * 1024 * 1024,
            page_cache_bytes: 8192 * 8192,
            max_file_descriptors: 100,
            wait_lsn_timeout: Duration::from_secs(60),
        }
    }
}

impl StoreContext {
    /// The shared parts, sized by `limits`, without object storage.
    pub fn new(limits: &StoreLimits) -> Arc<Self> {
        Self::with_remote(limits, None)
    }

    /// The shared parts, sized by `limits`, with object storage if there is one.
    pub fn with_remote(limits: &StoreLimits, remote: Option<GenericRemoteStorage>) -> Arc<Self> {
        Arc::new(StoreContext {
            memory: MemoryBudget::new(limits.in_memory_layer_bytes_max),
            cache: Arc::new(PageCache::new(
                limits.page_cache_bytes / 2,
                limits.max_file_descriptors,
            )),
            pages: PageMemory::new(limits.page_cache_bytes / 2),
            disk: Arc::default(),
            wait_lsn_timeout: limits.wait_lsn_timeout,
            remote,
            housekeeping: Semaphore::new(HOUSEKEEPING_JOBS_MAX),
        })
    }
}
