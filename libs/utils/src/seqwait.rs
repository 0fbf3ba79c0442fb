//! Waiting until a number that only grows has reached a value: readers waiting for WAL.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::lsn::{AtomicLsn, Lsn};

/// An LSN that advances, and those who wait for it to.
///
/// `load` is a single atomic read. `advance` wakes exactly those whose position has come.
#[derive(Debug, Default)]
pub struct LsnWait {
    current: AtomicLsn,
    waiters: Mutex<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    closed: bool,
    next_ticket: u64,
    by_lsn: BTreeMap<(Lsn, u64), oneshot::Sender<()>>,
}

/// The wait ended before the position came.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
pub enum LsnWaitError {
    /// The time is up.
    #[error("timed out")]
    Timeout,
    /// Nothing will come any more.
    #[error("shutting down")]
    Closed,
}

impl LsnWait {
    /// Starts at `lsn`.
    pub fn new(lsn: Lsn) -> Self {
        LsnWait {
            current: AtomicLsn::new(lsn),
            waiters: Mutex::default(),
        }
    }

    /// The position reached.
    pub fn load(&self) -> Lsn {
        self.current.load()
    }

    /// Raises the position to `lsn` and wakes whoever waited for it; a lower `lsn` changes nothing.
    pub fn advance(&self, lsn: Lsn) {
        let mut waiters = self.waiters.lock();
        if self.current.fetch_max(lsn) >= lsn {
            return;
        }
        let later = waiters.by_lsn.split_off(&(Lsn(lsn.0.saturating_add(1)), 0));
        let reached = std::mem::replace(&mut waiters.by_lsn, later);
        drop(waiters);
        for sender in reached.into_values() {
            // The waiter may have given up, which is its own business.
            let _ = sender.send(());
        }
    }

    /// Makes all waits, present and future, end with [`LsnWaitError::Closed`].
    pub fn close(&self) {
        let mut waiters = self.waiters.lock();
        waiters.closed = true;
        waiters.by_lsn.clear();
    }

    /// Returns once the position is at least `lsn`.
    pub async fn wait_for(&self, lsn: Lsn, timeout: Duration) -> Result<(), LsnWaitError> {
        if self.load() >= lsn {
            return Ok(());
        }
        let (ticket, receiver) = {
            let mut waiters = self.waiters.lock();
            // `advance` stores under the lock: either it sees this waiter or this sees the new value.
            if self.load() >= lsn {
                return Ok(());
            }
            if waiters.closed {
                return Err(LsnWaitError::Closed);
            }
            let ticket = (lsn, waiters.next_ticket);
            waiters.next_ticket += 1;
            let (sender, receiver) = oneshot::channel();
            waiters.by_lsn.insert(ticket, sender);
            (ticket, receiver)
        };
        let _leave = Leave { owner: self, ticket };
        match tokio::time::timeout(timeout, receiver).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(LsnWaitError::Closed),
            Err(_) => Err(LsnWaitError::Timeout),
        }
    }
}

/// Takes a waiter off the list when its future ends, also by being dropped.
struct Leave<'a> {
    owner: &'a LsnWait,
    ticket: (Lsn, u64),
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.owner.waiters.lock().by_lsn.remove(&self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn wakes_exactly_those_whose_position_came() {
        let wait = Arc::new(LsnWait::new(Lsn(10)));
        wait.wait_for(Lsn(10), LONG).await.unwrap();
        let spawn = |lsn| {
            let wait = Arc::clone(&wait);
            tokio::spawn(async move { wait.wait_for(lsn, LONG).await })
        };
        let (near, far) = (spawn(Lsn(20)), spawn(Lsn(30)));
        while wait.waiters.lock().by_lsn.len() < 2 {
            tokio::task::yield_now().await;
        }
        wait.advance(Lsn(29));
        assert_eq!(near.await.unwrap(), Ok(()));
        assert!(!far.is_finished());
        wait.advance(Lsn(5));
        assert_eq!(wait.load(), Lsn(29));
        wait.close();
        assert_eq!(far.await.unwrap(), Err(LsnWaitError::Closed));
    }

    #[tokio::test]
    async fn a_wait_that_ends_early_leaves_nothing_behind() {
        let wait = LsnWait::default();
        let short = Duration::from_millis(1);
        assert_eq!(wait.wait_for(Lsn(1), short).await, Err(LsnWaitError::Timeout));
        assert!(wait.waiters.lock().by_lsn.is_empty());
    }
}
