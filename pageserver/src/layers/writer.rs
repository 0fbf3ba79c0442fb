//! Writes a layer file: under a temporary name, fsynced, renamed. Blocking.
//!
//! A writer that is dropped before it is finished removes its temporary file.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use pageserver_api::key::Key;
use pageserver_api::layer_name::LayerFileName;
use pageserver_api::value::Value;
use utils::crashsafe::TEMP_SUFFIX;
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

use super::LayerError;
use super::block::BlockBuilder;
use super::format::{BlockPointer, Compression, SUMMARY_LEN, Summary, encode_block};

/// Payload size at which a block is written, in bytes: one page of PostgreSQL.
const BLOCK_TARGET_BYTES: usize = 8192;
/// Buffer in front of the file, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;
/// Length of a key in an image layer.
pub const IMAGE_KEY_LEN: usize = Key::LEN;
/// Length of a key with its LSN in a delta layer.
pub const DELTA_KEY_LEN: usize = Key::LEN + 8;

/// Key and LSN as they are sorted in a delta layer.
pub fn delta_key(key: Key, lsn: Lsn) -> [u8; DELTA_KEY_LEN] {
    let mut raw = [0; DELTA_KEY_LEN];
    raw[..Key::LEN].copy_from_slice(&key.to_bytes());
    raw[Key::LEN..].copy_from_slice(&lsn.0.to_be_bytes());
    raw
}

/// The inverse of [`delta_key`].
pub fn split_delta_key(raw: &[u8; DELTA_KEY_LEN]) -> (Key, Lsn) {
    let (key, lsn) = raw.split_first_chunk().expect("the key is the first part");
    let lsn: [u8; 8] = lsn.try_into().expect("the LSN is the rest");
    (Key::from_bytes(key), Lsn(u64::from_be_bytes(lsn)))
}

/// A layer file that is complete and durable but for its directory, which the caller fsyncs.
#[derive(Debug)]
pub struct WrittenLayer {
    /// Its name.
    pub name: LayerFileName,
    /// Its length in bytes.
    pub file_len: u64,
}

/// Files of one piece of work, which go if it is not completed: nothing names them yet.
#[derive(Debug)]
pub struct NewFiles {
    dir: PathBuf,
    files: Vec<WrittenLayer>,
}

impl NewFiles {
    /// None yet, of a timeline whose files are in `dir`.
    pub fn new(dir: &Path) -> Self {
        NewFiles {
            dir: dir.to_owned(),
            files: Vec::new(),
        }
    }

    /// One more.
    pub fn push(&mut self, file: WrittenLayer) {
        self.files.push(file);
    }

    /// The work is complete: they stay.
    pub fn take(mut self) -> Vec<WrittenLayer> {
        std::mem::take(&mut self.files)
    }
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        for file in &self.files {
            let path = self.dir.join(file.name.to_string());
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), "cannot remove a layer file that is not needed: {error}");
            }
        }
    }
}

/// Blocks of one file as they become full, from the data up to the root.
#[derive(Debug)]
struct TreeWriter {
    file: BufWriter<File>,
    path: PathBuf,
    offset: u64,
    key_len: usize,
    compression: Compression,
    /// The block being filled at each level.
    levels: Vec<BlockBuilder>,
    value_count: u64,
    finished: bool,
}

impl TreeWriter {
    fn create(path: PathBuf, key_len: usize, compression: Compression) -> Result<Self, LayerError> {
        let file = File::create_new(&path).map_err(LayerError::io("create", &path))?;
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
        let reserved = file.write_all(&[0; SUMMARY_LEN]);
        let writer = TreeWriter {
            file,
            path,
            offset: SUMMARY_LEN as u64,
            key_len,
            compression,
            levels: vec![BlockBuilder::new(key_len)],
            value_count: 0,
            finished: false,
        };
        reserved.map_err(LayerError::io("write", &writer.path))?;
        Ok(writer)
    }

