//! Reads: down through the layers of the timeline, then of its ancestors, for a set of keys at once.

use std::ops::Range;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use pageserver_api::key::Key;
use smallvec::SmallVec;
use utils::lsn::Lsn;

use super::page_memory::KnownPage;
use super::{ReadError, ReadStore, Timeline, reconstruct};
use crate::layers::LayerError;
use crate::layers::map::{LayerMap, NextLayer};
use crate::layers::read_state::ReadState;
use crate::layers::run::{RUN_KEYS_MAX, Wanted};
use crate::metrics;

/// Keys that one step of a scan reads together; bounds what is in memory beside the result.
const SCAN_BATCH_KEYS: usize = 1024;

/// Which of the values that a read makes are worth remembering.
#[derive(Clone, Copy)]
enum Remember {
    Nothing,
    /// Those that took redo.
    Reconstructed,
}

impl Remember {
    /// Beyond the last record versions can still come: asked before the layers are, as it moves on meanwhile.
    fn at(self, timeline: &Timeline, lsn: Lsn) -> Self {
        if lsn <= timeline.last_record().last {
            self
        } else {
            Remember::Nothing
        }
    }
}

impl Timeline {
    /// Whether the history at `lsn` is still there.
    pub fn check_readable(&self, lsn: Lsn) -> Result<(), ReadError> {
        let mut timeline = self;
        while let Some(ancestor) = timeline.ancestor.as_ref().filter(|ancestor| lsn < ancestor.lsn) {
            timeline = &ancestor.timeline;
        }
        // At the branch point itself the timeline's own cutoff counts: ancestors keep what branches need.
        let cutoff = timeline.horizon.cutoff.load();
        if lsn >= cutoff {
            return Ok(());
        }
        Err(ReadError::Collected {
            lsn,
            cutoff,
            timeline_id: timeline.timeline_id,
        })
    }

    /// Fills `states`, which ascend by key and have nothing yet, from this timeline and its ancestors.
    async fn collect(&self, states: &mut [ReadState], lsn: Lsn) -> Result<(), ReadError> {
        let mut timeline = self;
        loop {
            let layers = timeline.layers.load_full();
            for layer in layers.in_memory() {
                states
                    .iter_mut()
                    .filter(|state| !state.complete)
                    .for_each(|state| layer.collect(state));
            }
            states.iter_mut().for_each(ReadState::settle);
            match &mut *states {
                [state] => collect_one(&layers.files, state, lsn).await?,
                states => collect_many(&layers.files, states, lsn).await?,
            }
            let Some(ancestor) = &timeline.ancestor else {
                return Ok(());
            };
            if states.iter().all(|state| state.complete) {
                return Ok(());
            }
            timeline.wait_ancestor(ancestor, states).await?;
            timeline = &ancestor.timeline;
        }
    }

    /// Turns to the ancestor: what is above the branch point there is not of this timeline.
    async fn wait_ancestor(
        &self,
        ancestor: &super::Ancestor,
        states: &mut [ReadState],
    ) -> Result<(), ReadError> {
        let end = Lsn(ancestor.lsn.0 + 1);
        for state in states.iter_mut() {
            state.upper = state.upper.min(end);
        }
        let highest = states
            .iter()
            .filter(|state| !state.complete)
            .map(|state| state.upper)
            .max();
        let needed = highest.map_or(Lsn(0), |upper| Lsn(upper.0.saturating_sub(1)));
        ancestor
            .timeline
            .wait_lsn(needed, self.context.wait_lsn_timeout)
            .await
    }

    /// Values of many keys, at an LSN that may be below the cutoff as long as the layers are there.
    ///
    /// Pages made on the way are not remembered: nobody is waiting for them in particular.
    pub(super) async fn read_many(&self, keys: &[Key], lsn: Lsn) -> Result<Vec<Option<Bytes>>, ReadError> {
        self.read(keys, lsn, Remember::Nothing).await
    }

    async fn read(
        &self,
        keys: &[Key],
        lsn: Lsn,
        remember: Remember,
    ) -> Result<Vec<Option<Bytes>>, ReadError> {
        let mut sorted = keys.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let remember = remember.at(self, lsn);
        let mut states: Vec<ReadState> = sorted.iter().map(|key| self.begin(*key, lsn)).collect();
        self.collect(&mut states, lsn).await?;
        let values: Vec<Option<Bytes>> = states
            .into_iter()
            .map(|state| self.finish(state, lsn, remember))
            .collect::<Result<_, _>>()?;
        let place = |key| sorted.binary_search(key).expect("every key asked for was read");
        Ok(keys.iter().map(|key| values[place(key)].clone()).collect())
    }

    /// The start of a read: what is remembered of the key, or nothing.
    fn begin(&self, key: Key, lsn: Lsn) -> ReadState {
        match self.context.pages.find(self.number, key, lsn) {
            None => ReadState::new(key, upper_of(lsn)),
            Some(known) => {
                self.pages_found.fetch_add(1, Ordering::Relaxed);
                ReadState::with_known(key, upper_of(lsn), upper_of(known.read_at), known.page)
            }
        }
    }

    fn finish(&self, mut state: ReadState, lsn: Lsn, remember: Remember) -> Result<Option<Bytes>, ReadError> {
        metrics::note_read(state.files_visited);
        let base = state.base.take();
        let value = reconstruct(state.key, lsn, base, &state.records())?;
        if let (Remember::Reconstructed, Some(page), Some(changed)) =
            (remember, &value, state.newest_record())
        {
            let known = KnownPage {
                changed,
                read_at: lsn,
                page: page.clone(),
            };
            self.context.pages.remember(self.number, state.key, known);
        }
        Ok(value)
    }

