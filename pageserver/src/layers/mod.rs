//! Layers: what a timeline's history is made of.

pub mod budget;
pub mod in_memory;
pub mod read_state;

use std::path::PathBuf;

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
}
