//! A layer on disk: finding versions and keys in it.

use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use pageserver_api::key::Key;
use pageserver_api::layer_name::LayerFileName;
use pageserver_api::value::Value;
use tokio::sync::OnceCell;
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

use super::LayerError;
use super::access::{AccessKind, ResidenceEvent};
use super::block::Block;
use super::cache::{self, PageCache};
use super::format::{self, BLOCK_HEADER_LEN, BLOCK_LEN_MAX, BlockPointer, SUMMARY_LEN, Summary};
use super::read_state::ReadState;
use super::residence::{Pin, Residence};
use super::writer::{DELTA_KEY_LEN, IMAGE_KEY_LEN, delta_key, split_delta_key};

/// Deepest index there can be: every level divides by more than a hundred.
const LEVELS_MAX: u8 = 16;
/// Buffer of a scan, in bytes.
const SCAN_BUFFER_BYTES: usize = 1024 * 1024;

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// An immutable layer file. Removed when it is doomed and nobody reads it any more.
#[derive(Debug)]
pub struct Layer {
    number: u64,
    id: TenantTimelineId,
    residence: Arc<Residence>,
    cache: Arc<PageCache>,
    summary: OnceCell<Summary>,
    doomed: AtomicBool,
}

impl Layer {
    /// A layer of the timeline `id`. Nothing is read yet.
    pub fn new(cache: &Arc<PageCache>, id: TenantTimelineId, residence: Arc<Residence>) -> Arc<Self> {
        Arc::new(Layer {
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            id,
            residence,
            cache: Arc::clone(cache),
            summary: OnceCell::new(),
            doomed: AtomicBool::new(false),
        })
    }

    /// A layer of a timeline that has no remote half: the file `name` in `dir`, of `file_len` bytes.
    pub fn local(
        cache: &Arc<PageCache>,
        dir: &Path,
        id: TenantTimelineId,
        (name, file_len): (LayerFileName, u64),
    ) -> Arc<Self> {
        let path = dir.join(name.to_string());
        let residence = Residence::new((name, file_len), path, None, ResidenceEvent::Loaded);
        Layer::new(cache, id, residence)
    }

    /// Number of this layer, unique in the process.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its name.
    pub fn name(&self) -> &LayerFileName {
        self.residence.name()
    }

    /// Where the file is when it is on the local disk.
    pub fn path(&self) -> &Path {
        self.residence.path()
    }

    /// Its length in bytes.
    pub fn file_len(&self) -> u64 {
        self.residence.file_len()
    }

    /// Where the file is, and who had use of it.
    pub fn residence(&self) -> &Arc<Residence> {
        &self.residence
    }

    /// Makes sure that the file is on the local disk, and stays while the result is held.
    pub async fn pin(&self) -> Result<Pin, LayerError> {
        self.residence.pin().await
    }

    /// Removes the file from the local disk, unless it is in use or nowhere else. Blocking.
    ///
    /// Returns whether it was removed.
    pub fn evict(&self) -> Result<bool, LayerError> {
        let evicted = self.residence.evict()?;
        if evicted {
            self.cache.forget(self.number);
        }
        Ok(evicted)
    }

    /// Memory that the blocks of all layers take which share this one's cache, in bytes.
    #[cfg(test)]
    pub(super) fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Length of the keys in its blocks.
    pub fn key_len(&self) -> usize {
        if self.name().is_delta() {
            DELTA_KEY_LEN
        } else {
            IMAGE_KEY_LEN
        }
    }

    /// Lets the file be removed once the last reader is gone.
    pub fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    /// The error that something in this file is wrong.
    pub fn damaged(&self, offset: u64, reason: String) -> LayerError {
        LayerError::Damaged {
            path: self.path().to_owned(),
            offset,
            reason,
        }
    }

    fn check_summary(&self, raw: &[u8]) -> Result<Summary, LayerError> {
        let raw = raw.first_chunk::<SUMMARY_LEN>();
        let raw = raw.ok_or_else(|| self.damaged(0, "the file is shorter than its summary".to_owned()))?;
        let found = Summary::decode(raw).map_err(|reason| self.damaged(0, reason))?;
        let same = found.id == self.id && found.name == *self.name() && found.file_len == self.file_len();
        if !same || found.root_level == 0 || found.root_level > LEVELS_MAX {
            let reason = format!(
                "in-file summary does not match expected summary. found {found:?}, expected {} of {}, {} bytes",
                self.name(),
                self.id,
                self.file_len()
            );
            return Err(self.damaged(0, reason));
        }
        Ok(found)
    }

