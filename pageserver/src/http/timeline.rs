//! Routes of timelines.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use pageserver_api::models::{
    GcResult, TimelineCreateRequest, TimelineGcRequest, TimelineInfo, TimelineState,
};
use pq_proto::replication;
use utils::http::{ApiError, Bearer, JsonBody, PathParams, QueryParams};
use utils::id::{TenantId, TenantTimelineId, TimelineId};
use utils::lsn::Lsn;

use super::{
    AppState, check_permission, get_tenant_error, internal, new_cluster_error, not_found, tenant_inaccessible,
};
use crate::pgdatadir;
use crate::server::{NewClusterError, PG_VERSION, Server, check_pg_version};
use crate::tenant::{BranchSpec, CreateTimelineError};
use crate::timeline::gc::Retention;
use crate::timeline::{self, Timeline};
use crate::timestamp_search::{self, Found};

/// How long the creation of a timeline waits for object storage.
const CREATION_UPLOAD_MAX: Duration = Duration::from_secs(60);

pub(super) fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/tenant/{tenant_id}/timeline", get(list).post(create))
        .route(
            "/v1/tenant/{tenant_id}/timeline/{timeline_id}",
            get(show).delete(delete),
        )
        .route(
            "/v1/tenant/{tenant_id}/timeline/{timeline_id}/get_lsn_by_timestamp",
            get(get_lsn_by_timestamp),
        )
        .route(
            "/v1/tenant/{tenant_id}/timeline/{timeline_id}/checkpoint",
            put(checkpoint),
        )
        .route(
            "/v1/tenant/{tenant_id}/timeline/{timeline_id}/compact",
            put(compact),
        )
        .route("/v1/tenant/{tenant_id}/timeline/{timeline_id}/do_gc", put(do_gc))
}

/// Whether the logical size is counted afresh for the answer.
#[derive(Clone, Copy, Eq, PartialEq)]
enum CountSize {
    Yes,
    No,
}

fn count_size(query: &QueryParams) -> Result<CountSize, ApiError> {
    let wanted: Option<bool> = query.optional("include-non-incremental-logical-size")?;
    Ok(match wanted {
        Some(true) => CountSize::Yes,
        _ => CountSize::No,
    })
}

/// The timeline that the path names, after checking that the bearer may see it.
pub(super) fn find(server: &Server, bearer: &Bearer, params: &PathParams) -> Result<Arc<Timeline>, ApiError> {
    let tenant_id: TenantId = params.parse("tenant_id")?;
    let timeline_id: TimelineId = params.parse("timeline_id")?;
    check_permission(bearer, Some(tenant_id))?;
    let tenant = server.tenants.get_active(tenant_id).map_err(get_tenant_error)?;
    tenant.get_timeline(timeline_id).map_err(not_found)
}

async fn list(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
    query: QueryParams,
) -> Result<Json<Vec<TimelineInfo>>, ApiError> {
    let tenant_id: TenantId = params.parse("tenant_id")?;
    check_permission(&bearer, Some(tenant_id))?;
    let count = count_size(&query)?;
    let tenant = server.tenants.get_active(tenant_id).map_err(get_tenant_error)?;
    let mut infos = Vec::new();
    for timeline in tenant.timelines() {
        infos.push(info(&server, &timeline, count).await?);
    }
    Ok(Json(infos))
}

async fn show(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
    query: QueryParams,
) -> Result<Json<TimelineInfo>, ApiError> {
    let timeline = find(&server, &bearer, &params)?;
    Ok(Json(info(&server, &timeline, count_size(&query)?).await?))
}

/// What is acknowledged must survive the loss of this server.
async fn wait_uploaded(timeline: &Timeline) -> Result<(), ApiError> {
    timeline
        .wait_uploaded(CREATION_UPLOAD_MAX)
        .await
        .context("the timeline was created, but is not in object storage yet")
        .map_err(internal)
}

async fn create(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
    JsonBody(request): JsonBody<Option<TimelineCreateRequest>>,
) -> Result<Response, ApiError> {
    let tenant_id: TenantId = params.parse("tenant_id")?;
    check_permission(&bearer, Some(tenant_id))?;
    let request = request.unwrap_or_default();
    let tenant = server.tenants.get_active(tenant_id).map_err(get_tenant_error)?;
    let timeline_id = request.new_timeline_id.unwrap_or_else(TimelineId::generate);
    let created = match request.ancestor_timeline_id {
        Some(ancestor_id) => {
            let spec = BranchSpec {
                timeline_id,
                ancestor_id,
                start_lsn: request.ancestor_start_lsn,
                wait_timeout: server.config.wait_lsn_timeout,
            };
            tenant.branch(spec).await.map_err(NewClusterError::Timeline)
        }
        None => {
            check_pg_version(request.pg_version.unwrap_or(PG_VERSION))
                .map_err(|error| ApiError::BadRequest(error.into()))?;
            server.new_cluster(&tenant, timeline_id).await
        }
    };
    match created {
        Ok(timeline) => {
            wait_uploaded(&timeline).await?;
            let info = info(&server, &timeline, CountSize::No).await?;
            Ok((StatusCode::CREATED, Json(info)).into_response())
        }
        // Without a text: who repeats a request that was carried out takes this for success.
        Err(NewClusterError::Timeline(CreateTimelineError::AlreadyExists(_))) => {
            if let Ok(timeline) = tenant.get_timeline(timeline_id) {
                wait_uploaded(&timeline).await?;
            }
            Ok((StatusCode::CONFLICT, Json(())).into_response())
        }
        Err(error) => Err(new_cluster_error(error)),
    }
}

