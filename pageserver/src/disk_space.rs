//! Whether the local disk has room, as those find who write to it.
//!
//! Nothing is lost on a full disk: versions stay in memory and WAL with the safekeepers, and whoever wrote tries again.
//! Who cannot write says so here. That wakes the task that evicts layers (`tenant::disk_usage`), if object storage has
//! them, and those who wait for room go on as soon as some was made.
//!
//! Invariant: the disk counts as full from the first write that failed for want of room to the next one that succeeded.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// See the module head. One for the process: all tenants are on one file system.
#[derive(Debug, Default)]
pub struct DiskSpace {
    is_full: AtomicBool,
    /// How often somebody found no room.
    failures: watch::Sender<u64>,
    /// Layers were evicted.
    made: Notify,
}

/// Whether the error, or one of its causes, says that there is no room on the disk.
pub fn is_out_of_space(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    causes.any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        io.is_some_and(|io| matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    })
}

impl DiskSpace {
    /// Notes how a write ended. Errors that are not about room say nothing.
    pub fn note<T, E: Error + 'static>(&self, written: &Result<T, E>) {
        match written {
            Ok(_) => {
                if self.is_full.swap(false, Ordering::Relaxed) {
                    tracing::info!("there is room on the disk again");
                }
            }
            Err(error) if is_out_of_space(error) => {
                if !self.is_full.swap(true, Ordering::Relaxed) {
                    tracing::error!("the disk is full: what cannot be written is kept, and tried again");
                }
                self.failures.send_modify(|failures| *failures += 1);
            }
            Err(_) => {}
        }
    }

    /// Whether the last write failed for want of room.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Changes whenever somebody finds no room, which counts from this call on.
    pub fn failures(&self) -> watch::Receiver<u64> {
        self.failures.subscribe()
    }

    /// Layers were evicted: those who wait may go on.
    pub fn room_made(&self) {
        self.made.notify_waiters();
    }

    /// Waits for `pause`, or until room was made.
    pub async fn pause(&self, pause: Duration) {
        drop(tokio::time::timeout(pause, self.made.notified()).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::LayerError;

    fn failed(kind: ErrorKind) -> Result<(), LayerError> {
        Err(LayerError::io("write", "x".as_ref())(io::Error::from(kind)))
    }

    #[test]
    fn full_from_the_first_failure_to_the_next_success() {
        let disk = DiskSpace::default();
        disk.note(&failed(ErrorKind::PermissionDenied));
        assert!(!disk.is_full(), "that was not for want of room");
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
            disk.note(&failed(kind));
            assert!(disk.is_full());
            disk.note(&failed(ErrorKind::PermissionDenied));
            assert!(disk.is_full(), "nothing was written");
            disk.note(&Ok::<_, LayerError>(()));
            assert!(!disk.is_full());
        }
    }

    #[tokio::test]
    async fn who_finds_no_room_wakes_who_makes_it_and_is_woken() {
        let disk = DiskSpace::default();
        let mut failures = disk.failures();
        disk.note(&failed(ErrorKind::StorageFull));
        failures.changed().await.unwrap();
        let woken = async {
            disk.pause(Duration::MAX).await;
        };
        tokio::join!(woken, async { disk.room_made() });
    }
}