    async fn summary(&self) -> Result<&Summary, LayerError> {
        if let Some(summary) = self.summary.get() {
            return Ok(summary);
        }
        self.summary
            .get_or_try_init(|| self.or_healed(|| self.read_summary()))
            .await
    }

    /// Number of different keys, if the file says so and is here. One that cannot be read is for its readers to complain of.
    pub async fn key_count(&self) -> Option<u64> {
        if !self.residence.is_local() {
            return None;
        }
        let count = self.summary().await.ok()?.key_count;
        (count > 0).then_some(count)
    }

    async fn read_summary(&self) -> Result<Summary, LayerError> {
        let raw = self.cache.read(self, 0, SUMMARY_LEN).await?;
        self.check_summary(&raw)
    }

    async fn block(&self, pointer: BlockPointer, level: u8) -> Result<Block, LayerError> {
        self.or_healed(|| self.read_block(pointer, level)).await
    }

    /// What `read` finds; if that is damage, what it finds once the file was fetched again.
    async fn or_healed<T, F: Future<Output = Result<T, LayerError>>>(
        &self,
        read: impl Fn() -> F,
    ) -> Result<T, LayerError> {
        let began = Instant::now();
        match read().await {
            Err(LayerError::Damaged { .. }) if self.heal(began).await => read().await,
            result => result,
        }
    }

    /// Replaces the file, in which damage was read since `read_at`, by its copy in object storage. Returns whether that
    /// could be done: not without a copy, and not if it was done a moment ago.
    pub async fn heal(&self, read_at: Instant) -> bool {
        let is_replaced = self.residence.refetch(read_at).await;
        if is_replaced {
            self.cache.forget(self.number);
        }
        is_replaced
    }

    /// Blocks of data, ascending by offset, past the cache.
    pub(super) async fn data_past_cache(&self, pointers: &[BlockPointer]) -> Result<Vec<Block>, LayerError> {
        let blocks = self.cache.blocks_past_cache(self, pointers).await?;
        for (block, pointer) in blocks.iter().zip(pointers) {
            self.check_level(block, pointer.offset, 0)?;
        }
        Ok(blocks)
    }

    async fn read_block(&self, pointer: BlockPointer, level: u8) -> Result<Block, LayerError> {
        let block = self.cache.block(self, pointer).await?;
        self.check_level(&block, pointer.offset, level)?;
        Ok(block)
    }

    fn check_level(&self, block: &Block, offset: u64, level: u8) -> Result<(), LayerError> {
        if block.level() != level {
            let reason = format!("found a block of level {} instead of {level}", block.level());
            return Err(self.damaged(offset, reason));
        }
        Ok(())
    }

    fn child(&self, parent: BlockPointer, block: &Block, at: usize) -> Result<BlockPointer, LayerError> {
        BlockPointer::decode(block.value_ref(at))
            .ok_or_else(|| self.damaged(parent.offset, "an index entry has a wrong length".to_owned()))
    }

    /// The data block with the greatest key below `bound`, and the number of keys in it below `bound`.
    async fn find_below(&self, bound: &[u8]) -> Result<Option<(Block, usize)>, LayerError> {
        let summary = self.summary().await?;
        let mut pointer = summary.root;
        for level in (0..=summary.root_level).rev() {
            let block = self.block(pointer, level).await?;
            let below = block.count_below(bound);
            if below == 0 {
                return Ok(None);
            }
            if level == 0 {
                return Ok(Some((block, below)));
            }
            pointer = self.child(pointer, &block, below - 1)?;
        }
        unreachable!("the last level is 0")
    }

    /// Gives the versions of `state.key` from `floor` on and below `state.upper`, newest first, until it has
    /// enough. After it, everything from `floor` on has been found.
    pub async fn collect(&self, state: &mut ReadState, floor: Lsn) -> Result<(), LayerError> {
        self.note_reads(1);
        match self.name() {
            LayerFileName::Delta { .. } => self.collect_deltas(state, floor).await,
            LayerFileName::Image { lsn, .. } => self.collect_image(state, *lsn).await,
        }
    }

