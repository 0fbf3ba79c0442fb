//! The queue beside a storage that is a set: whatever the order in which operations end, and whenever the
//! process dies, what the index names is there.

use std::collections::BTreeMap;

use pageserver_api::key::Key;
use proptest::prelude::*;
use utils::lsn::Lsn;

use super::*;

fn name(n: u64) -> LayerFileName {
    LayerFileName::Delta {
        key_range: Key::MIN..Key::MAX,
        lsn_range: Lsn(8 * n)..Lsn(8 * n + 8),
    }
}

fn metadata(n: u64) -> TimelineMetadata {
    TimelineMetadata {
        disk_consistent_lsn: Lsn(8 * n),
        prev_record_lsn: None,
        ancestor: None,
        latest_gc_cutoff_lsn: Lsn(0),
        initdb_lsn: Lsn(0),
        pg_version: 15,
    }
}

fn change(added: &[u64], removed: &[u64], at: u64) -> Change {
    Change {
        added: added.iter().map(|n| (name(*n), *n)).collect(),
        removed: removed.iter().map(|n| name(*n)).collect(),
        metadata: Some(metadata(at)),
    }
}

fn index_of(operation: Option<Operation>) -> IndexPart {
    match operation {
        Some(Operation::UploadIndex(index)) => *index,
        other => panic!("{other:?} is not an index"),
    }
}

#[test]
fn an_index_waits_for_its_layers_and_a_deletion_for_its_index() {
    let mut queue = UploadQueue::new(None);
    queue.push(change(&[1, 2], &[], 2));
    queue.push(change(&[3], &[1, 2], 3));
    let uploads: Vec<Operation> = std::iter::from_fn(|| queue.next_operation()).collect();
    assert_eq!(
        uploads,
        [1, 2, 3].map(|n| Operation::UploadLayer(name(n))),
        "nothing but uploads can begin"
    );
    queue.finished(Operation::UploadLayer(name(2)));
    queue.finished(Operation::UploadLayer(name(3)));
    assert_eq!(queue.next_operation(), None, "the first index needs layer 1");
    queue.finished(Operation::UploadLayer(name(1)));
    let index = index_of(queue.next_operation());
    assert_eq!(
        index.layers,
        [(name(3), Some(3))].into(),
        "one index carries both"
    );
    assert_eq!((queue.next_operation(), queue.is_uploaded()), (None, false));
    queue.finished(Operation::UploadIndex(Box::new(index)));
    assert!(queue.is_uploaded() && !queue.is_idle());
    let Some(Operation::Delete(mut deleted)) = queue.next_operation() else {
        panic!("1 and 2 are garbage");
    };
    deleted.sort_by_key(|name| name.lsn_range().start);
    assert_eq!(deleted, [name(1), name(2)]);
    queue.finished(Operation::Delete(deleted));
    assert!(queue.is_idle());
}

#[test]
fn an_index_goes_out_while_later_layers_are_on_their_way() {
    let mut queue = UploadQueue::new(None);
    queue.push(change(&[1], &[], 1));
    let first = queue.next_operation().unwrap();
    queue.finished(first);
    queue.push(change(&[2], &[], 2));
    assert_eq!(queue.next_operation(), Some(Operation::UploadLayer(name(2))));
    assert_eq!(index_of(queue.next_operation()).metadata, metadata(1));
    queue.push(Change {
        metadata: Some(metadata(9)),
        ..Default::default()
    });
    assert_eq!(queue.next_operation(), None, "one index at a time, and in order");
}

#[test]
fn a_layer_that_comes_back_is_not_deleted() {
    let mut queue = UploadQueue::new(Some(IndexPart {
        layers: [(name(1), Some(1))].into(),
        ..IndexPart::empty(metadata(1))
    }));
    queue.push(change(&[], &[1], 2));
    let index = index_of(queue.next_operation());
    queue.finished(Operation::UploadIndex(Box::new(index)));
    queue.push(change(&[1], &[], 3));
    assert_eq!(queue.next_operation(), Some(Operation::UploadLayer(name(1))));
    assert_eq!(queue.next_operation(), None, "no deletion is left");

    queue.finished(Operation::UploadLayer(name(1)));
    let index = index_of(queue.next_operation());
    queue.finished(Operation::UploadIndex(Box::new(index)));
    queue.push(change(&[], &[1], 4));
    let index = index_of(queue.next_operation());
    queue.finished(Operation::UploadIndex(Box::new(index)));
    let deletion = queue.next_operation().unwrap();
    queue.push(change(&[1], &[], 5));
    assert_eq!(
        queue.next_operation(),
        None,
        "the upload waits for the deletion under way"
    );
    queue.finished(deletion);
    assert_eq!(queue.next_operation(), Some(Operation::UploadLayer(name(1))));
}

