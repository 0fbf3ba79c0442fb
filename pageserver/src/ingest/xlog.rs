//! Checkpoints and the other records of the WAL machinery itself; what standby records tell of transaction ids.

use postgres_ffi::cursor::{Cursor, Truncated};
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
    let raw = &cx.record.main_data;
    let mut body = Cursor::new(raw);
    match cx.record.rmgr_info() {
        rmgr::XLOG_CHECKPOINT_SHUTDOWN => counters.shutdown_checkpoint(raw)?,
        rmgr::XLOG_CHECKPOINT_ONLINE => counters.online_checkpoint(raw)?,
        rmgr::XLOG_NEXTOID => counters.set_next_oid(body.u32().map_err(IngestFault::malformed)?),
        rmgr::XLOG_FPW_CHANGE => {
            counters.set_full_page_writes(body.u8().map_err(IngestFault::malformed)? != 0);
        }
        rmgr::XLOG_PARAMETER_CHANGE => parameter_change(m, raw).await?,
        // Neither changes anything that is kept: NOOP, SWITCH, RESTORE_POINT, BACKUP_END, END_OF_RECOVERY,
        // OVERWRITE_CONTRECORD. Full-page images are block references.
        _ => {}
    }
    Ok(())
}

/// Standby records change no page. Running transactions tell which ids are taken.
pub(super) fn ingest_standby(counters: &mut Counters, cx: &Context<'_>) -> Result<(), IngestFault> {
    if cx.record.rmgr_info() == rmgr::XLOG_RUNNING_XACTS {
        // xl_running_xacts: count, count of subtransactions, overflow flag and padding, nextXid.
        let mut body = Cursor::new(&cx.record.main_data);
        body.skip(12).map_err(IngestFault::malformed)?;
        let next_xid = body.u32().map_err(IngestFault::malformed)?;
        counters.advance_to_xid(next_xid);
    }
    Ok(())
}

/// The control file must show the new settings: a standby refuses to start with lower ones than the primary's.
async fn parameter_change<S: ReadStore>(m: &mut Modification<'_, S>, raw: &[u8]) -> Result<(), IngestFault> {
    let file = m.control_file().await?;
    let mut control = ControlFile::from_file(&file).map_err(IngestFault::malformed)?;
    apply_parameters(&mut control, raw).map_err(IngestFault::malformed)?;
    m.put_control_file(control.to_file().into());
    Ok(())
}

/// `xl_parameter_change`.
fn apply_parameters(control: &mut ControlFile, raw: &[u8]) -> Result<(), Truncated> {
    let mut body = Cursor::new(raw);
    control.max_connections = body.i32()?;
    control.max_worker_processes = body.i32()?;
    control.max_wal_senders = body.i32()?;
    control.max_prepared_transactions = body.i32()?;
    control.max_locks_per_transaction = body.i32()?;
    control.wal_level = body.i32()?;
    control.wal_log_hints = body.u8()? != 0;
    control.track_commit_timestamp = body.u8()? != 0;
    Ok(())
}
