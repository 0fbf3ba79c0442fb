//! `basebackup` and `fullbackup`: a data directory as a tar archive, in a COPY OUT stream.

use std::sync::Arc;
use std::time::Duration;

use postgres_backend::{Connection, QueryError};
use tokio::io::{AsyncRead, AsyncWrite};
use utils::lsn::Lsn;

use super::command::{BackupRequest, RequestedKind};
use super::{data_error, read_error};
use crate::basebackup::{self, BackupError, BackupKind, BackupSpec};
use crate::timeline::Timeline;

/// Sends the archive. An error on the way is sent after the part of the archive made so far.
pub async fn serve<S>(
    connection: &mut Connection<S>,
    timeline: &Arc<Timeline>,
    request: BackupRequest,
    wait_lsn_timeout: Duration,
) -> Result<(), QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let spec = specification(timeline, request, wait_lsn_timeout).await?;
    let mut writer = connection.copy_out().await?;
    basebackup::write(&**timeline, spec, &mut writer)
        .await
        .map_err(backup_error)?;
    writer.flush().await?;
    writer.done();
    connection.put_complete("SELECT 1");
    Ok(())
}

fn backup_error(error: BackupError) -> QueryError {
    match error {
        BackupError::Data(error) => data_error(error),
        BackupError::Write(error) => QueryError::Connection(error.into()),
        other => QueryError::Failed(other.into()),
    }
}

async fn specification(
    timeline: &Timeline,
    request: BackupRequest,
    wait_lsn_timeout: Duration,
) -> Result<BackupSpec, QueryError> {
    let last = timeline.last_record();
    let lsn = match request.lsn {
        None => last.last,
        Some(lsn) => {
            timeline
                .wait_lsn(lsn, wait_lsn_timeout)
                .await
                .map_err(read_error)?;
            lsn
        }
    };
    let cutoff = timeline.latest_gc_cutoff_lsn();
    if lsn < cutoff {
        let cause = anyhow::anyhow!("LSN {lsn} is earlier than latest GC horizon {cutoff} of the timeline");
        return Err(cause.context("invalid basebackup lsn").into());
    }
    let prev_lsn = previous_lsn(timeline, lsn, request.prev_lsn)?;
    Ok(BackupSpec {
        lsn,
        prev_lsn,
        own_wal: timeline.ancestor().map_or(Lsn::INVALID, |(_, lsn)| lsn),
        kind: match request.kind {
            RequestedKind::Compute => BackupKind::Compute,
            RequestedKind::Full => BackupKind::Full,
        },
    })
}

/// Start of the record that ends at `lsn`: known at the end of the timeline, or told by the client.
fn previous_lsn(timeline: &Timeline, lsn: Lsn, told: Option<Lsn>) -> Result<Lsn, QueryError> {
    let last = timeline.last_record();
    let known = (last.last == lsn && last.prev.is_valid()).then_some(last.prev);
    match (known, told) {
        (Some(known), Some(told)) if known != told => {
            Err(anyhow::anyhow!("the previous LSN given is {told}, but it is {known}").into())
        }
        (known, told) => Ok(known.or(told).unwrap_or(Lsn::INVALID)),
    }
}
