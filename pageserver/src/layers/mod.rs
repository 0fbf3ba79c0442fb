//! Layers: what a timeline's history is made of.
//!
//! A layer covers a rectangle of keys and LSNs. Versions come into an [`in_memory::InMemoryLayer`], which is
//! written out as a delta layer over all keys; compaction rewrites those into delta layers over few
//! keys, and into image layers.
//!
//! Invariants, on which reads rely
//! * A delta layer holds *every* version that its timeline has in the rectangle. So layers may overlap, as after
//!   a crash between writing and removing: whichever is read first, the others have nothing to add.
//! * An image layer at L holds the value as of L of *every* key that exists in its key range, those that are
//!   inherited from an ancestor too. What it does not hold does not exist at L.
//! * A layer file never changes once it has its name. Everything in it is covered by checksums.

pub mod access;
pub mod block;
pub mod budget;
pub mod cache;
pub mod file;
pub mod format;
pub mod in_memory;
pub mod map;
pub mod read_state;
pub mod residence;
pub mod run;
pub mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pageserver_api::layer_name::LayerFileName;

use crate::remote::DownloadError;

/// A layer file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The operating system refused.
    #[error("cannot {action} layer file {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file does not hold what it must.
    #[error("layer file {path} is damaged at offset {offset}: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// The layer is in object storage only and cannot be fetched.
    #[error("cannot download layer {name}")]
    Download {
        /// The layer.
        name: Box<LayerFileName>,
        /// The cause, shared by all who waited.
        source: Arc<DownloadError>,
    },
    /// A test asked for it.
    #[error("failpoint {0}")]
    Failpoint(&'static str),
}

impl LayerError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| LayerError::Io { action, path, source }
    }
}
