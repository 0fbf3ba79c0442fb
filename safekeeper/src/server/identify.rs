//! `IDENTIFY_SYSTEM`: what a reader asks before it starts replication.

use postgres_backend::{Connection, QueryError};
use pq_proto::backend::{Column, ColumnType};
use tokio::io::{AsyncRead, AsyncWrite};
use utils::id::TenantTimelineId;

use crate::timeline_map::TimelineMap;

/// Who asks: a proposer in recovery is told how far WAL is durable, others how far it is final.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asker {
    Recovery,
    Reader,
}

/// Answers the command.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S>,
    map: &TimelineMap,
    id: TenantTimelineId,
    asker: Asker,
) -> Result<(), QueryError> {
    let timeline = map.get(id).map_err(anyhow::Error::new)?;
    timeline.open().await.map_err(anyhow::Error::new)?;
    let snapshot = timeline.snapshot();
    let position = match asker {
        Asker::Recovery => snapshot.flush_lsn,
        Asker::Reader => snapshot.positions.commit_lsn,
    };
    let column = |name: &str, kind| Column {
        name: name.to_owned(),
        kind,
    };
    connection
        .put_columns(&[
            column("systemid", ColumnType::Text),
            column("timeline", ColumnType::Int4),
            column("xlogpos", ColumnType::Text),
            column("dbname", ColumnType::Text),
        ])
        .put_row(&[
            Some(&snapshot.server.system_id.to_string()),
            Some("1"),
            Some(&position.to_string()),
            None,
        ])
        .put_complete("IDENTIFY_SYSTEM");
    Ok(())
}
