//! Reading neighbouring keys of a layer together, as scans ask for them.
//!
//! A layer is sorted by key, so all that neighbours need of it lies in one stretch of the file. That is read
//! at once, and past the cache of blocks: a scan comes to each block once, and would only drive out what others need.
//! Where the stretch is long, because one of the keys has many versions, and where something in it is damaged,
//! each key is read alone, so that it suffers only from its own.

use pageserver_api::layer_name::LayerFileName;
use utils::lsn::Lsn;

use super::LayerError;
use super::block::Block;
use super::file::Layer;
use super::read_state::ReadState;
use super::writer::delta_key;

/// Keys read together at most; what they need stays in the processor's cache.
pub const RUN_KEYS_MAX: usize = 16;
/// Fewer are read alone.
const RUN_KEYS_MIN: usize = 3;
/// Blocks read together at most, for each key.
const BLOCKS_PER_KEY_MAX: usize = 4;

/// A key, and what is wanted of it.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The key, and where its way down has come to.
    pub state: &'a mut ReadState,
    /// The lowest LSN at which versions are wanted.
    pub floor: Lsn,
}

impl Layer {
    /// As [`Layer::collect`], for several keys, ascending, which should be neighbours.
    pub async fn collect_run(&self, run: &mut [Wanted<'_>]) -> Result<(), LayerError> {
        assert!(run.is_sorted_by(|a, b| a.state.key < b.state.key));
        let Some(blocks) = self.blocks_of_run(run).await? else {
            for wanted in run {
                self.collect(wanted.state, wanted.floor).await?;
            }
            return Ok(());
        };
        self.note_reads(run.len());
        match self.name() {
            LayerFileName::Delta { .. } => self.deltas_of_run(run, &blocks),
            LayerFileName::Image { lsn, .. } => {
                images_of_run(run, &blocks, *lsn);
                Ok(())
            }
        }
    }

    /// All blocks that may hold something of the keys; `None` if they are better read alone.
    async fn blocks_of_run(&self, run: &[Wanted<'_>]) -> Result<Option<Vec<Block>>, LayerError> {
        let [first, .., last] = run else {
            return Ok(None);
        };
        if run.len() < RUN_KEYS_MIN {
            return Ok(None);
        }
        let (start, end) = match self.name() {
            LayerFileName::Delta { .. } => (
                delta_key(first.state.key, first.floor),
                delta_key(last.state.key, last.state.upper),
            ),
            LayerFileName::Image { .. } => (
                delta_key(first.state.key, Lsn(0)),
                delta_key(last.state.key.next(), Lsn(0)),
            ),
        };
        let (start, end) = (&start[..self.key_len()], &end[..self.key_len()]);
        let Some(pointers) = self
            .data_blocks(start, end, run.len() * BLOCKS_PER_KEY_MAX)
            .await?
        else {
            return Ok(None);
        };
        match self.data_past_cache(&pointers).await {
            Ok(blocks) => Ok(Some(blocks)),
            Err(LayerError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn deltas_of_run(&self, run: &mut [Wanted<'_>], blocks: &[Block]) -> Result<(), LayerError> {
        let mut reach = Reach { blocks, count: 0 };
        for Wanted { state, floor } in run {
            let (start, bound) = (delta_key(state.key, *floor), delta_key(state.key, state.upper));
            for block in reach.up_to(&bound).iter().rev() {
                let first = block.count_below(&start);
                if self.add_block(state, block, first..block.count_below(&bound))? || first > 0 {
                    break;
                }
            }
            if !state.complete {
                state.upper = *floor;
            }
        }
        Ok(())
    }
}

fn images_of_run(run: &mut [Wanted<'_>], blocks: &[Block], lsn: Lsn) {
    let mut reach = Reach { blocks, count: 0 };
    for Wanted { state, .. } in run {
        let bound = state.key.next().to_bytes();
        let last = reach.up_to(&bound).last();
        Layer::take_image(
            state,
            lsn,
            last.map(|block| (block, block.count_below(&bound) - 1)),
        );
    }
}

/// The blocks that begin below some bound, which only rises.
struct Reach<'a> {
    blocks: &'a [Block],
    count: usize,
}

impl<'a> Reach<'a> {
    fn up_to(&mut self, bound: &[u8]) -> &'a [Block] {
        let further = &self.blocks[self.count..];
        self.count += further
            .iter()
            .take_while(|block| block.starts_below(bound))
            .count();
        &self.blocks[..self.count]
    }
}

#[cfg(test)]
mod tests;