#[test]
fn uploads_are_bounded() {
    let mut queue = UploadQueue::new(None);
    queue.push(change(&(0..100).collect::<Vec<_>>(), &[], 1));
    assert_eq!(std::iter::from_fn(|| queue.next_operation()).count(), UPLOADS_MAX);
    queue.finished(Operation::UploadLayer(name(0)));
    assert_eq!(
        queue.next_operation(),
        Some(Operation::UploadLayer(name(UPLOADS_MAX as u64)))
    );
}

/// Object storage, and the state here.
#[derive(Default)]
struct World {
    objects: HashSet<LayerFileName>,
    index: Option<IndexPart>,
    /// Local layers, with the metadata.
    local: BTreeMap<u64, LayerFileName>,
    at: u64,
    queue: UploadQueue,
    running: Vec<Operation>,
}

impl World {
    fn push(&mut self, change: Change) {
        for (layer, bytes) in &change.added {
            self.local.insert(*bytes, layer.clone());
        }
        self.local.retain(|_, layer| !change.removed.contains(layer));
        self.queue.push(change);
    }

    /// A random change: a flush, or a compaction of two layers into one that may have been there before.
    fn act(&mut self, choice: u64) {
        self.at += 1;
        if choice.is_multiple_of(3) || self.local.len() < 2 {
            self.push(change(&[self.at], &[], self.at));
        } else {
            let names: Vec<u64> = self.local.keys().copied().collect();
            let first = names[choice as usize % names.len()];
            let second = names[(choice as usize / 7) % names.len()];
            let made = choice % 5;
            let added: &[u64] = if self.local.contains_key(&made) {
                &[]
            } else {
                &[made]
            };
            self.push(change(added, &[first, second], self.at));
        }
    }

    fn start(&mut self) {
        while let Some(operation) = self.queue.next_operation() {
            self.running.push(operation);
        }
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::UploadLayer(layer) => drop(self.objects.insert(layer.clone())),
            Operation::UploadIndex(index) => self.index = Some((**index).clone()),
            Operation::Delete(layers) => self.objects.retain(|layer| !layers.contains(layer)),
        }
        self.check();
    }

    /// Everything the index names is there, and the index is no older than the queue says.
    fn check(&self) {
        if let Some(index) = &self.index {
            let missing: Vec<_> = index
                .layers
                .keys()
                .filter(|layer| !self.objects.contains(layer))
                .collect();
            assert!(missing.is_empty(), "the index names {missing:?}");
        }
        let lsn = |index: Option<&IndexPart>| index.map(|index| index.metadata.disk_consistent_lsn);
        assert!(lsn(self.index.as_ref()) >= lsn(self.queue.durable()));
    }

    fn finish(&mut self, choice: u64) {
        if self.running.is_empty() {
            return;
        }
        let at = choice as usize % self.running.len();
        let operation = self.running.swap_remove(at);
        self.apply(&operation);
        self.queue.finished(operation);
        self.check();
    }

    /// Death with some operations carried out and some not; then a start that compares both sides.
    fn crash(&mut self, choice: u64) {
        for (bit, operation) in std::mem::take(&mut self.running).iter().enumerate() {
            if choice >> (bit % 60) & 1 == 1 {
                self.apply(operation);
            }
        }
        self.queue = UploadQueue::new(self.index.clone());
        let known = |layer: &&LayerFileName| {
            self.index
                .as_ref()
                .is_some_and(|index| index.layers.contains_key(layer))
        };
        let added = self.local.iter().filter(|(_, layer)| !known(layer));
        let added: Vec<_> = added.map(|(n, layer)| (layer.clone(), *n)).collect();
        self.queue.push(Change {
            added,
            removed: Vec::new(),
            metadata: Some(metadata(self.at)),
        });
    }
}

proptest! {
    #[test]
    fn what_the_index_names_is_there(
        steps in proptest::collection::vec((0u8..20, any::<u64>()), 1..120),
    ) {
        let mut world = World::default();
        world.act(0);
        for (kind, choice) in steps {
            match kind {
                0..=5 => world.act(choice),
                6..=9 => world.start(),
                10..=18 => world.finish(choice),
                _ => world.crash(choice),
            }
        }
        while !world.queue.is_idle() {
            world.start();
            prop_assert!(!world.running.is_empty(), "the queue is stuck: {:?}", world.queue);
            world.finish(1);
        }
        let index = world.index.clone().unwrap();
        prop_assert_eq!(index.metadata, metadata(world.at));
        // After a crash, layers that were removed here but not there come back; they do no harm.
        let unnamed: Vec<_> = world.local.values().filter(|layer| !index.layers.contains_key(layer)).collect();
        prop_assert!(unnamed.is_empty(), "{:?}", unnamed);
    }
}
