//! Writing: one writer at a time puts versions into the open layer and makes them visible record by record.
//!
//! The open layer is frozen only between records: a request that comes while a record's values are put
//! but not yet visible is carried out when they become visible, or when the writer gives up.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;
use utils::id::TimelineId;
use utils::lsn::{Lsn, RecordLsn};

use super::layer_set::FrozenLayer;
use super::{Timeline, WriteBatch};
use crate::layers::in_memory::InMemoryLayer;

/// Frozen layers that may wait for being written out before writers have to wait, too.
const FROZEN_LAYERS_MAX: usize = 2;

/// Values cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The timeline is being stopped.
    #[error("timeline {0} is shutting down")]
    Stopping(TimelineId),
}

/// State of writing; its lock also orders all changes of the set of layers.
#[derive(Debug)]
pub struct WriteState {
    /// Where the next in-memory layer starts: just behind the last one.
    next_start: Lsn,
    /// Values were put that are not visible yet.
    pending: bool,
    has_writer: bool,
    freeze_requested: bool,
}

impl WriteState {
    /// Nothing is in memory; everything up to `disk_consistent_lsn` is on disk.
    pub fn new(disk_consistent_lsn: Lsn) -> Self {
        WriteState {
            next_start: Lsn(disk_consistent_lsn.0 + 1),
            pending: false,
            has_writer: false,
            freeze_requested: false,
        }
    }
}

/// The right to write to a timeline, which one task has at a time.
pub struct TimelineWriter {
    timeline: Arc<Timeline>,
    _turn: OwnedMutexGuard<()>,
}

impl Timeline {
    /// Waits until no other writer is there.
    pub async fn writer(self: &Arc<Self>) -> TimelineWriter {
        let turn = Arc::clone(&self.writer_turn).lock_owned().await;
        let mut state = self.write_state.lock();
        assert!(!state.has_writer, "{} has two writers", self.id());
        state.has_writer = true;
        drop(state);
        TimelineWriter {
            timeline: Arc::clone(self),
            _turn: turn,
        }
    }

    /// Ends the open layer, now or as soon as the record being ingested is complete.
    pub fn freeze(&self) {
        let mut state = self.write_state.lock();
        if state.pending {
            state.freeze_requested = true;
        } else {
            self.freeze_locked(&mut state);
        }
    }

    fn freeze_locked(&self, state: &mut WriteState) {
        state.freeze_requested = false;
        let last = self.last_record();
        let mut layers = (*self.layers.load_full()).clone();
        let frozen_up_to = layers.frozen.last().map(|frozen| frozen.end.last);
        let end = Lsn(last.last.0 + 1);
        // Without a complete record all it has are abandoned values, which are ingested again.
        let open = layers.open.take().filter(|open| end > open.start());
        if let Some(open) = &open {
            open.freeze(end);
            state.next_start = end;
        }
        if last.last > frozen_up_to.unwrap_or(self.disk_consistent_lsn()) {
            layers.frozen.push(FrozenLayer {
                layer: open,
                end: last,
            });
        }
        self.layers.store(Arc::new(layers));
        self.frozen_changed.notify_waiters();
    }

    /// The layer that takes new versions, made if there is none.
    fn open_layer(&self, state: &WriteState, first: Lsn) -> Arc<InMemoryLayer> {
        let current = self.layers.load();
        if let Some(open) = &current.open {
            return Arc::clone(open);
        }
        // The first layer of all starts where its values do, not at the beginning of time.
        let is_first = state.next_start == Lsn(1);
        let start = if is_first { first } else { state.next_start };
        let open = Arc::new(InMemoryLayer::new(start, &self.context.memory));
        let mut layers = (**current).clone();
        layers.open = Some(Arc::clone(&open));
        self.layers.store(Arc::new(layers));
        open
    }

    /// Waits while too many frozen layers wait for being written out.
    async fn wait_for_room(&self) -> Result<(), WriteError> {
        loop {
            let changed = self.frozen_changed.notified();
            if self.layers.load().frozen.len() < FROZEN_LAYERS_MAX {
                return Ok(());
            }
            tokio::select! {
                () = changed => {}
                () = self.cancel.cancelled() => return Err(WriteError::Stopping(self.timeline_id)),
            }
        }
    }
}

impl TimelineWriter {
    /// The timeline written to.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.timeline
    }

    /// Stores values above the last record; readers see them after [`TimelineWriter::advance`].
    ///
    /// Waits while the disk does not keep up.
    pub async fn put(&mut self, batch: WriteBatch) -> Result<(), WriteError> {
        let Some((_, first, _)) = batch.values.first() else {
            return Ok(());
        };
        let first = *first;
        self.timeline.wait_for_room().await?;
        let mut state = self.timeline.write_state.lock();
        state.pending = true;
        self.timeline.open_layer(&state, first).put(batch.values);
        Ok(())
    }

    /// Makes all values up to the end of the record visible, and wakes who waits for them.
    pub fn advance(&mut self, record: RecordLsn) {
        let timeline = &self.timeline;
        let mut state = timeline.write_state.lock();
        {
            let mut last = timeline.last_record.write();
            assert!(
                record.last > last.last,
                "{} goes back from {:?} to {record:?}",
                timeline.id(),
                *last
            );
            assert!(
                record.last.is_aligned(),
                "records end at multiples of 8, not at {:?}",
                record.last
            );
            *last = record;
        }
        timeline.last_record_wait.advance(record.last);
        state.pending = false;
        if state.freeze_requested || timeline.is_open_layer_full(record.last) {
            timeline.freeze_locked(&mut state);
        }
    }
}

impl Timeline {
    fn is_open_layer_full(&self, last: Lsn) -> bool {
        let layers = self.layers.load();
        let Some(open) = &layers.open else {
            return false;
        };
        let distance = self.config.load().checkpoint_distance;
        let memory = &self.context.memory;
        let bytes = open.memory_bytes();
        last.saturating_sub(open.start()) >= distance
            || bytes >= distance
            || (memory.is_exceeded() && bytes >= memory.worthwhile_bytes())
    }
}

impl Drop for TimelineWriter {
    fn drop(&mut self) {
        let mut state = self.timeline.write_state.lock();
        state.has_writer = false;
        // Values of an incomplete record are left behind in a layer that ends before them: the next
        // writer puts them again.
        let abandoned = std::mem::take(&mut state.pending);
        if abandoned || state.freeze_requested {
            self.timeline.freeze_locked(&mut state);
        }
    }
}
