//! Who read a layer, and when it came and went: for the eviction task and for people.
//!
//! Counts and the time of the last access are exact. The histories are for people: an access that meets
//! another one at the same instant is counted as dropped rather than waited for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pageserver_api::models::{AccessCounts, History, LayerAccess, LayerAccessStats, LayerResidenceEvent};
use parking_lot::Mutex;

use crate::task_kind::TaskKind;

/// Events of each history that are kept.
const HISTORY_MAX: usize = 16;

/// What was wanted of a layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AccessKind {
    /// Versions of a key.
    Reconstruct,
    /// All values.
    Iter,
    /// Which keys there are.
    KeyIter,
    /// Everything, for people.
    Dump,
}

impl AccessKind {
    fn name(self) -> &'static str {
        match self {
            AccessKind::Reconstruct => "GetValueReconstructData",
            AccessKind::Iter => "Iter",
            AccessKind::KeyIter => "KeyIter",
            AccessKind::Dump => "Dump",
        }
    }
}

/// Why a layer's place changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ResidenceEvent {
    /// It was found on disk at start.
    Loaded,
    /// It was found in object storage at start.
    LoadedRemote,
    /// It was written.
    Created,
    /// It was downloaded.
    Downloaded,
    /// It was removed from the disk.
    Evicted,
}

impl ResidenceEvent {
    fn status_and_reason(self) -> (&'static str, &'static str) {
        match self {
            ResidenceEvent::Loaded => ("Resident", "LayerLoad"),
            ResidenceEvent::LoadedRemote => ("Evicted", "LayerLoad"),
            ResidenceEvent::Created => ("Resident", "LayerCreate"),
            ResidenceEvent::Downloaded => ("Resident", "ResidenceChange"),
            ResidenceEvent::Evicted => ("Evicted", "ResidenceChange"),
        }
    }
}

/// What to forget after the statistics were shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ResetStats {
    /// Nothing.
    Nothing,
    /// Which kinds of tasks came.
    TaskKinds,
    /// Everything but residence.
    All,
}

#[derive(Clone, Copy, Debug)]
struct Access {
    at: Duration,
    task: TaskKind,
    kind: AccessKind,
}

impl Access {
    fn model(self) -> LayerAccess {
        LayerAccess {
            when_millis_since_epoch: self.at.as_millis() as u64,
            task_kind: self.task.name().to_owned(),
            access_kind: self.kind.name().to_owned(),
        }
    }
}

/// See the module head.
#[derive(Debug)]
pub struct AccessLog {
    counts: [AtomicU64; 4],
    /// Milliseconds since the Unix epoch; coming to the disk counts.
    last_millis: AtomicU64,
    histories: Mutex<Histories>,
}

#[derive(Debug, Default)]
struct Histories {
    tasks: [bool; TaskKind::ALL.len()],
    first: Option<Access>,
    accesses: VecDeque<Access>,
    residence: VecDeque<(Duration, ResidenceEvent)>,
    residence_dropped: u64,
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn push_bounded<T>(history: &mut VecDeque<T>, event: T) {
    if history.len() == HISTORY_MAX {
        history.pop_front();
    }
    history.push_back(event);
}

impl AccessLog {
    /// Begins with how the layer came to be known.
    pub fn new(event: ResidenceEvent) -> Self {
        let log = AccessLog {
            counts: Default::default(),
            last_millis: AtomicU64::new(0),
            histories: Mutex::default(),
        };
        log.note_residence(event);
        log
    }

    /// Notes an access by the running task.
    pub fn note(&self, kind: AccessKind) {
        self.note_many(kind, 1);
    }

    /// Notes accesses by the running task, all at once; the histories have them as one.
    pub fn note_many(&self, kind: AccessKind, count: u64) {
        let at = now();
        self.counts[kind as usize].fetch_add(count, Ordering::Relaxed);
        self.last_millis.store(at.as_millis() as u64, Ordering::Relaxed);
        if let Some(mut histories) = self.histories.try_lock() {
            let task = TaskKind::current();
            histories.tasks[task as usize] = true;
            let access = Access { at, task, kind };
            histories.first.get_or_insert(access);
            push_bounded(&mut histories.accesses, access);
        }
    }

