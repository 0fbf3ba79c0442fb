//! Which changes are made at once, and the making of those that wait.

use std::io;

use postgres_ffi::v15::record_ref::RecordRef;
use wal_redo::{PageTag, visibility};

use super::{CheckImages, Replay, Worker};
use crate::deferred::{Change, Origin, When};
use crate::prefetch::prefetch;

/// How many changes ahead their records are asked for.
const RECORDS_AHEAD: usize = 6;
/// Lines of a record asked for: most are not longer.
const RECORD_LINES: usize = 2;
/// Lines of a page asked for: header, and line pointers of rows of a hundred bytes.
const PAGE_LINES: usize = 5;

impl Worker {
    /// Replays one block of a record, at once or when it is its page's turn.
    #[inline]
    pub fn replay(&mut self, replay: &Replay<'_, '_>) -> io::Result<()> {
        let block = replay.block();
        if block.forknum == visibility::FORKNUM {
            // Its pages are few, and are changed by records that do not name them, too.
            return self.replay_now(replay, None);
        }
        let tag = PageTag::from(block);
        let Some(place) = self.pages.place(&tag) else {
            return self.replay_first(replay, &tag);
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
        match self.deferred.offer(place, &change, origin) {
            When::Now => self.replay_now(replay, Some(place)),
            When::Later => Ok(()),
            When::AfterAll => {
                self.catch_up()?;
                self.replay_now(replay, None)
            }
        }
    }

    /// The first change of a page.
    fn replay_first(&mut self, replay: &Replay<'_, '_>, tag: &PageTag) -> io::Result<()> {
        self.replay_now(replay, None)?;
        if let Some(place) = self.pages.place(tag) {
            self.deferred.made(place);
        }
        Ok(())
    }

    /// Makes all changes that wait, page by page.
    #[inline(never)]
    pub fn catch_up(&mut self) -> io::Result<()> {
        if self.deferred.is_empty() {
            return Ok(());
        }
        let waiting = self.deferred.take();
        let mut pages = waiting.pages().peekable();
        while let Some((_, changes)) = pages.next() {
            if let Some((place, _)) = pages.peek() {
                prefetch(self.pages.at(*place), PAGE_LINES);
            }
            for number in changes {
                prefetch(waiting.bytes(number + RECORDS_AHEAD), RECORD_LINES);
                self.replay_deferred(&waiting.change(number))?;
            }
        }
        drop(pages);
        self.deferred.reuse(waiting);
        Ok(())
    }

    fn replay_deferred(&mut self, change: &Change<'_>) -> io::Result<()> {
        let Change { end, raw, block } = *change;
        let mut record = RecordRef::empty();
        record.read(raw).expect("it was read before");
        let image = CheckImages::take_from(&mut record).of(block);
        // The page may have lost its place if a change before this one failed.
        self.replay_now(
            &Replay {
                end,
                raw,
                record: &record,
                index: block,
                image,
            },
            None,
        )
    }
}
