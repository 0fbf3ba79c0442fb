//! Upload queue of one timeline: the order in which local changes become durable in object storage.
//!
//! Changes are pushed in the order in which they happened here; operations come out, and are told back
//! when they are done. Many run at the same time. Index writes are coalesced: one index carries all changes
//! whose layers are uploaded by then.
//!
//! Invariants
//! * No index names a layer whose upload has not finished.
//! * An index holds a prefix of the changes: a state in which the timeline once was here.
//! * A layer object is deleted only after an index without it is durable, and while no operation needs it.
//! * Layers are uploaded even if they are replaced meanwhile. So a prefix is always going to be complete, however
//!   fast new changes come.
//!
//! Not here: retries (an operation is done when it has succeeded), layer contents, tasks.

use std::collections::{HashSet, VecDeque};

use pageserver_api::layer_name::LayerFileName;

use super::index::IndexPart;
use crate::timeline::metadata::TimelineMetadata;

/// Layer uploads of one timeline that run at the same time.
const UPLOADS_MAX: usize = 8;
/// Objects deleted by one operation.
pub const DELETE_BATCH_MAX: usize = 1000;

/// Something that changed here as a whole.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Layers that came, with their lengths in bytes.
    pub added: Vec<(LayerFileName, u64)>,
    /// Layers that went.
    pub removed: Vec<LayerFileName>,
    /// The metadata, if it changed.
    pub metadata: Option<TimelineMetadata>,
}

/// Something to do in object storage.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Operation {
    /// Upload the layer.
    UploadLayer(LayerFileName),
    /// Replace the index.
    UploadIndex(Box<IndexPart>),
    /// Delete the layers' objects.
    Delete(Vec<LayerFileName>),
}

/// See the module head.
#[derive(Debug, Default)]
pub struct UploadQueue {
    /// What the last durable index says, if there is one.
    durable: Option<IndexPart>,
    /// What `durable` lacks, oldest first.
    changes: VecDeque<Change>,
    /// Layers of `changes` whose upload has not begun, oldest first.
    waiting: VecDeque<LayerFileName>,
    uploading: HashSet<LayerFileName>,
    /// The number of changes that the index being uploaded carries.
    index_carries: Option<usize>,
    /// Layers that no index names any more.
    garbage: Vec<LayerFileName>,
    deleting: HashSet<LayerFileName>,
}

impl UploadQueue {
    /// A queue for a timeline of which `durable` is in object storage.
    pub fn new(durable: Option<IndexPart>) -> Self {
        UploadQueue {
            durable,
            ..Default::default()
        }
    }

    /// What the last durable index says.
    pub fn durable(&self) -> Option<&IndexPart> {
        self.durable.as_ref()
    }

    /// Whether everything pushed is durable, and what is not needed is deleted.
    pub fn is_idle(&self) -> bool {
        self.is_uploaded() && self.garbage.is_empty() && self.deleting.is_empty()
    }

    /// Whether everything pushed is durable.
    pub fn is_uploaded(&self) -> bool {
        self.changes.is_empty()
    }

    /// Layers that are not uploaded yet.
    pub fn layers_missing(&self) -> usize {
        self.waiting.len() + self.uploading.len()
    }

    /// Adds what has changed here. The first change of a timeline that has no index yet brings its metadata.
    pub fn push(&mut self, change: Change) {
        let has_metadata = self.durable.is_some() || !self.changes.is_empty() || change.metadata.is_some();
        assert!(has_metadata, "an index needs metadata");
        for (name, _) in &change.added {
            self.garbage.retain(|garbage| garbage != name);
            if !self.waiting.contains(name) {
                self.waiting.push_back(name.clone());
            }
        }
        self.changes.push_back(change);
    }

    /// The next operation to start, if there is one. Operations started run together.
    pub fn next_operation(&mut self) -> Option<Operation> {
        self.next_upload()
            .or_else(|| self.next_index())
            .or_else(|| self.next_delete())
    }

    fn next_upload(&mut self) -> Option<Operation> {
        if self.uploading.len() >= UPLOADS_MAX {
            return None;
        }
        // A layer of this name may be on its way in, or out: the later operation must come second.
        let is_free = |name: &LayerFileName| !self.uploading.contains(name) && !self.deleting.contains(name);
        let at = self.waiting.iter().position(is_free)?;
        let name = self.waiting.remove(at).expect("the position was found just now");
        self.uploading.insert(name.clone());
        Some(Operation::UploadLayer(name))
    }

    fn next_index(&mut self) -> Option<Operation> {
        if self.index_carries.is_some() {
            return None;
        }
        let missing: HashSet<&LayerFileName> = self.waiting.iter().chain(&self.uploading).collect();
        let is_complete = |change: &&Change| change.added.iter().all(|(name, _)| !missing.contains(name));
        let complete = self.changes.iter().take_while(is_complete).count();
        if complete == 0 {
            return None;
        }
        self.index_carries = Some(complete);
        Some(Operation::UploadIndex(Box::new(self.index_after(complete))))
    }

    /// The index with the first `count` changes.
    fn index_after(&self, count: usize) -> IndexPart {
        let metadata = || self.changes.iter().find_map(|change| change.metadata);
        let mut index = match &self.durable {
            Some(durable) => durable.clone(),
            None => IndexPart::empty(metadata().expect("the first change brings metadata")),
        };
        for change in self.changes.iter().take(count) {
            for name in &change.removed {
                index.layers.remove(name);
            }
            let added = change.added.iter();
            index
                .layers
                .extend(added.map(|(name, bytes)| (name.clone(), Some(*bytes))));
            index.metadata = change.metadata.unwrap_or(index.metadata);
        }
        index
    }

    fn next_delete(&mut self) -> Option<Operation> {
        if !self.deleting.is_empty() || self.garbage.is_empty() {
            return None;
        }
        let first = self.garbage.len().saturating_sub(DELETE_BATCH_MAX);
        let batch = self.garbage.split_off(first);
        self.deleting.extend(batch.iter().cloned());
        Some(Operation::Delete(batch))
    }

    /// An operation that [`UploadQueue::next_operation`] gave has succeeded.
    pub fn finished(&mut self, operation: Operation) {
        match operation {
            Operation::UploadLayer(name) => {
                assert!(self.uploading.remove(&name), "{name} was not being uploaded");
            }
            Operation::UploadIndex(index) => {
                let carried = self.index_carries.take().expect("an index was being uploaded");
                let done = self.changes.drain(..carried);
                let removed = done.flat_map(|change| change.removed);
                let removed: HashSet<LayerFileName> = removed.collect();
                self.durable = Some(*index);
                let needed = self.needed();
                let garbage: Vec<_> = removed
                    .into_iter()
                    .filter(|name| !needed.contains(name))
                    .collect();
                self.garbage.extend(garbage);
            }
            Operation::Delete(_) => self.deleting.clear(),
        }
    }

    /// Layers that the durable index names or a later one may.
    fn needed(&self) -> HashSet<LayerFileName> {
        let coming = self.changes.iter().flat_map(|change| &change.added);
        let durable = self.durable.iter().flat_map(|index| index.layers.keys());
        durable.chain(coming.map(|(name, _)| name)).cloned().collect()
    }
}

#[cfg(test)]
mod tests;