    fn add(&mut self, key: &[u8], write: impl FnOnce(&mut Vec<u8>)) -> Result<(), LayerError> {
        self.value_count += 1;
        let data = &mut self.levels[0];
        data.add(key, write);
        if data.len() >= BLOCK_TARGET_BYTES || data.is_full() {
            self.emit(0)?;
        }
        Ok(())
    }

    /// Writes the block of `level`; returns its first key and place.
    fn write_block(&mut self, level: usize) -> Result<(Vec<u8>, BlockPointer), LayerError> {
        let first_key = self.levels[level].first_key().to_vec();
        let payload = self.levels[level].finish();
        let stored = encode_block(&payload, level as u8, self.offset, self.compression);
        self.file
            .write_all(&stored)
            .map_err(LayerError::io("write", &self.path))?;
        let pointer = BlockPointer {
            offset: self.offset,
            len: stored.len() as u32,
        };
        self.offset += stored.len() as u64;
        Ok((first_key, pointer))
    }

    /// Writes the block of `level` and enters it in the level above, and so on while those are full.
    fn emit(&mut self, level: usize) -> Result<(), LayerError> {
        let (first_key, pointer) = self.write_block(level)?;
        if self.levels.len() == level + 1 {
            self.levels.push(BlockBuilder::new(self.key_len));
        }
        let above = &mut self.levels[level + 1];
        above.add(&first_key, |out| out.extend_from_slice(&pointer.encode()));
        if above.len() >= BLOCK_TARGET_BYTES || above.is_full() {
            self.emit(level + 1)?;
        }
        Ok(())
    }

    /// Writes what is left of all levels. The topmost one, which always has an entry, is the root.
    fn finish_tree(&mut self) -> Result<(BlockPointer, u8), LayerError> {
        assert!(self.value_count > 0, "empty layers are not written");
        let mut level = 0;
        while level + 1 < self.levels.len() || level == 0 {
            if !self.levels[level].is_empty() {
                self.emit(level)?;
            }
            level += 1;
        }
        let (_, root) = self.write_block(level)?;
        Ok((root, level as u8))
    }

    /// Completes the file and gives it its final name.
    fn finish(
        mut self,
        dir: &Path,
        id: TenantTimelineId,
        (name, key_count): (LayerFileName, u64),
    ) -> Result<WrittenLayer, LayerError> {
        let (root, root_level) = self.finish_tree()?;
        let summary = Summary {
            id,
            name,
            root,
            root_level,
            value_count: self.value_count,
            file_len: self.offset,
            key_count,
        };
        self.sync(&summary).map_err(LayerError::io("write", &self.path))?;
        let path = dir.join(summary.name.to_string());
        std::fs::rename(&self.path, &path).map_err(LayerError::io("rename", &self.path))?;
        self.finished = true;
        Ok(WrittenLayer {
            name: summary.name,
            file_len: self.offset,
        })
    }

    fn sync(&mut self, summary: &Summary) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&summary.encode())?;
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }
}

impl Drop for TreeWriter {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), "cannot remove temporary layer file: {error}");
        }
    }
}

/// Eight characters that no other writer of this process or an earlier one uses.
fn temp_path(dir: &Path, stem: &str) -> PathBuf {
    let unique: u32 = rand::random();
    dir.join(format!("{stem}.{unique:08x}{TEMP_SUFFIX}"))
}

/// Writes a delta layer.
#[derive(Debug)]
pub struct DeltaLayerWriter {
    tree: TreeWriter,
    dir: PathBuf,
    id: TenantTimelineId,
    lsn_range: Range<Lsn>,
    encoded: Vec<u8>,
    last_key: Option<Key>,
    key_count: u64,
}

