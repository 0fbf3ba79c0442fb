//! `show`: the settings that hold for a tenant.

use std::time::Duration;

use pageserver_api::tenant_config::TenantConfig;
use postgres_backend::Connection;
use pq_proto::backend::{Column, ColumnType};
use tokio::io::{AsyncRead, AsyncWrite};

/// Puts one row with the settings; durations in whole seconds.
pub fn answer<S: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<S>, config: &TenantConfig) {
    let seconds = |duration: Duration| duration.as_secs();
    let settings = [
        ("checkpoint_distance", config.checkpoint_distance),
        ("checkpoint_timeout", seconds(config.checkpoint_timeout)),
        ("compaction_target_size", config.compaction_target_size),
        ("compaction_period", seconds(config.compaction_period)),
        ("compaction_threshold", config.compaction_threshold as u64),
        ("gc_horizon", config.gc_horizon),
        ("gc_period", seconds(config.gc_period)),
        ("image_creation_threshold", config.image_creation_threshold as u64),
        ("pitr_interval", seconds(config.pitr_interval)),
    ];
    let columns = settings.map(|(name, _)| Column::new(name, ColumnType::Int8));
    let values = settings.map(|(_, value)| value.to_string());
    let row: Vec<Option<&str>> = values.iter().map(|value| Some(value.as_str())).collect();
    connection
        .put_columns(&columns)
        .put_row(&row)
        .put_complete("SELECT 1");
}
