//! Failures of object storage.

use std::error::Error;
use std::fmt;

use crate::path::RemotePath;
use crate::retry::Retryable;

/// Cause of a failure, of whatever kind the storage has.
pub type Cause = Box<dyn Error + Send + Sync>;

/// An operation on object storage failed.
#[derive(Debug, thiserror::Error)]
pub enum RemoteStorageError {
    /// There is no such object. Trying again is of no use.
    #[error("object {0} does not exist")]
    NotFound(RemotePath),
    /// The storage will not do this: no access, no such bucket, a name it does not take. Trying again is
    /// of no use.
    #[error("object storage refuses to {action} {object}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// On what.
        object: String,
        /// The cause.
        source: Cause,
    },
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
    /// A failure on purpose, see [`crate::Unreliable`]. Trying again helps.
    #[error("simulated failure of remote operation {0}")]
    Simulated(String),
    /// The storage cannot be used as configured.
    #[error("cannot use object storage: {0}")]
    Unusable(String),
}

impl RemoteStorageError {
    /// Whether the same attempt will fail again.
    pub fn is_permanent(&self) -> bool {
        match self {
            RemoteStorageError::NotFound(_)
            | RemoteStorageError::Refused { .. }
            | RemoteStorageError::WrongLength { .. }
            | RemoteStorageError::Unusable(_) => true,
            RemoteStorageError::Io { .. } | RemoteStorageError::Simulated(_) => false,
        }
    }
}

impl Retryable for RemoteStorageError {
    fn is_permanent(&self) -> bool {
        self.is_permanent()
    }
}

/// An error with its causes, for one line of a log.
pub(crate) struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