    /// Notes that versions of so many keys were wanted.
    pub(super) fn note_reads(&self, keys: usize) {
        self.residence
            .access
            .note_many(AccessKind::Reconstruct, keys as u64);
    }

    async fn collect_image(&self, state: &mut ReadState, lsn: Lsn) -> Result<(), LayerError> {
        let bound = state.key.next().to_bytes();
        let found = self.find_below(&bound).await?;
        Self::take_image(
            state,
            lsn,
            found.as_ref().map(|(block, below)| (block, below - 1)),
        );
        Ok(())
    }

    /// Gives `state` the value in an image layer at `lsn`: number so-and-so of a block, if that has its key.
    pub(super) fn take_image(state: &mut ReadState, lsn: Lsn, candidate: Option<(&Block, usize)>) {
        if let Some((block, at)) = candidate {
            let mut key = [0; IMAGE_KEY_LEN];
            block.key_into(at, &mut key);
            if Key::from_bytes(&key) == state.key {
                state.add(lsn, Value::Image(block.value(at)));
            }
        }
        // What the image layer does not hold does not exist at its LSN.
        state.complete = true;
    }

    async fn collect_deltas(&self, state: &mut ReadState, floor: Lsn) -> Result<(), LayerError> {
        let start = delta_key(state.key, floor);
        let mut bound = delta_key(state.key, state.upper);
        while let Some((block, below)) = self.find_below(&bound).await? {
            let first = block.count_below(&start);
            if self.add_block(state, &block, first..below)? {
                return Ok(());
            }
            if first > 0 {
                break;
            }
            // The first key of the block was one of ours: older versions may be in the block before.
            block.key_into(0, &mut bound);
        }
        state.upper = floor;
        Ok(())
    }

    /// Gives `state` versions of its key in one of our blocks; see [`ReadState::add_block`].
    pub(super) fn add_block(
        &self,
        state: &mut ReadState,
        block: &Block,
        versions: Range<usize>,
    ) -> Result<bool, LayerError> {
        state.add_block(block, versions).map_err(|error| {
            // The checksum was right: the file was written so.
            self.damaged(0, format!("key {}: {error}", state.key))
        })
    }

    /// Adds to `keys` those of `range` that have a version at an LSN below `upper`.
    pub async fn keys(&self, range: &Range<Key>, upper: Lsn, keys: &mut Vec<Key>) -> Result<(), LayerError> {
        self.residence.access.note(AccessKind::KeyIter);
        let start = delta_key(range.start, Lsn(0));
        let end = delta_key(range.end, Lsn(0));
        let (start, end) = (&start[..self.key_len()], &end[..self.key_len()]);
        let mut raw = [0; DELTA_KEY_LEN];
        let pointers = self.data_blocks(start, end, usize::MAX).await?;
        for pointer in pointers.expect("no number of blocks is too large") {
            let block = self.block(pointer, 0).await?;
            for at in block.count_below(start)..block.count_below(end) {
                block.key_into(at, &mut raw[..self.key_len()]);
                let (key, lsn) = split_delta_key(&raw);
                // In an image layer the LSN stays 0, and all keys count.
                if lsn < upper && keys.last() != Some(&key) {
                    keys.push(key);
                }
            }
        }
        Ok(())
    }

    /// The data blocks that may hold keys of `start..end`, in order; `None` if they are more than `count_max`.
    pub(super) async fn data_blocks(
        &self,
        start: &[u8],
        end: &[u8],
        count_max: usize,
    ) -> Result<Option<Vec<BlockPointer>>, LayerError> {
        let summary = self.summary().await?;
        let mut pointers = vec![summary.root];
        for level in (1..=summary.root_level).rev() {
            let mut below = Vec::new();
            for pointer in pointers {
                let block = self.block(pointer, level).await?;
                // The child before the first key at or above `start` may reach into the range.
                let first = block.count_below(start).saturating_sub(1);
                for at in first..block.count_below(end) {
                    below.push(self.child(pointer, &block, at)?);
                }
                if below.len() > count_max {
                    return Ok(None);
                }
            }
            pointers = below;
        }
        Ok(Some(pointers))
    }

