//! Failures of object storage.

use crate::path::RemotePath;

/// An operation on object storage failed.
#[derive(Debug, thiserror::Error)]
pub enum RemoteStorageError {
    /// There is no such object. Trying again is of no use.
    #[error("object {0} does not exist")]
    NotFound(RemotePath),
    /// Something on the way failed. Trying again may help.
    #[error("cannot {action} {object}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        object: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The contents given for an upload are not as long as was said.
    #[error("upload of {path} has {got} bytes instead of {want}")]
    WrongLength {
        /// The object.
        path: RemotePath,
        /// Length announced.
        want: u64,
        /// Length of what came.
        got: u64,
    },
}

impl RemoteStorageError {
    /// Whether the same attempt will fail again.
    pub fn is_permanent(&self) -> bool {
        matches!(
            self,
            RemoteStorageError::NotFound(_) | RemoteStorageError::WrongLength { .. }
        )
    }
}
