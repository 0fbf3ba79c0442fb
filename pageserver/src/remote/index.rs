//! `index_part.json` (storage formats, section 6.1): what a timeline consists of in object storage.
//!
//! It is the commit point of uploads: only layers that it names exist, whatever objects lie beside it.
//! Beyond the documented fields, which are all that other programs need, ours has two: `deleted_at`, which marks
//! a timeline whose removal has begun, and `checksum`, which covers all fields, so that no damaged index
//! is believed. Both may be missing.

use std::collections::{BTreeMap, HashMap};

use pageserver_api::layer_name::{LayerFileName, ParseLayerFileNameError};
use serde::{Deserialize, Serialize};
use utils::lsn::Lsn;

use crate::timeline::metadata::{DecodeMetadataError, TimelineMetadata};

/// Name of the object in the timeline's directory.
pub const FILE_NAME: &str = "index_part.json";
/// What is written.
const VERSION: u32 = 1;
/// Longest index that is read, in bytes: some two million layers.
pub const FILE_LEN_MAX: u64 = 512 * 1024 * 1024;

/// A timeline as object storage has it, or is to have it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IndexPart {
    /// All layers, with their lengths in bytes where they are known.
    pub layers: HashMap<LayerFileName, Option<u64>>,
    /// What the metadata file says.
    pub metadata: TimelineMetadata,
    /// When the timeline was deleted, if it was: its objects are about to go.
    pub deleted_at: Option<String>,
}

/// The object is not an index this program can use.
#[derive(Debug, thiserror::Error)]
pub enum DecodeIndexError {
    /// Not the documented JSON.
    #[error("index_part.json is malformed")]
    Json(#[from] serde_json::Error),
    /// A layer has an impossible name.
    #[error("index_part.json names a layer that cannot be")]
    LayerName(#[from] ParseLayerFileNameError),
    /// Written by a newer program.
    #[error("index_part.json has version {0}, this server reads up to {VERSION}")]
    Version(u32),
    /// The metadata inside is damaged.
    #[error("index_part.json holds unusable metadata")]
    Metadata(#[from] DecodeMetadataError),
    /// Its parts do not belong together.
    #[error("index_part.json says {index} is on disk, the metadata inside says {metadata}")]
    Lsn {
        /// In the index.
        index: Lsn,
        /// In the metadata.
        metadata: Lsn,
    },
    /// It was changed after it was written.
    #[error("checksum mismatch in index_part.json: {found:08X} in the file, {computed:08X} computed")]
    Checksum {
        /// In the file.
        found: u32,
        /// Of its fields.
        computed: u32,
    },
}

/// The object as it is written. Absent fields are those of older versions.
#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(default)]
    version: u32,
    timeline_layers: Vec<String>,
    #[serde(default)]
    layer_metadata: BTreeMap<String, LayerMetadata>,
    disk_consistent_lsn: Lsn,
    metadata_bytes: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deleted_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<u32>,
}

#[derive(Default, Serialize, Deserialize)]
struct LayerMetadata {
    #[serde(default)]
    file_size: Option<u64>,
}

impl Document {
    /// Covers all fields but the checksum itself, in their canonical form.
    fn compute_checksum(&self) -> u32 {
        assert!(self.checksum.is_none(), "the checksum does not cover itself");
        crc32c::crc32c(&serde_json::to_vec(self).expect("numbers and texts have a form in JSON"))
    }
}

/// Names that older versions left behind in indexes.
fn is_historical(name: &str) -> bool {
    name.ends_with(".old") || name == "metadata_backup"
}

impl IndexPart {
    /// An index without layers.
    pub fn empty(metadata: TimelineMetadata) -> Self {
        IndexPart {
            layers: HashMap::new(),
            metadata,
            deleted_at: None,
        }
    }

    /// Bytes of all layers whose lengths are known.
    pub fn layer_bytes(&self) -> u64 {
        self.layers.values().flatten().sum()
    }

    /// The object's contents.
    pub fn encode(&self) -> Vec<u8> {
        let named = |(name, file_size): (&LayerFileName, &Option<u64>)| {
            let file_size = *file_size;
            (name.to_string(), LayerMetadata { file_size })
        };
        let layer_metadata: BTreeMap<_, _> = self.layers.iter().map(named).collect();
        let mut document = Document {
            version: VERSION,
            timeline_layers: layer_metadata.keys().cloned().collect(),
            layer_metadata,
            disk_consistent_lsn: self.metadata.disk_consistent_lsn,
            metadata_bytes: self.metadata.encode().to_vec(),
            deleted_at: self.deleted_at.clone(),
            checksum: None,
        };
        document.checksum = Some(document.compute_checksum());
        serde_json::to_vec(&document).expect("numbers and texts have a form in JSON")
    }

    /// The inverse of [`IndexPart::encode`]; reads what older versions wrote, too.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeIndexError> {
        let mut document: Document = serde_json::from_slice(raw)?;
        if document.version > VERSION {
            return Err(DecodeIndexError::Version(document.version));
        }
        if let Some(found) = document.checksum.take() {
            let computed = document.compute_checksum();
            if found != computed {
                return Err(DecodeIndexError::Checksum { found, computed });
            }
        }
        let metadata = TimelineMetadata::decode(&document.metadata_bytes)?;
        if metadata.disk_consistent_lsn != document.disk_consistent_lsn {
            return Err(DecodeIndexError::Lsn {
                index: document.disk_consistent_lsn,
                metadata: metadata.disk_consistent_lsn,
            });
        }
        let mut layers = HashMap::with_capacity(document.timeline_layers.len());
        for text in &document.timeline_layers {
            if is_historical(text) {
                tracing::warn!("got backup file on the remote storage, ignoring it {text}");
                continue;
            }
            let file_size = document
                .layer_metadata
                .get(text)
                .and_then(|layer| layer.file_size);
            layers.insert(text.parse()?, file_size);
        }
        Ok(IndexPart {
            layers,
            metadata,
            deleted_at: document.deleted_at,
        })
    }
}

#[cfg(test)]
mod tests;
