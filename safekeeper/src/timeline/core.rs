//! An acceptor together with the disk it decides about: carries out the acceptor's actions.
//!
//! Invariant: after an action has failed, nothing more is decided on what the acceptor believed. The
//! core is opened anew from disk, where WAL beyond the last successful flush does not count: after a
//! failed fsync the page cache may show what the disk does not hold.
//!
//! Blocking.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use safekeeper_api::protocol::AcceptorMessage;
use utils::id::NodeId;
use utils::lsn::Lsn;

use crate::Sync;
use crate::acceptor::{Acceptor, Action, ControlState, Positions};
use crate::control_file::{ControlFileError, ControlWriter};
use crate::metrics::{PERSIST_CONTROL_FILE_SECONDS, WalCounters};
use crate::wal_storage::{Expected, OpenWalError, WalDir, WalError, WalStorage, find_end, make_durable};

/// The disk failed, or what it holds is damaged.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The control file.
    #[error(transparent)]
    ControlFile(#[from] ControlFileError),
    /// WAL being written.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// WAL being opened.
    #[error(transparent)]
    OpenWal(#[from] OpenWalError),
    /// WAL that was durable is not to be found.
    #[error("WAL was durable up to {durable}, but only valid up to {found}")]
    Lost {
        /// End of what was durable.
        durable: Lsn,
        /// End of what is there.
        found: Lsn,
    },
}

/// Where a core lives.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub node_id: NodeId,
    pub dir: PathBuf,
    pub sync: Sync,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Core {
    pub acceptor: Acceptor,
    pub storage: WalStorage,
    pub control: Arc<ControlWriter>,
    /// End of the WAL known to be on disk.
    pub durable_lsn: Lsn,
}

/// What carrying out actions has led to.
#[derive(Debug, Default)]
pub(super) struct CarriedOut {
    pub replies: Vec<AcceptorMessage>,
    /// To be saved in the background.
    pub save: Option<Positions>,
}

/// Positions still being saved do not reach the files any more: whoever opens them next finds them at rest.
impl Drop for Core {
    fn drop(&mut self) {
        self.control.close();
    }
}

impl Core {
    /// Opens what the disk holds. WAL behind `durable_lsn`, if that is known, does not count.
    pub fn open(place: Place, durable_lsn: Option<Lsn>) -> Result<Self, DiskError> {
        let (writer, control) = ControlWriter::open(&place.dir, place.sync)?;
        let wal_dir = WalDir {
            path: place.dir,
            segment_size: control.server.wal_seg_size as usize,
        };
        let flush_lsn = find_flush_lsn(&wal_dir, &control, durable_lsn)?;
        if durable_lsn.is_none() && place.sync == Sync::Yes {
            make_durable(&wal_dir, control.known_end(), flush_lsn)?;
        }
        let storage = WalStorage::open(wal_dir, place.sync, control.server, flush_lsn);
        Ok(Core {
            acceptor: Acceptor::recover(place.node_id, control, flush_lsn),
            storage,
            control: Arc::new(writer),
            durable_lsn: flush_lsn,
        })
    }

    /// Carries out `actions` in order, except for positions to be saved. After an error this core must be
    /// dropped.
    pub fn carry_out(
        &mut self,
        actions: Vec<Action>,
        counters: &WalCounters,
    ) -> Result<CarriedOut, DiskError> {
        let mut done = CarriedOut::default();
        for action in actions {
            let begin = Instant::now();
            match action {
                Action::PersistControl(control) => {
                    self.storage.set_server(control.server);
                    self.control.replace(*control)?;
                    PERSIST_CONTROL_FILE_SECONDS.observe(begin.elapsed().as_secs_f64());
                }
                Action::WriteWal { begin: at, bytes } => {
                    self.storage.write(at, &bytes)?;
                    counters.count_write(bytes.len(), begin);
                }
                Action::FlushWal { up_to } => {
                    self.storage.flush()?;
                    self.durable_lsn = up_to;
                    counters.count_flush(begin);
                }
                Action::TruncateWal { to } => {
                    // From now on anything behind may be gone, whether or not this succeeds.
                    self.durable_lsn = self.durable_lsn.min(to);
                    self.storage.truncate(to)?;
                    self.durable_lsn = to;
                }
                Action::SavePositions(positions) => done.save = Some(positions),
                Action::Reply(message) => done.replies.push(message),
            }
        }
        Ok(done)
    }
}

fn find_flush_lsn(
    wal_dir: &WalDir,
    control: &ControlState,
    durable_lsn: Option<Lsn>,
) -> Result<Lsn, DiskError> {
    let known_end = control.known_end();
    if !known_end.is_valid() {
        return Ok(Lsn::INVALID);
    }
    // WAL is written after an election only, and what was written begins at the local start.
    let is_written = control.term_history.last().is_some() && known_end > control.local_start_lsn;
    let expected = if is_written {
        Expected::Written
    } else {
        Expected::Nothing
    };
    let found = find_end(wal_dir, known_end, expected)?;
    match durable_lsn {
        None => Ok(found),
        Some(durable) if found < durable => Err(DiskError::Lost { durable, found }),
        Some(durable) => Ok(durable.max(known_end)),
    }
}
