//! Import of a cluster that PostgreSQL made: a fresh one from `initdb`, or somebody's base backup and WAL.
//!
//! Invariants
//! * An import ends at a record boundary: every value stands at the LSN where the WAL goes on.
//! * All that is not part of the history (statistics, replication slots, temporary relations, old WAL) stays behind.
//!
//! Not here: making the timeline that is filled, and publishing it (`tenant`).

mod archive;
mod cluster;
mod initdb;
pub mod path;
mod template;
mod wal;

use tokio::io::AsyncRead;
use utils::lsn::{Lsn, RecordLsn};

pub use self::cluster::{ClusterImport, ImportError};
pub use self::initdb::Initdb;
pub use self::template::ClusterTemplate;
pub use self::wal::import_wal;
use crate::ingest::WriteStore;

/// Imports a base backup, a tar archive, into an empty timeline. `lsn` is where its WAL goes on.
///
/// A backup of a running server is consistent only after its WAL is imported, too.
pub async fn import_base_backup<W: WriteStore>(
    writer: W,
    lsn: Lsn,
    archive: &mut (impl AsyncRead + Unpin + Send),
) -> Result<RecordLsn, ImportError> {
    let mut import = ClusterImport::new(writer, lsn);
    import.archive(archive).await?;
    import.finish(None).await
}
