//! Changes that wait for their page's turn.
//!
//! A page that was not changed lately is in none of the processor's caches. Met again and again at random, it would be
//! fetched anew each time. So its changes are collected, and later made one after the other.
//!
//! Invariants
//! * Once a change of a page waits, all that follow wait too, until [`Deferred::take`]: they keep their order.
//! * What waits is bounded by [`LOG_LEN_MAX`]. A change for which there is no room is made after all others.

use std::mem;
use std::ops::Range;

use utils::lsn::Lsn;

/// Bytes of records that may wait. More would spare visits of pages, but it takes time to get memory, too.
const LOG_LEN_MAX: usize = 8 << 20;
/// A page is taken to be in the cache if one of the last so many changes was made to it.
const RECENT: u32 = 16 << 10;
/// A longer record writes a good part of its page: the visit is worth it.
const RECORD_LEN_MAX: usize = 512;
/// What stands in the log before a record: its end (`u64`), the block's place among its blocks and its length (`u32`).
const HEAD_LEN: usize = 16;

/// When a change is to be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum When {
    /// At once: none of the same page waits.
    Now,
    /// When it is the page's turn: it was taken in.
    Later,
    /// After all that wait: it was not taken in.
    AfterAll,
}

/// What a change makes its page from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// From what the page was before.
    Page,
    /// From nothing.
    Nothing,
}

/// A change of a page by a record that was read successfully.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Change<'a> {
    /// End of the record.
    pub end: Lsn,
    /// The record as in the WAL.
    pub raw: &'a [u8],
    /// Which of its blocks the page is, by its place among them.
    pub block: usize,
}

/// What is known of a page.
#[derive(Clone, Copy, Default)]
struct State {
    /// Changes that wait.
    waiting: u32,
    /// When one was seen last, see [`Deferred::clock`].
    seen: u32,
}

/// The changes that wait. Pages go by numbers of the caller's, from 0 on.
#[derive(Default)]
pub struct Deferred {
    /// The changes in the order of the WAL, each a head and a record.
    log: Vec<u8>,
    /// Of each its page and where its head is.
    entries: Vec<(u32, u32)>,
    /// Pages with changes that wait.
    pages: Vec<u32>,
    /// By page.
    states: Vec<State>,
    /// Number of changes seen, which may wrap.
    clock: u32,
}

/// Changes by page.
pub struct ByPage {
    log: Vec<u8>,
    /// Where the changes' heads are, by page and then in the order of the WAL.
    starts: Vec<u32>,
    /// Pages in ascending order, each with the end of its part of `starts`.
    pages: Vec<(u32, u32)>,
}

impl Deferred {
    /// Says when a change is to be made, and takes it in if later.
    #[inline]
    pub fn offer(&mut self, page: u32, change: &Change<'_>, origin: Origin) -> When {
        let clock = self.clock;
        self.clock = clock.wrapping_add(1);
        let state = self.state(page);
        let recent = clock.wrapping_sub(mem::replace(&mut state.seen, clock)) < RECENT;
        if state.waiting == 0 && (recent || origin == Origin::Nothing || change.raw.len() > RECORD_LEN_MAX) {
            return When::Now;
        }
        self.take_in(page, change)
    }

    #[inline]
    fn state(&mut self, page: u32) -> &mut State {
        if page as usize >= self.states.len() {
            self.states.resize(page as usize + 1, State::default());
        }
        &mut self.states[page as usize]
    }

    fn take_in(&mut self, page: u32, change: &Change<'_>) -> When {
        let Change { end, raw, block } = *change;
        let start = self.log.len();
        if start + HEAD_LEN + raw.len() > LOG_LEN_MAX {
            return When::AfterAll;
        }
        if start == 0 {
            self.log.reserve_exact(LOG_LEN_MAX);
        }
        let mut head = [0; HEAD_LEN];
        head[..8].copy_from_slice(&end.0.to_le_bytes());
        head[8..12].copy_from_slice(&(block as u32).to_le_bytes());
        head[12..].copy_from_slice(&(raw.len() as u32).to_le_bytes());
        self.log.extend_from_slice(&head);
        self.log.extend_from_slice(raw);
        self.entries.push((page, start as u32));
        let state = self.state(page);
        state.waiting += 1;
        if state.waiting == 1 {
            self.pages.push(page);
        }
        When::Later
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Hands out all changes. None waits any more.
    pub fn take(&mut self) -> ByPage {
        let mut pages = mem::take(&mut self.pages);
        pages.sort_unstable();
        let mut sum = 0;
        for page in &pages {
            // From here on it is where the page's next change goes.
            let waiting = &mut self.states[*page as usize].waiting;
            sum += mem::replace(waiting, sum);
        }
        let mut starts = vec![0; self.entries.len()];
        for (page, start) in self.entries.drain(..) {
            let next = &mut self.states[page as usize].waiting;
            starts[*next as usize] = start;
            *next += 1;
        }
        let with_end = |page: u32| (page, mem::take(&mut self.states[page as usize].waiting));
        ByPage {
            pages: pages.into_iter().map(with_end).collect(),
            starts,
            log: mem::take(&mut self.log),
        }
    }

    /// Uses the memory of what was handed out again.
    pub fn reuse(&mut self, done: ByPage) {
        if self.is_empty() {
            self.log = done.log;
            self.log.clear();
        }
    }
}

impl ByPage {
    /// The pages in ascending order, each with the numbers of its changes.
    pub fn pages(&self) -> impl Iterator<Item = (u32, Range<usize>)> {
        let mut start = 0;
        self.pages.iter().map(move |(page, end)| {
            let changes = start..*end as usize;
            start = changes.end;
            (*page, changes)
        })
    }

    /// The change with this number.
    #[inline]
    pub fn change(&self, number: usize) -> Change<'_> {
        let (head, rest) = self
            .bytes(number)
            .split_first_chunk::<HEAD_LEN>()
            .expect("changes were taken in whole");
        let word = |at: usize| u32::from_le_bytes(head.as_chunks::<4>().0[at]);
        Change {
            end: Lsn(u64::from(word(0)) | u64::from(word(1)) << 32),
            block: word(2) as usize,
            raw: &rest[..word(3) as usize],
        }
    }

    /// Bytes that begin with those of a change; empty if there is none with this number.
    #[inline]
    pub fn bytes(&self, number: usize) -> &[u8] {
        self.starts
            .get(number)
            .map_or(&[], |start| &self.log[*start as usize..])
    }
}

#[cfg(test)]
mod tests;
