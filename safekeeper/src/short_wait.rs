//! Short waits for the disk, on a thread of the runtime itself.
//!
//! Giving the runtime's work to another thread for the time of an fsync wakes two threads for each commit, which
//! costs more than the fsync's own CPU and delays the reply. While one proposer alone is connected it gains nothing:
//! the proposer waits for the reply, and readers are to have the WAL after it.
//!
//! Invariants
//! * At most one thread of the runtime waits this way at a time, and only if the runtime has others.
//! * The wait before it was short, as far as one can know. If this one is not, [`WATCH_PERIOD`] later another thread
//!   of the runtime does all that is to be done: a disk that hangs stops the proposer and nothing else.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::block_in_place;

/// A wait that takes longer makes the next one give up its thread.
const SHORT: Duration = Duration::from_millis(2);
/// How often the one who waits is looked at, while a proposer is connected.
const WATCH_PERIOD: Duration = Duration::from_millis(20);

/// Those of this process.
pub static SHORT_WAITS: ShortWaits = ShortWaits::new();
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// See the module's head.
#[derive(Debug)]
pub struct ShortWaits {
    watch: Mutex<Watch>,
    /// Since when a thread waits, in microseconds since `STARTED`, at least 1; 0 if none does.
    waits_since: AtomicU64,
    was_long: AtomicBool,
}

#[derive(Debug)]
struct Watch {
    proposers: usize,
    /// Whether there is a thread that watches, which there is while it is needed.
    runs: bool,
}

/// Counts a proposer for as long as it lives.
#[derive(Debug)]
pub struct ProposerGuard(&'static ShortWaits);

impl Drop for ProposerGuard {
    fn drop(&mut self) {
        self.0.watch.lock().proposers -= 1;
    }
}

/// The wait ends with it.
struct Waiting<'a>(&'a AtomicU64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

fn micros_now() -> u64 {
    u64::try_from(STARTED.elapsed().as_micros())
        .unwrap_or(u64::MAX)
        .max(1)
}

impl ShortWaits {
    const fn new() -> Self {
        ShortWaits {
            watch: Mutex::new(Watch {
                proposers: 0,
                runs: false,
            }),
            waits_since: AtomicU64::new(0),
            was_long: AtomicBool::new(false),
        }
    }

    /// A proposer has connected. Within a runtime.
    pub fn proposer(&'static self) -> ProposerGuard {
        let mut watch = self.watch.lock();
        watch.proposers += 1;
        let runtime = Handle::current();
        if !watch.runs && runtime.metrics().num_workers() > 1 {
            let watcher = thread::Builder::new().name("disk-watch".to_owned());
            // Without a watcher every wait gives up its thread.
            watch.runs = watcher.spawn(move || self.watch(&runtime)).is_ok();
        }
        ProposerGuard(self)
    }

    fn watch(&self, runtime: &Handle) {
        loop {
            thread::sleep(WATCH_PERIOD);
            let since = self.waits_since.load(Ordering::Relaxed);
            if since != 0 && micros_now().saturating_sub(since) >= WATCH_PERIOD.as_micros() as u64 {
                // Whoever is woken for this goes on to wait for sockets and timers, as the one who waits for the
                // disk would have.
                runtime.spawn(async {});
            }
            let mut watch = self.watch.lock();
            if watch.proposers == 0 {
                watch.runs = false;
                return;
            }
        }
    }

    /// Runs `wait`, which blocks and should be short, on this thread, which is one of the runtime.
    pub fn run<R>(&self, wait: impl FnOnce() -> R) -> R {
        let begin = Instant::now();
        let result = if self.may_wait() {
            let _until = Waiting(&self.waits_since);
            wait()
        } else {
            block_in_place(wait)
        };
        self.was_long.store(begin.elapsed() > SHORT, Ordering::Relaxed);
        result
    }

    /// Whether the caller may wait without giving up its thread; if so, nobody else may.
    fn may_wait(&self) -> bool {
        let watch = self.watch.lock();
        watch.runs
            && watch.proposers == 1
            && !self.was_long.load(Ordering::Relaxed)
            && self
                .waits_since
                .compare_exchange(0, micros_now(), Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static WAITS: ShortWaits = ShortWaits::new();

    fn is_waiting() -> bool {
        WAITS.waits_since.load(Ordering::Relaxed) != 0
    }

    /// Whether a wait keeps its thread. A machine that is busy elsewhere makes some waits long, and the next ones differ.
    fn waits_here() -> bool {
        (0..1000).any(|_| WAITS.run(is_waiting))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_only_proposer_keeps_its_thread_and_a_long_wait_stops_nobody_else() {
        let run = tokio::spawn(async {
            assert!(!waits_here(), "without a proposer");
            let _one = WAITS.proposer();
            assert!(waits_here());
            let two = WAITS.proposer();
            assert!(!waits_here(), "with two proposers");
            drop(two);
            let kept = WAITS.run(|| {
                let here = is_waiting();
                WAITS.run(|| ());
                is_waiting() == here
            });
            assert!(kept, "a second wait took the first one's place");

            // The other thread of the runtime has nothing to do and sleeps; timers are this one's.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let timer = tokio::spawn(tokio::time::sleep(Duration::from_millis(100)));
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(waits_here());
            let here = WAITS.run(|| {
                let here = is_waiting();
                let begin = Instant::now();
                while !timer.is_finished() && begin.elapsed() < Duration::from_secs(20) {
                    thread::sleep(Duration::from_millis(5));
                }
                assert!(timer.is_finished(), "the runtime stood still");
                here
            });
            let second = WAITS.run(is_waiting);
            assert!(!here || !second, "a long wait, and the next one kept its thread");
            assert!(waits_here());
        });
        run.await.unwrap();
    }
}