impl DeltaLayerWriter {
    /// A layer of the timeline `id`, whose files are in `dir`, that starts at `key_start`.
    pub fn create(
        dir: &Path,
        id: TenantTimelineId,
        key_start: Key,
        lsn_range: Range<Lsn>,
    ) -> Result<Self, LayerError> {
        let lsns = format!("{:016X}-{:016X}", lsn_range.start.0, lsn_range.end.0);
        let temp = temp_path(dir, &format!("{key_start}-XXX__{lsns}"));
        Ok(DeltaLayerWriter {
            tree: TreeWriter::create(temp, DELTA_KEY_LEN, Compression::Off)?,
            dir: dir.to_owned(),
            id,
            lsn_range,
            encoded: Vec::new(),
            last_key: None,
            key_count: 0,
        })
    }

    /// Adds a version; keys ascend, and LSNs within a key.
    pub fn add(&mut self, key: Key, lsn: Lsn, value: &Value) -> Result<(), LayerError> {
        self.encoded.clear();
        value.encode(&mut self.encoded);
        let encoded = std::mem::take(&mut self.encoded);
        self.add_encoded(key, lsn, &encoded)?;
        self.encoded = encoded;
        Ok(())
    }

    /// Adds a version in its binary form.
    pub fn add_encoded(&mut self, key: Key, lsn: Lsn, value: &[u8]) -> Result<(), LayerError> {
        assert!(
            self.lsn_range.contains(&lsn),
            "{lsn} of {key} is not in {:?}",
            self.lsn_range
        );
        if self.last_key.replace(key) != Some(key) {
            self.key_count += 1;
        }
        let key = delta_key(key, lsn);
        self.tree.add(&key, |out| out.extend_from_slice(value))
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.tree.offset
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.tree.value_count == 0
    }

    /// What the layer is called if it covers the keys `key_range`.
    pub fn name(&self, key_range: Range<Key>) -> LayerFileName {
        let lsn_range = self.lsn_range.clone();
        LayerFileName::Delta { key_range, lsn_range }
    }

    /// Completes the layer, which covers the keys `key_range`.
    pub fn finish(self, key_range: Range<Key>) -> Result<WrittenLayer, LayerError> {
        fail::fail_point!("delta-layer-writer-fail-before-finish", |_| {
            Err(LayerError::Failpoint("delta-layer-writer-fail-before-finish"))
        });
        let name = self.name(key_range);
        self.tree.finish(&self.dir, self.id, (name, self.key_count))
    }
}

/// Writes an image layer.
#[derive(Debug)]
pub struct ImageLayerWriter {
    tree: TreeWriter,
    dir: PathBuf,
    id: TenantTimelineId,
    lsn: Lsn,
}

impl ImageLayerWriter {
    /// A layer at `lsn` of the timeline `id`, whose files are in `dir`, that starts at `key_start`.
    pub fn create(dir: &Path, id: TenantTimelineId, key_start: Key, lsn: Lsn) -> Result<Self, LayerError> {
        let temp = temp_path(dir, &format!("{key_start}-XXX__{:016X}", lsn.0));
        Ok(ImageLayerWriter {
            tree: TreeWriter::create(temp, IMAGE_KEY_LEN, Compression::Lz4)?,
            dir: dir.to_owned(),
            id,
            lsn,
        })
    }

    /// Adds the value of a key; keys ascend.
    pub fn add(&mut self, key: Key, value: &[u8]) -> Result<(), LayerError> {
        self.tree.add(&key.to_bytes(), |out| out.extend_from_slice(value))
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.tree.offset
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.tree.value_count == 0
    }

    /// Completes the layer, which has the values of all keys that exist in `key_range`.
    pub fn finish(self, key_range: Range<Key>) -> Result<WrittenLayer, LayerError> {
        fail::fail_point!("image-layer-writer-fail-before-finish", |_| {
            Err(LayerError::Failpoint("image-layer-writer-fail-before-finish"))
        });
        let name = LayerFileName::Image {
            key_range,
            lsn: self.lsn,
        };
        let key_count = self.tree.value_count;
        self.tree.finish(&self.dir, self.id, (name, key_count))
    }
}
