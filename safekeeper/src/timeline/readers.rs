//! Who reads a timeline's WAL from this safekeeper, and what they report.

use std::sync::Arc;

use parking_lot::Mutex;
use safekeeper_api::protocol::{HotStandbyFeedback, PageserverFeedback};
use tokio::sync::watch;
use utils::lsn::Lsn;

use crate::acceptor::ReaderFeedback;

/// What one reader has reported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reader {
    /// End of the WAL sent to it.
    pub last_received_lsn: Lsn,
    /// WAL before this it will not need again.
    pub remote_consistent_lsn: Lsn,
    /// What its queries need.
    pub standby: HotStandbyFeedback,
    /// Its report, if it is a pageserver.
    pub pageserver: Option<PageserverFeedback>,
}

/// All readers of a timeline. A place is used again when its reader has gone.
#[derive(Debug, Default)]
pub struct Readers {
    slots: Mutex<Vec<Option<Reader>>>,
    /// Changes when a pageserver or a standby has reported something.
    reports: watch::Sender<()>,
}

/// A reader's place in [`Readers`], for as long as it is connected.
#[derive(Debug)]
pub struct ReaderSlot {
    readers: Arc<Readers>,
    index: usize,
}

impl Readers {
    /// Takes a place for a new reader.
    pub fn register(self: &Arc<Self>) -> ReaderSlot {
        let mut slots = self.slots.lock();
        let index = slots.iter().position(Option::is_none).unwrap_or_else(|| {
            slots.push(None);
            slots.len() - 1
        });
        slots[index] = Some(Reader::default());
        ReaderSlot {
            readers: Arc::clone(self),
            index,
        }
    }

    /// All places, free ones too.
    pub fn slots(&self) -> Vec<Option<Reader>> {
        self.slots.lock().clone()
    }

    /// Tells of reports from now on.
    pub fn watch_reports(&self) -> watch::Receiver<()> {
        self.reports.subscribe()
    }

    /// What the proposer is told of all readers together.
    pub fn combined(&self) -> ReaderFeedback {
        let slots = self.slots.lock();
        let readers = || slots.iter().flatten();
        ReaderFeedback {
            standby: readers().fold(HotStandbyFeedback::NONE, |all, reader| all.merge(reader.standby)),
            pageserver: readers()
                .filter_map(|reader| reader.pageserver)
                .max_by_key(|feedback| feedback.ps_writelsn),
        }
    }
}

impl ReaderSlot {
    /// Changes what is known of this reader.
    pub fn update(&self, change: impl FnOnce(&mut Reader)) {
        let mut slots = self.readers.slots.lock();
        change(
            slots[self.index]
                .as_mut()
                .expect("the place is taken until the slot is dropped"),
        );
    }

    /// The same for what the proposer is told, which wakes those who watch reports.
    pub fn report(&self, change: impl FnOnce(&mut Reader)) {
        self.update(change);
        self.readers.reports.send_replace(());
    }

    /// What is known of this reader.
    pub fn get(&self) -> Reader {
        self.readers.slots.lock()[self.index].expect("the place is taken until the slot is dropped")
    }
}

impl Drop for ReaderSlot {
    fn drop(&mut self) {
        self.readers.slots.lock()[self.index] = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feedback_is_combined_over_those_connected() {
        let readers = Arc::new(Readers::default());
        let (one, two) = (readers.register(), readers.register());
        one.update(|reader| {
            reader.standby = HotStandbyFeedback {
                ts: 5,
                xmin: 100,
                catalog_xmin: u64::MAX,
            };
        });
        let mut reports = readers.watch_reports();
        let pageserver = |lsn| {
            Some(PageserverFeedback {
                ps_writelsn: Lsn(lsn),
                ..PageserverFeedback::default()
            })
        };
        one.update(|reader| reader.pageserver = pageserver(10));
        assert!(!reports.has_changed().unwrap());
        two.report(|reader| reader.pageserver = pageserver(9));
        assert!(reports.has_changed().unwrap());
        reports.mark_unchanged();
        let combined = readers.combined();
        assert_eq!((combined.standby.ts, combined.standby.xmin), (5, 100));
        assert_eq!(combined.pageserver, pageserver(10));
        drop(one);
        let combined = readers.combined();
        assert_eq!(combined.standby, HotStandbyFeedback::NONE);
        assert_eq!(combined.pageserver, pageserver(9));
        let three = readers.register();
        assert_eq!(three.index, 0);
    }
}
