//! Checkpoints and the other records of the WAL machinery itself; what standby records tell of transaction ids.

use postgres_ffi::c_struct::CStruct;
use postgres_ffi::cursor::Cursor;
use postgres_ffi::v15::bodies::{ParameterChange, RunningXacts, next_oid};
use postgres_ffi::v15::control_file::ControlFile;
use postgres_ffi::v15::rmgr;

use super::counters::Counters;
use super::{Context, IngestFault};
use crate::pgdatadir::modification::Modification;
use crate::timeline::store::ReadStore;

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    counters: &mut Counters,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let raw = cx.record.main_data;
    match cx.record.rmgr_info() {
        rmgr::XLOG_CHECKPOINT_SHUTDOWN => counters.shutdown_checkpoint(raw)?,
        rmgr::XLOG_CHECKPOINT_ONLINE => counters.online_checkpoint(raw)?,
        rmgr::XLOG_NEXTOID => counters.set_next_oid(next_oid(raw)?),
        rmgr::XLOG_FPW_CHANGE => counters.set_full_page_writes(Cursor::new(raw).u8()? != 0),
        rmgr::XLOG_PARAMETER_CHANGE => parameter_change(m, ParameterChange::decode(raw)?).await?,
        // Neither changes anything that is kept: NOOP, SWITCH, RESTORE_POINT, BACKUP_END, END_OF_RECOVERY,
        // OVERWRITE_CONTRECORD. Full-page images are block references.
        _ => {}
    }
    Ok(())
}

/// Standby records change no page. Running transactions tell which ids are taken.
pub(super) fn ingest_standby(counters: &mut Counters, cx: &Context<'_>) -> Result<(), IngestFault> {
    if cx.record.rmgr_info() == rmgr::XLOG_RUNNING_XACTS {
        let running = RunningXacts::parse(cx.record.main_data)?;
        counters.advance_to_xid(running.header.next_xid);
    }
    Ok(())
}

/// The control file must show the new settings: a standby refuses to start with lower ones than the primary's.
async fn parameter_change<S: ReadStore>(
    m: &mut Modification<'_, S>,
    new: ParameterChange,
) -> Result<(), IngestFault> {
    let file = m.control_file().await?;
    let mut control = ControlFile::from_file(&file).map_err(IngestFault::malformed)?;
    control.max_connections = new.max_connections;
    control.max_worker_processes = new.max_worker_processes;
    control.max_wal_senders = new.max_wal_senders;
    control.max_prepared_transactions = new.max_prepared_transactions;
    control.max_locks_per_transaction = new.max_locks_per_transaction;
    control.wal_level = new.wal_level;
    control.wal_log_hints = new.wal_log_hints;
    control.track_commit_timestamp = new.track_commit_timestamp;
    m.put_control_file(control.to_file().into());
    Ok(())
}
