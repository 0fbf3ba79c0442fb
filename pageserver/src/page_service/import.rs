//! `import basebackup` and `import wal`: a cluster made elsewhere, as tar archives in COPY IN streams.

use std::sync::Arc;
use std::time::Duration;

use postgres_backend::{Connection, CopyEnd, CopyReader, QueryError};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream};

use super::command::{ImportBaseBackupRequest, ImportWalRequest};
use crate::import::{self, ImportError};
use crate::server::{Server, check_pg_version};
use crate::timeline::Timeline;

/// Bytes of an archive between the network and the import.
const PIPE_BYTES: usize = 256 * 1024;
/// How long an import waits for object storage to have it.
const UPLOAD_MAX: Duration = Duration::from_secs(600);

/// Makes a timeline of a base backup.
pub async fn base_backup<S>(
    connection: &mut Connection<S>,
    server: &Server,
    request: ImportBaseBackupRequest,
) -> Result<(), QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let tenant = server.active_tenant(request.id.tenant_id).await?;
    check_pg_version(request.pg_version).map_err(anyhow::Error::from)?;
    let unfinished = tenant
        .create_timeline(request.id.timeline_id, request.pg_version)
        .await
        .map_err(anyhow::Error::from)?;
    let writer = unfinished.timeline().writer().await;
    let (near, mut far) = tokio::io::duplex(PIPE_BYTES);
    let mut reader = connection.copy_in().await?;
    let importing = async {
        // The pipe's end must be gone when the import is, or its sender would wait for ever.
        let result = import::import_base_backup(writer, request.base_lsn, &mut far).await;
        drop(far);
        result
    };
    let (sent, imported) = tokio::join!(pump(&mut reader, near), importing);
    outcome(sent, imported.map(drop))?;
    let timeline = unfinished.finish().await.map_err(anyhow::Error::from)?;
    keep(&timeline).await?;
    connection.put_complete("SELECT 1");
    Ok(())
}

/// Continues a timeline with WAL.
pub async fn wal<S>(
    connection: &mut Connection<S>,
    server: &Server,
    request: ImportWalRequest,
) -> Result<(), QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let timeline = server.active_timeline(request.id).await?;
    let writer = timeline.writer().await;
    let last = timeline.last_record();
    if last.last != request.start_lsn {
        let error = ImportError::NotContinuous {
            start: request.start_lsn,
            last: last.last,
        };
        return Err(anyhow::Error::from(error).into());
    }
    let (near, mut far) = tokio::io::duplex(PIPE_BYTES);
    let mut reader = connection.copy_in().await?;
    let importing = async {
        let result = import::import_wal(writer, last, request.end_lsn, &mut far).await;
        drop(far);
        result
    };
    let (sent, imported) = tokio::join!(pump(&mut reader, near), importing);
    outcome(sent, imported.map(drop))?;
    keep(&timeline).await?;
    connection.put_complete("SELECT 1");
    Ok(())
}

/// Makes what was imported durable, here and in object storage: no safekeeper has it.
async fn keep(timeline: &Arc<Timeline>) -> Result<(), QueryError> {
    timeline.flush().await.map_err(anyhow::Error::from)?;
    let uploaded = timeline.wait_uploaded(UPLOAD_MAX).await;
    uploaded.map_err(|error| anyhow::Error::from(error).into())
}

/// Moves what the client sends into the pipe until the client ends its stream. When nobody reads the
/// pipe any more, the rest of the stream is dropped: it has to be received before the error is sent.
async fn pump<S>(reader: &mut CopyReader<'_, S>, mut pipe: DuplexStream) -> Result<(), QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut open = true;
    loop {
        match reader.next().await {
            Ok(data) => open = open && pipe.write_all(&data).await.is_ok(),
            Err(CopyEnd::Done) => return Ok(()),
            Err(end) => return Err(end.into()),
        }
    }
}

/// A broken stream explains a failed import, not the other way round.
fn outcome(sent: Result<(), QueryError>, imported: Result<(), ImportError>) -> Result<(), QueryError> {
    sent?;
    imported.map_err(|error| anyhow::Error::from(error).into())
}
