//! Blocks and open files of all layers of the process, as many as there is room for.
//!
//! A block in the cache has been read, checked and unpacked. A hit, or a miss whose bytes are in the
//! operating system's page cache, is answered in the calling thread; only a read from the disk
//! itself goes to a thread that may block.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rustix::io::ReadWriteFlags;
use utils::blocking;

use super::LayerError;
use super::block::Block;
use super::file::Layer;
use super::format::{self, BlockPointer};

/// Bytes between two blocks that are read with them rather than left out: an index block, mostly.
const GAP_BYTES_MAX: u64 = 16 * 1024;
/// Bytes read at once, unless a single block is larger.
const PIECE_BYTES_MAX: u64 = 512 * 1024;

/// Number of a layer in this process and offset of a block in it.
type BlockKey = (u64, u64);

#[derive(Clone, Debug)]
struct ByMemory;

impl Weighter<BlockKey, Block> for ByMemory {
    fn weight(&self, _key: &BlockKey, block: &Block) -> u64 {
        block.memory_bytes() as u64
    }
}

/// See the module head.
#[derive(Debug)]
pub struct PageCache {
    blocks: Cache<BlockKey, Block, ByMemory>,
    files: Cache<u64, Arc<File>>,
}

impl PageCache {
    /// Room for `block_bytes` of blocks and for `files` open files.
    pub fn new(block_bytes: u64, files: usize) -> Self {
        let blocks = (block_bytes / 8192).max(16) as usize;
        PageCache {
            blocks: Cache::with_weighter(blocks, block_bytes, ByMemory),
            files: Cache::new(files.max(1)),
        }
    }

    /// Memory the blocks take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks.weight()
    }

    /// The block of `layer` at `pointer`, whose keys have `key_len` bytes.
    pub async fn block(&self, layer: &Layer, pointer: BlockPointer) -> Result<Block, LayerError> {
        let key = (layer.number(), pointer.offset);
        if let Some(block) = self.blocks.get(&key) {
            return Ok(block);
        }
        let raw = self.read(layer, pointer.offset, pointer.len as usize).await?;
        let block = decode(layer, pointer.offset, raw.into())?;
        self.blocks.insert(key, block.clone());
        Ok(block)
    }

    /// Blocks of `layer`, ascending by offset, past the cache: what lies together is read at once.
    pub async fn blocks_past_cache(
        &self,
        layer: &Layer,
        pointers: &[BlockPointer],
    ) -> Result<Vec<Block>, LayerError> {
        let mut blocks = Vec::with_capacity(pointers.len());
        for piece in pieces(pointers) {
            let start = piece[0].offset;
            let end = piece.last().map_or(start, |last| last.end());
            let raw = Bytes::from(self.read(layer, start, (end - start) as usize).await?);
            for pointer in piece {
                let at = (pointer.offset - start) as usize;
                let stored = raw.slice(at..at + pointer.len as usize);
                blocks.push(decode(layer, pointer.offset, stored)?);
            }
        }
        Ok(blocks)
    }

    /// `len` bytes of the layer's file from `offset` on.
    pub async fn read(&self, layer: &Layer, offset: u64, len: usize) -> Result<Vec<u8>, LayerError> {
        if offset
            .checked_add(len as u64)
            .is_none_or(|end| end > layer.file_len())
        {
            return Err(layer.damaged(offset, format!("{len} bytes here lie behind the end of the file")));
        }
        let file = self.file(layer).await?;
        let mut raw = vec![0; len];
        let mut buffers = [IoSliceMut::new(&mut raw)];
        // Fails when the bytes would have to come from the disk, and where the file system cannot tell.
        match rustix::io::preadv2(&file, &mut buffers, offset, ReadWriteFlags::NOWAIT) {
            Ok(read) if read == len => return Ok(raw),
            _ => {}
        }
        blocking::run(move || file.read_exact_at(&mut raw, offset).map(|()| raw))
            .await
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    layer.damaged(offset, "the file ends too early".to_owned())
                }
                _ => LayerError::io("read", layer.path())(error),
            })
    }

    async fn file(&self, layer: &Layer) -> Result<Arc<File>, LayerError> {
        if let Some(file) = self.files.get(&layer.number()) {
            return Ok(file);
        }
        // While it is pinned the file is not evicted; it is once the cache has it that it may go.
        let _pin = layer.pin().await?;
        let file = match open(layer).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && layer.residence().lost() => {
                let _pin = layer.pin().await?;
                open(layer).await
            }
            opened => opened,
        };
        let file = Arc::new(file.map_err(LayerError::io("open", layer.path()))?);
        self.files.insert(layer.number(), Arc::clone(&file));
        Ok(file)
    }

    /// Forgets a layer's open file; its blocks leave as others come.
    pub fn forget(&self, layer_number: u64) {
        self.files.remove(&layer_number);
    }
}

/// Cuts where others lie between, and where too much would be read at once.
fn pieces(mut pointers: &[BlockPointer]) -> impl Iterator<Item = &[BlockPointer]> {
    std::iter::from_fn(move || {
        let first = pointers.first()?;
        let adjoin = |pair: &[BlockPointer]| {
            let (gap, end) = (pair[1].offset.checked_sub(pair[0].end()), pair[1].end());
            gap.is_some_and(|gap| gap <= GAP_BYTES_MAX) && end - first.offset <= PIECE_BYTES_MAX
        };
        let len = 1 + pointers.windows(2).take_while(|pair| adjoin(pair)).count();
        let (piece, rest) = pointers.split_at(len);
        pointers = rest;
        Some(piece)
    })
}

async fn open(layer: &Layer) -> std::io::Result<File> {
    let path = layer.path().to_owned();
    blocking::run(move || File::open(path)).await
}

/// Checks and unpacks the block read from `offset`.
pub fn decode(layer: &Layer, offset: u64, raw: Bytes) -> Result<Block, LayerError> {
    format::decode_block(raw, offset)
        .and_then(|(level, payload)| Block::new(level, layer.key_len(), payload))
        .map_err(|reason| layer.damaged(offset, reason))
}
