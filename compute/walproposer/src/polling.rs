//! Waiting awake: around a commit the program looks again and again for what it waits for, for a short time, instead of
//! going to sleep.
//!
//! A commit of one client passes through half a dozen processes, each of which wakes the next. Where a CPU that sleeps
//! needs longer to wake than a process has to do, that is a good part of the commit's time; a CPU kept awake answers at
//! once. The price is the CPU's time, so this is done only
//! * while one commit is under way and nothing else, and for a moment after it, when it is being told to its client and the
//!   next may come;
//! * as long as answers come in that time;
//! * as long as nobody else wants the CPU. It is offered every time (`sched_yield`), and if it does not come
//!   back soon, or one of the other conditions fails, nothing is done for many times as long.

use std::time::Duration;

use tokio::time::Instant;

/// What others have to do for one commit takes less, at a stretch. Who keeps the CPU for longer has other work.
const OTHERS_TURN_MAX: Duration = Duration::from_micros(300);
/// After time was lost the next attempt is made when this many times as much has passed.
const PAUSE_FACTOR: u32 = 10;

/// What is waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wait {
    /// Safekeepers' answers, which are due.
    Answers,
    /// More WAL, which may come.
    Wal,
}

/// Whether to wait awake. See the module's head.
#[derive(Debug)]
pub struct Polling {
    /// Longest time of one wait; zero: never.
    time: Duration,
    wait: Option<(Wait, Instant)>,
    not_before: Option<Instant>,
}

impl Polling {
    /// Nothing is waited for yet. `time` bounds every wait; zero turns it off.
    pub fn new(time: Duration) -> Polling {
        Polling {
            time,
            wait: None,
            not_before: None,
        }
    }

    /// WAL goes out; `alone` if everything before it is committed.
    pub fn on_wal(&mut self, alone: bool, now: Instant) {
        if alone {
            self.begin(Wait::Answers, now);
        } else {
            self.pause(self.time, now);
        }
    }

    /// Everything is committed.
    pub fn on_all_committed(&mut self, now: Instant) {
        self.begin(Wait::Wal, now);
    }

    fn begin(&mut self, wait: Wait, now: Instant) {
        let may = !self.time.is_zero() && self.not_before.is_none_or(|at| at <= now);
        self.wait = may.then(|| (wait, now + self.time));
    }

    fn pause(&mut self, lost: Duration, now: Instant) {
        self.wait = None;
        self.not_before = Some(now + lost * PAUSE_FACTOR);
    }

    /// Nothing is there. Whether to look again at once; others get the CPU before that.
    pub fn look_again(&mut self) -> bool {
        if self.wait.is_none() {
            return false;
        }
        let before = Instant::now();
        std::thread::yield_now();
        self.after_yield(before, Instant::now())
    }

    fn after_yield(&mut self, before: Instant, after: Instant) -> bool {
        let Some((wait, end)) = self.wait else {
            return false;
        };
        let others = after - before;
        if others > OTHERS_TURN_MAX {
            self.pause(others, after);
        } else if after >= end {
            match wait {
                Wait::Answers => self.pause(self.time, after),
                Wait::Wal => self.wait = None,
            }
        }
        self.wait.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_micros(400);
    const SHORT: Duration = Duration::from_micros(5);

    /// Has time lost in one way, and says until when.
    type Lose = fn(&mut Polling, Instant) -> Instant;

    /// Waits until nothing is waited for any more; for how long.
    fn wait_out(polling: &mut Polling, begin: Instant) -> Duration {
        let mut now = begin;
        while polling.after_yield(now, now + SHORT) {
            now += SHORT;
        }
        now - begin
    }

    #[test]
    fn waits_for_a_commit_and_a_moment_after_it() {
        let mut polling = Polling::new(TIME);
        let now = Instant::now();
        assert!(!polling.look_again(), "nothing is under way");
        polling.on_wal(true, now);
        assert!(polling.after_yield(now, now + SHORT));
        polling.on_all_committed(now + TIME / 2);
        assert_eq!(wait_out(&mut polling, now + TIME / 2), TIME - SHORT);
        // No WAL has come: nothing wrong with that.
        polling.on_wal(true, now + 10 * TIME);
        assert!(polling.after_yield(now + 10 * TIME, now + 10 * TIME + SHORT));
    }

    #[test]
    fn does_not_begin_for_a_while_after_time_was_lost() {
        let cases: [(&str, Lose); 3] = [
            ("no answer in time", |polling, now| now + wait_out(polling, now)),
            ("another commit under way", |polling, now| {
                polling.on_wal(false, now);
                now
            }),
            ("somebody else had the CPU", |polling, now| {
                assert!(!polling.after_yield(now, now + TIME));
                now + TIME
            }),
        ];
        for (case, lose) in cases {
            let mut polling = Polling::new(TIME);
            let begin = Instant::now();
            polling.on_wal(true, begin);
            let lost_at = lose(&mut polling, begin);
            assert!(!polling.after_yield(lost_at, lost_at + SHORT), "{case}");
            polling.on_wal(true, lost_at + TIME * (PAUSE_FACTOR - 1));
            assert!(!polling.look_again(), "{case}: too early");
            polling.on_wal(true, lost_at + TIME * (PAUSE_FACTOR + 1));
            assert!(polling.wait.is_some(), "{case}: again");
        }
    }

    #[test]
    fn can_be_turned_off() {
        let mut polling = Polling::new(Duration::ZERO);
        polling.on_wal(true, Instant::now());
        assert!(!polling.look_again());
        polling.on_all_committed(Instant::now());
        assert!(!polling.look_again());
    }
}