async fn delete(State(server): AppState, bearer: Bearer, params: PathParams) -> Result<Json<()>, ApiError> {
    let tenant_id: TenantId = params.parse("tenant_id")?;
    let timeline_id: TimelineId = params.parse("timeline_id")?;
    check_permission(&bearer, Some(tenant_id))?;
    let tenant = server
        .tenants
        .get_active(tenant_id)
        .map_err(tenant_inaccessible)?;
    tenant.delete_timeline(timeline_id).await.map_err(internal)?;
    Ok(Json(()))
}

async fn get_lsn_by_timestamp(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
    query: QueryParams,
) -> Result<Json<String>, ApiError> {
    let text: String = query.required("timestamp")?;
    let time = humantime::parse_rfc3339(&text)
        .map_err(|error| ApiError::BadRequest(anyhow::anyhow!("Invalid time: {error}")))?;
    let timeline = find(&server, &bearer, &params)?;
    let (oldest, newest) = (timeline.latest_gc_cutoff_lsn(), timeline.last_record().last);
    let found = timestamp_search::search(&*timeline, replication::timestamp(time), oldest, newest)
        .await
        .map_err(internal)?;
    Ok(Json(match found {
        Found::At(lsn) => lsn.to_string(),
        Found::Future => "future".to_owned(),
        Found::Past => "past".to_owned(),
        Found::NoData => "nodata".to_owned(),
    }))
}

/// Refuses what only tests may do.
fn check_testing(what: &str) -> Result<(), ApiError> {
    if cfg!(feature = "testing") {
        return Ok(());
    }
    Err(ApiError::BadRequest(anyhow::anyhow!(
        "Cannot {what} because pageserver was compiled without testing APIs"
    )))
}

/// Makes everything ingested durable, then compacts.
async fn checkpoint(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
) -> Result<Json<()>, ApiError> {
    check_testing("run timeline checkpoint")?;
    let timeline = find(&server, &bearer, &params)?;
    timeline.flush().await.map_err(internal)?;
    timeline.compact().await.map_err(internal)?;
    Ok(Json(()))
}

async fn compact(State(server): AppState, bearer: Bearer, params: PathParams) -> Result<Json<()>, ApiError> {
    check_testing("run timeline compaction")?;
    let timeline = find(&server, &bearer, &params)?;
    timeline.compact().await.map_err(internal)?;
    Ok(Json(()))
}

async fn do_gc(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
    JsonBody(request): JsonBody<Option<TimelineGcRequest>>,
) -> Result<Json<GcResult>, ApiError> {
    let timeline = find(&server, &bearer, &params)?;
    let config = timeline.config();
    let retention = Retention {
        horizon_bytes: request
            .unwrap_or_default()
            .gc_horizon
            .unwrap_or(config.gc_horizon),
        pitr: config.pitr_interval,
    };
    let outcome = timeline.gc(retention).await.map_err(internal)?;
    Ok(Json(GcResult {
        layers_total: outcome.total,
        layers_needed_by_cutoff: outcome.needed_by_cutoff,
        layers_needed_by_pitr: outcome.needed_by_pitr,
        layers_needed_by_branches: outcome.needed_by_branches,
        layers_not_updated: outcome.not_updated,
        layers_removed: outcome.removed,
        elapsed: outcome.elapsed.as_millis() as u64,
    }))
}

async fn info(server: &Server, timeline: &Timeline, count: CountSize) -> Result<TimelineInfo, ApiError> {
    let last = timeline.last_record();
    let counted = match count {
        CountSize::Yes => Some(
            pgdatadir::logical_size(timeline, last.last)
                .await
                .map_err(internal)?,
        ),
        CountSize::No => None,
    };
    let id = TenantTimelineId::new(timeline.tenant_id, timeline.timeline_id);
    let receiver = server.receivers.status(id);
    let source = receiver
        .as_ref()
        .map(|status| status.source())
        .unwrap_or_default();
    let ancestor = timeline.ancestor();
    Ok(TimelineInfo {
        tenant_id: id.tenant_id,
        timeline_id: id.timeline_id,
        ancestor_timeline_id: ancestor.map(|(ancestor, _)| ancestor.timeline_id),
        ancestor_lsn: ancestor.map(|(_, lsn)| lsn).filter(|lsn| *lsn != Lsn::INVALID),
        last_record_lsn: last.last,
        prev_record_lsn: last.prev,
        latest_gc_cutoff_lsn: timeline.latest_gc_cutoff_lsn(),
        disk_consistent_lsn: timeline.disk_consistent_lsn(),
        remote_consistent_lsn: timeline.remote_consistent_lsn(),
        current_logical_size: receiver.map(|status| status.logical_size().approximate()),
        current_physical_size: Some(timeline.physical_size()),
        current_logical_size_non_incremental: counted,
        timeline_dir_layer_file_size_sum: None,
        wal_source_connstr: source.connstr,
        last_received_msg_lsn: source.received_lsn,
        last_received_msg_ts: source.received_at,
        pg_version: timeline.pg_version,
        state: match timeline.state() {
            timeline::TimelineState::Loading => TimelineState::Loading,
            timeline::TimelineState::Active => TimelineState::Active,
            timeline::TimelineState::Stopping => TimelineState::Stopping,
            timeline::TimelineState::Broken => TimelineState::Broken,
        },
    })
}
