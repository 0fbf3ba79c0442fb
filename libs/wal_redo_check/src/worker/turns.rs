//! Which changes are made at once, and the making of those that wait.

use std::io;

use postgres_ffi::v15::record_ref::RecordRef;
use wal_redo::{PageTag, visibility};

use super::{CheckImages, Replay, Worker};
use crate::deferred::{Change, Origin, When};
use crate::prefetch::prefetch;

/// How many changes ahead their records are asked for.
const RECORDS_AHEAD: usize = 12;
/// Bytes of a record asked for: most are not longer.
const RECORD_START: usize = 128;

impl Worker {
    /// Replays one block of a record, at once or when it is its page's turn.
    #[inline]
    pub fn replay(&mut self, replay: &Replay<'_, '_>) -> io::Result<()> {
        let block = replay.block();
        if block.forknum == visibility::FORKNUM {
            // Its pages are few, and are changed by records that do not name them, too.
            return self.replay_now(replay, None);
        }
        let Some(entry) = self.pages.entry(&PageTag::from(block)) else {
            // The first change around there.
            return self.replay_now(replay, None);
        };
        let change = Change {
            end: replay.end,
            raw: replay.raw,
            block: replay.index,
        };
        let origin = match block.will_init {
            true => Origin::Nothing,
            false => Origin::Page,
        };
        match self.deferred.offer(entry, &change, origin) {
            When::Now => self.replay_now(replay, Some(entry)),
            When::Later => Ok(()),
            When::AfterAll => {
                self.catch_up()?;
                self.replay_now(replay, Some(entry))
            }
        }
    }

    /// Makes all changes that wait, page by page.
    #[inline(never)]
    pub fn catch_up(&mut self) -> io::Result<()> {
        if self.deferred.is_empty() {
            return Ok(());
        }
        let waiting = self.deferred.take();
        let mut pages = waiting.pages().peekable();
        while let Some((entry, changes)) = pages.next() {
            // All of it: pruning, which most pages wait for, moves rows.
            if let Some(page) = pages.peek().and_then(|(next, _)| self.pages.at(*next)) {
                prefetch(page);
            }
            for number in changes {
                let ahead = waiting.bytes(number + RECORDS_AHEAD);
                prefetch(&ahead[..ahead.len().min(RECORD_START)]);
                self.replay_deferred(entry, &waiting.change(number))?;
            }
        }
        drop(pages);
        self.deferred.reuse(waiting);
        Ok(())
    }

    fn replay_deferred(&mut self, entry: u32, change: &Change<'_>) -> io::Result<()> {
        let Change { end, raw, block } = *change;
        let mut record = RecordRef::empty();
        record.read(raw).expect("it was read before");
        let image = CheckImages::take_from(&mut record).of(block);
        let replay = Replay {
            end,
            raw,
            record: &record,
            index: block,
            image,
        };
        self.replay_now(&replay, Some(entry))
    }
}