    /// Notes a change of place.
    pub fn note_residence(&self, event: ResidenceEvent) {
        let at = now();
        self.last_millis.store(at.as_millis() as u64, Ordering::Relaxed);
        let mut histories = self.histories.lock();
        if histories.residence.len() == HISTORY_MAX {
            histories.residence_dropped += 1;
        }
        push_bounded(&mut histories.residence, (at, event));
    }

    /// When somebody last had use of the layer.
    pub fn last_access(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.last_millis.load(Ordering::Relaxed))
    }

    /// All of it as the API shows it.
    pub fn stats(&self, reset: ResetStats) -> LayerAccessStats {
        let counts: [u64; 4] = std::array::from_fn(|kind| self.counts[kind].load(Ordering::Relaxed));
        let mut histories = self.histories.lock();
        let accesses: u64 = counts.iter().sum();
        let shown = histories.accesses.len() as u64;
        let stats = LayerAccessStats {
            access_count_by_access_kind: AccessCounts {
                get_value_reconstruct_data: counts[AccessKind::Reconstruct as usize],
                iter: counts[AccessKind::Iter as usize],
                key_iter: counts[AccessKind::KeyIter as usize],
                dump: counts[AccessKind::Dump as usize],
            },
            task_kind_access_flag: TaskKind::ALL
                .into_iter()
                .filter(|kind| histories.tasks[*kind as usize])
                .map(|kind| kind.name().to_owned())
                .collect(),
            first: histories.first.map(Access::model),
            accesses_history: History {
                buffer: histories.accesses.iter().map(|access| access.model()).collect(),
                drop_count: accesses.saturating_sub(shown),
            },
            residence_events_history: History {
                buffer: histories.residence.iter().map(residence_model).collect(),
                drop_count: histories.residence_dropped,
            },
        };
        self.reset(&mut histories, reset);
        stats
    }

    fn reset(&self, histories: &mut Histories, reset: ResetStats) {
        if reset != ResetStats::Nothing {
            histories.tasks = Default::default();
        }
        if reset == ResetStats::All {
            histories.first = None;
            histories.accesses.clear();
            self.counts
                .iter()
                .for_each(|count| count.store(0, Ordering::Relaxed));
        }
    }
}

fn residence_model((at, event): &(Duration, ResidenceEvent)) -> LayerResidenceEvent {
    let (status, reason) = event.status_and_reason();
    LayerResidenceEvent {
        timestamp_millis_since_epoch: at.as_millis() as u64,
        status: status.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn counts_are_exact_and_histories_bounded() {
        let log = AccessLog::new(ResidenceEvent::Created);
        for _ in 0..20 {
            log.note(AccessKind::Reconstruct);
        }
        TaskKind::Compaction
            .scope(async { log.note(AccessKind::Iter) })
            .await;
        log.note_residence(ResidenceEvent::Evicted);
        let stats = log.stats(ResetStats::TaskKinds);
        assert_eq!(stats.access_count_by_access_kind.get_value_reconstruct_data, 20);
        assert_eq!(stats.access_count_by_access_kind.iter, 1);
        assert_eq!(stats.task_kind_access_flag, ["PageRequestHandler", "Compaction"]);
        assert_eq!(stats.first.unwrap().access_kind, "GetValueReconstructData");
        assert_eq!(
            (
                stats.accesses_history.buffer.len(),
                stats.accesses_history.drop_count
            ),
            (16, 5)
        );
        assert_eq!(stats.accesses_history.buffer[15].task_kind, "Compaction");
        let residence = stats.residence_events_history.buffer;
        assert_eq!(residence[0].reason, "LayerCreate");
        assert_eq!(residence[1].status, "Evicted");

        let again = log.stats(ResetStats::All);
        assert!(again.task_kind_access_flag.is_empty() && again.first.is_some());
        let reset = log.stats(ResetStats::Nothing);
        assert_eq!(reset.access_count_by_access_kind, AccessCounts::default());
        assert_eq!(reset.residence_events_history.buffer.len(), 2);
        assert!(log.last_access().elapsed().unwrap() < Duration::from_secs(60));
    }
}