    /// The keys of `range` that may have a version at or below `lsn`, ascending.
    pub(super) async fn keys(&self, range: Range<Key>, lsn: Lsn) -> Result<Vec<Key>, ReadError> {
        let (mut timeline, mut lsn) = (self, lsn);
        let mut keys = Vec::new();
        let mut ranges = vec![range];
        loop {
            let layers = timeline.layers.load_full();
            let mut incomplete = Vec::new();
            for range in &ranges {
                for layer in layers.in_memory() {
                    layer.keys(range, upper_of(lsn), &mut keys);
                }
                for part in layers.files.plan_scan(range, upper_of(lsn)) {
                    for layer in &part.layers {
                        let found = layer.keys(&part.range, upper_of(lsn), &mut keys).await;
                        found.map_err(at(part.range.start, lsn))?;
                    }
                    if !part.complete {
                        incomplete.push(part.range);
                    }
                }
            }
            match &timeline.ancestor {
                Some(ancestor) if !incomplete.is_empty() => {
                    lsn = lsn.min(ancestor.lsn);
                    ancestor
                        .timeline
                        .wait_lsn(lsn, self.context.wait_lsn_timeout)
                        .await?;
                    timeline = &ancestor.timeline;
                    ranges = incomplete;
                }
                _ => break,
            }
        }
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }
}

fn at(key: Key, lsn: Lsn) -> impl FnOnce(LayerError) -> ReadError {
    move |source| ReadError::Layer { key, lsn, source }
}

async fn collect_one(files: &LayerMap, state: &mut ReadState, lsn: Lsn) -> Result<(), ReadError> {
    while !state.complete
        && let Some(next) = files.next(state.key, state.upper)
    {
        state.files_visited += 1;
        next.layer
            .collect(state, next.floor)
            .await
            .map_err(at(state.key, lsn))?;
        state.settle();
    }
    Ok(())
}

/// In rounds: each incomplete key finds its next layer, then all keys of a layer are read together, neighbours at once.
async fn collect_many(files: &LayerMap, states: &mut [ReadState], lsn: Lsn) -> Result<(), ReadError> {
    loop {
        let mut round: Vec<(NextLayer<'_>, usize)> = Vec::new();
        for (index, state) in states.iter().enumerate().filter(|(_, state)| !state.complete) {
            round.extend(files.next(state.key, state.upper).map(|next| (next, index)));
        }
        if round.is_empty() {
            return Ok(());
        }
        round.sort_by_key(|(next, index)| (next.layer.number(), *index));
        let neighbours = |(a, at_a): &(NextLayer<'_>, usize), (b, at_b): &(NextLayer<'_>, usize)| {
            a.layer.number() == b.layer.number() && states[*at_a].key.is_shortly_before(states[*at_b].key)
        };
        let runs: Vec<_> = round.chunk_by(neighbours).collect();
        for run in runs.iter().flat_map(|run| run.chunks(RUN_KEYS_MAX)) {
            collect_run(run, states, lsn).await?;
        }
    }
}

/// Reads keys, which are given by where they are in `states`, from the one layer that is next for all of them.
async fn collect_run(
    run: &[(NextLayer<'_>, usize)],
    states: &mut [ReadState],
    lsn: Lsn,
) -> Result<(), ReadError> {
    let (first, start) = (&run[0].0, run[0].1);
    let (layer, key) = (first.layer, states[start].key);
    let mut rest = (start..).zip(&mut states[start..]);
    let mut wanted: SmallVec<[Wanted<'_>; RUN_KEYS_MAX]> = SmallVec::new();
    for (next, index) in run {
        let found = rest.find(|(at, _)| at == index);
        let (_, state) = found.expect("the places of a run's keys ascend");
        state.files_visited += 1;
        wanted.push(Wanted {
            state,
            floor: next.floor,
        });
    }
    layer.collect_run(&mut wanted).await.map_err(at(key, lsn))?;
    wanted.iter_mut().for_each(|wanted| wanted.state.settle());
    Ok(())
}

/// The exclusive bound of a read that sees versions at `lsn`.
fn upper_of(lsn: Lsn) -> Lsn {
    Lsn(lsn.0.saturating_add(1))
}

impl ReadStore for Timeline {
    async fn get(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, ReadError> {
        self.check_readable(lsn)?;
        let remember = Remember::Reconstructed.at(self, lsn);
        let mut states = [self.begin(key, lsn)];
        self.collect(&mut states, lsn).await?;
        let [state] = states;
        self.finish(state, lsn, remember)
    }

    async fn get_many(&self, keys: &[Key], lsn: Lsn) -> Result<Vec<Option<Bytes>>, ReadError> {
        self.check_readable(lsn)?;
        self.read(keys, lsn, Remember::Reconstructed).await
    }

    async fn scan(&self, range: Range<Key>, lsn: Lsn) -> Result<Vec<(Key, Bytes)>, ReadError> {
        self.check_readable(lsn)?;
        let keys = self.keys(range, lsn).await?;
        let mut found = Vec::new();
        for batch in keys.chunks(SCAN_BATCH_KEYS) {
            let values = self.get_many(batch, lsn).await?;
            found.extend(
                batch
                    .iter()
                    .zip(values)
                    .filter_map(|(key, value)| Some((*key, value?))),
            );
        }
        Ok(found)
    }
}
