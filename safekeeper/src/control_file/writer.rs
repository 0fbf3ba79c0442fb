//! The control file of an open timeline, which is replaced at once when a reply depends on it, and in the
//! background when only positions have advanced.
//!
//! Invariants
//! * Writes come one after the other, and each holds the newest state and the furthest positions that were
//!   given before it: whichever of two writes is the later one, no term and no position goes back.
//! * After [`ControlWriter::close`] nothing of it touches the file.
//!
//! Blocking.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::{CONTROL_FILE_NAME, ControlFileError, load, store};
use crate::Sync;
use crate::acceptor::{ControlState, Positions};

/// See the module's head.
#[derive(Debug)]
pub struct ControlWriter {
    dir: PathBuf,
    sync: Sync,
    /// What the file holds; `None` once closed. Held while the file is written.
    current: Mutex<Option<ControlState>>,
}

impl ControlWriter {
    /// The control file in `dir`, and what it holds.
    ///
    /// # Errors
    /// It is damaged, or cannot be read.
    pub fn open(dir: &Path, sync: Sync) -> Result<(Self, ControlState), ControlFileError> {
        let state = load(&dir.join(CONTROL_FILE_NAME))?;
        let writer = ControlWriter {
            dir: dir.to_owned(),
            sync,
            current: Mutex::new(Some(state.clone())),
        };
        Ok((writer, state))
    }

    /// Replaces the state. Durable on return.
    ///
    /// # Errors
    /// The disk failed: which state the file holds is not known. Close the writer and open another.
    pub fn replace(&self, state: ControlState) -> Result<(), ControlFileError> {
        let mut current = self.current.lock();
        let before = current
            .as_ref()
            .expect("whoever replaces the state has not closed it");
        assert!(before.term <= state.term, "the term goes back on disk");
        assert_eq!(
            before.positions().max(state.positions()),
            state.positions(),
            "a position goes back on disk"
        );
        store(&self.dir, &state, self.sync)?;
        *current = Some(state);
        Ok(())
    }

    /// Raises the positions to `positions` at least. Durable on return, unless the writer was closed: then
    /// nothing happens.
    ///
    /// # Errors
    /// As [`Self::replace`].
    pub fn save(&self, positions: Positions) -> Result<(), ControlFileError> {
        let mut current = self.current.lock();
        let Some(before) = current.as_ref() else {
            return Ok(());
        };
        let mut state = before.clone();
        state.raise_positions(positions);
        if state != *before {
            store(&self.dir, &state, self.sync)?;
            *current = Some(state);
        }
        Ok(())
    }

    /// Waits for a write under way, and allows no other.
    pub fn close(&self) {
        *self.current.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use safekeeper_api::protocol::Term;
    use utils::id::TenantTimelineId;
    use utils::lsn::Lsn;

    use super::*;

    fn positions(commit: u64, backup: u64) -> Positions {
        Positions {
            commit_lsn: Lsn(commit),
            backup_lsn: Lsn(backup),
            ..Positions::default()
        }
    }

    fn on_disk(dir: &Path) -> ControlState {
        load(&dir.join(CONTROL_FILE_NAME)).unwrap()
    }

    #[test]
    fn a_late_save_takes_nothing_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = ControlState::empty(TenantTimelineId::default());
        store(dir.path(), &state, Sync::Yes).unwrap();
        let (writer, loaded) = ControlWriter::open(dir.path(), Sync::Yes).unwrap();
        assert_eq!(loaded, state);

        // Decided before the vote, carried out behind it.
        state.term = Term(3);
        state.raise_positions(positions(20, 5));
        writer.replace(state.clone()).unwrap();
        writer.save(positions(10, 7)).unwrap();
        state.backup_lsn = Lsn(7);
        assert_eq!(on_disk(dir.path()), state);

        writer.close();
        writer.save(positions(30, 30)).unwrap();
        assert_eq!(on_disk(dir.path()), state, "closed");
    }
}
