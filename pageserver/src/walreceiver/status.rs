//! What others may know of a timeline's WAL receiver.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::time::Instant;
use utils::lsn::Lsn;

use super::selection::{Progress, Worked};

/// The source of a timeline's WAL, as shown by the management API.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct WalSource {
    /// Where WAL comes from; `None` while there is no connection.
    pub connstr: Option<String>,
    /// How far WAL was received; `None` if none was.
    pub received_lsn: Option<Lsn>,
    /// When the safekeeper said something last, microseconds since the Unix epoch.
    pub received_at: Option<u64>,
}

/// State of one timeline's receiver, written by its tasks.
#[derive(Debug)]
pub struct ReceiverStatus {
    source: Mutex<WalSource>,
    progress: Mutex<ConnectionProgress>,
    /// Size of all relations in bytes, as far as it is known: the size at the start, and all growth since.
    logical_size: LogicalSize,
}

#[derive(Debug)]
struct ConnectionProgress {
    progress: Progress,
    worked: Worked,
}

impl Default for ReceiverStatus {
    fn default() -> Self {
        ReceiverStatus {
            source: Mutex::default(),
            progress: Mutex::new(ConnectionProgress::new(Lsn::INVALID)),
            logical_size: LogicalSize::default(),
        }
    }
}

impl ConnectionProgress {
    fn new(received: Lsn) -> Self {
        let now = Instant::now();
        ConnectionProgress {
            progress: Progress {
                received,
                wal_at: now,
                silent_since: Some(now),
            },
            worked: Worked::No,
        }
    }
}

impl ReceiverStatus {
    /// Where WAL comes from.
    pub fn source(&self) -> WalSource {
        self.source.lock().clone()
    }

    /// Size of all relations, see [`LogicalSize`].
    pub fn logical_size(&self) -> &LogicalSize {
        &self.logical_size
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.lock().progress
    }

    pub(super) fn worked(&self) -> Worked {
        self.progress.lock().worked
    }

    /// A connection is being made; WAL will be asked for from `from` on.
    pub(super) fn connecting(&self, from: Lsn) {
        *self.progress.lock() = ConnectionProgress::new(from);
    }

    pub(super) fn connected(&self, connstr: String) {
        self.source.lock().connstr = Some(connstr);
    }

    pub(super) fn disconnected(&self) {
        self.source.lock().connstr = None;
    }

    /// The safekeeper has said something, which is being worked on.
    pub(super) fn message_received(&self) {
        self.progress.lock().progress.silent_since = None;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.source.lock().received_at = Some(now.as_micros() as u64);
    }

    /// WAL up to `end` was received.
    pub(super) fn wal_received(&self, end: Lsn) {
        let mut progress = self.progress.lock();
        progress.worked = Worked::Yes;
        progress.progress.received = end;
        progress.progress.wal_at = Instant::now();
        self.source.lock().received_lsn = Some(end);
    }

    /// Everything received was worked on.
    pub(super) fn waiting(&self) {
        self.progress.lock().progress.silent_since = Some(Instant::now());
    }
}

/// Size of all relations of a timeline, kept up to date as WAL is ingested.
///
/// It is what the timeline had when its receiver started, counted in the background, plus the growth
/// by all records ingested since.
#[derive(Debug, Default)]
pub struct LogicalSize {
    initial: Mutex<Option<u64>>,
    grown: AtomicI64,
}

impl LogicalSize {
    /// The size in bytes, `None` until the initial size was counted.
    pub fn exact(&self) -> Option<u64> {
        let initial = (*self.initial.lock())?;
        Some(initial.saturating_add_signed(self.grown.load(Ordering::Relaxed)))
    }

    /// The size in bytes, or the growth since the start while the rest is not known.
    pub fn approximate(&self) -> u64 {
        let initial = self.initial.lock().unwrap_or(0);
        initial.saturating_add_signed(self.grown.load(Ordering::Relaxed))
    }

    pub(super) fn set_initial(&self, bytes: u64) {
        *self.initial.lock() = Some(bytes);
    }

    pub(super) fn grow(&self, bytes: i64) {
        self.grown.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_growth_before_and_after_the_count() {
        let size = LogicalSize::default();
        size.grow(8192);
        assert_eq!((size.exact(), size.approximate()), (None, 8192));
        size.set_initial(100_000);
        size.grow(-50_000);
        assert_eq!(size.exact(), Some(58_192));
    }
}
