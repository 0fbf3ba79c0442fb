//! Object storage that fails at first: for tests of everything that must try again.
//!
//! The first `failures` attempts of each operation on each path fail before anything is done. After the
//! attempt that gets through, counting starts anew.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::{GenericRemoteStorage, RemotePath, RemoteStorageError};

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Unreliable {
    inner: Arc<GenericRemoteStorage>,
    failures: u32,
    /// Attempts so far of what has not got through yet.
    attempts: Arc<Mutex<HashMap<Operation, u32>>>,
}

/// What is counted.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Operation {
    Upload(RemotePath),
    Download(RemotePath),
    Delete(RemotePath),
    List(Option<RemotePath>),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Upload(path) => write!(f, "Upload({path})"),
            Operation::Download(path) => write!(f, "Download({path})"),
            Operation::Delete(path) => write!(f, "Delete({path})"),
            Operation::List(Some(prefix)) => write!(f, "List({prefix})"),
            Operation::List(None) => f.write_str("List"),
        }
    }
}

impl Unreliable {
    pub(crate) fn new(inner: GenericRemoteStorage, failures: u32) -> Self {
        Unreliable {
            inner: Arc::new(inner),
            failures,
            attempts: Arc::default(),
        }
    }

    /// The storage behind, if this attempt gets through.
    pub(crate) fn attempt(&self, operation: Operation) -> Result<&GenericRemoteStorage, RemoteStorageError> {
        let mut attempts = self.attempts.lock();
        let so_far = attempts.get(&operation).copied().unwrap_or(0);
        if so_far < self.failures {
            let failed = RemoteStorageError::Simulated(operation.to_string());
            attempts.insert(operation, so_far + 1);
            return Err(failed);
        }
        attempts.remove(&operation);
        Ok(&self.inner)
    }

    /// The storage behind, if this attempt gets through for all of `paths`.
    pub(crate) fn attempt_delete(
        &self,
        paths: &[RemotePath],
    ) -> Result<&GenericRemoteStorage, RemoteStorageError> {
        // Each of them counts this attempt, so that a batch takes no more attempts than one path.
        let outcomes: Vec<_> = paths
            .iter()
            .map(|path| self.attempt(Operation::Delete(path.clone())).map(|_| ()))
            .collect();
        outcomes.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(&self.inner)
    }
}