    /// All values from the start of the file on, past the cache. Blocking; the caller has pinned the layer.
    pub fn scan(self: &Arc<Self>) -> Result<LayerScan, LayerError> {
        self.residence.access.note(AccessKind::Iter);
        let file = File::open(self.path()).map_err(LayerError::io("open", self.path()))?;
        let mut file = BufReader::with_capacity(SCAN_BUFFER_BYTES, file);
        let mut raw = [0; SUMMARY_LEN];
        file.read_exact(&mut raw)
            .map_err(LayerError::io("read", self.path()))?;
        let summary = self.check_summary(&raw)?;
        Ok(LayerScan {
            layer: Arc::clone(self),
            file,
            offset: SUMMARY_LEN as u64,
            block: None,
            values_left: summary.value_count,
        })
    }
}

impl Layer {
    /// Reads the whole file and checks every block of it. Blocking; the caller has pinned the layer.
    pub fn scrub(self: &Arc<Self>) -> Result<(), LayerError> {
        let mut scan = self.scan()?;
        let announced = scan.values_left;
        let mut found = 0;
        while scan.offset < self.file_len() {
            let block = scan.read_block()?;
            if block.level() == 0 {
                found += block.key_count() as u64;
            }
        }
        if found != announced {
            return Err(self.damaged(0, format!("found {found} values instead of {announced}")));
        }
        Ok(())
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        self.cache.forget(self.number);
        if !*self.doomed.get_mut() || !self.residence.is_local() {
            return;
        }
        match std::fs::remove_file(self.path()) {
            // Gone with its whole timeline.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                // It is found again at the next start, when it does no harm: see the module head of `layers`.
                tracing::warn!(path = %self.path().display(), "cannot remove layer file: {error}");
            }
            Ok(()) => {}
        }
    }
}

/// One value of a layer: key, LSN (that of the layer in an image layer), value as stored.
pub type ScannedValue = (Key, Lsn, Bytes);

/// Reads a layer file from start to end.
#[derive(Debug)]
pub struct LayerScan {
    layer: Arc<Layer>,
    file: BufReader<File>,
    offset: u64,
    block: Option<(Block, usize)>,
    values_left: u64,
}

impl LayerScan {
    /// The next block, of any level.
    fn read_block(&mut self) -> Result<Block, LayerError> {
        let (layer, at) = (&self.layer, self.offset);
        let mut raw = vec![0; BLOCK_HEADER_LEN];
        self.file
            .read_exact(&mut raw)
            .map_err(LayerError::io("read", layer.path()))?;
        let header = raw.first_chunk().expect("the buffer has that length");
        let len = format::stored_len(header);
        let left = layer.file_len().saturating_sub(at) as usize;
        if len > BLOCK_LEN_MAX || len > left {
            return Err(layer.damaged(at, format!("block claims {len} bytes")));
        }
        raw.resize(BLOCK_HEADER_LEN + len, 0);
        self.file
            .read_exact(&mut raw[BLOCK_HEADER_LEN..])
            .map_err(LayerError::io("read", layer.path()))?;
        self.offset += raw.len() as u64;
        cache::decode(layer, at, raw.into())
    }

    fn next_block(&mut self) -> Result<Block, LayerError> {
        loop {
            let block = self.read_block()?;
            if block.level() == 0 {
                return Ok(block);
            }
        }
    }

    fn next_value(&mut self) -> Result<ScannedValue, LayerError> {
        let (block, at) = match self.block.take() {
            Some(current) => current,
            None => (self.next_block()?, 0),
        };
        let mut raw = [0; DELTA_KEY_LEN];
        block.key_into(at, &mut raw[..self.layer.key_len()]);
        let (key, mut lsn) = split_delta_key(&raw);
        if let LayerFileName::Image { lsn: of_image, .. } = self.layer.name() {
            lsn = *of_image;
        }
        let value = block.value(at);
        if at + 1 < block.key_count() {
            self.block = Some((block, at + 1));
        }
        Ok((key, lsn, value))
    }
}

impl Iterator for LayerScan {
    type Item = Result<ScannedValue, LayerError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.values_left = self.values_left.checked_sub(1)?;
        Some(self.next_value())
    }
}
