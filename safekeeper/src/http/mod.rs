//! The HTTP management service.

pub mod client;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use safekeeper_api::debug_dump::Dump;
use safekeeper_api::models::{
    AcceptorStateStatus, PullTimelineRequest, PullTimelineResponse, ServerInfo, Status, TermSwitch,
    TimelineCreateRequest, TimelineDeleteStatus, TimelineStatus,
};
use safekeeper_api::timeline_info::SkTimelineInfo;
use utils::http::{ApiError, Bearer, JsonBody, NoBody, PathParams, QueryParams, ServerOptions};
use utils::id::{NodeId, TenantId, TenantTimelineId};
use utils::lsn::Lsn;

use crate::dump::{self, Part, Selection};
use crate::metrics;
use crate::timeline::Timeline;
use crate::timeline_map::{GetTimelineError, NewTimeline, TimelineMap};
use crate::wal_storage::SegmentFile;

/// Segment size of a timeline created without one, in bytes.
const DEFAULT_SEGMENT_SIZE: u32 = 16 * 1024 * 1024;

type Map = State<Arc<TimelineMap>>;

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> ApiError {
    ApiError::Internal(anyhow::Error::new(error))
}

fn check(bearer: &Bearer, tenant: Option<TenantId>) -> Result<(), ApiError> {
    match &bearer.0 {
        Some(claims) => Ok(claims.check_safekeeper(tenant)?),
        None => Ok(()),
    }
}

fn timeline_id(params: &PathParams) -> Result<TenantTimelineId, ApiError> {
    Ok(TenantTimelineId::new(
        params.parse("tenant_id")?,
        params.parse("timeline_id")?,
    ))
}

fn find(map: &TimelineMap, id: TenantTimelineId) -> Result<Arc<Timeline>, ApiError> {
    map.get(id).map_err(|error| match error {
        GetTimelineError::NotFound(id) => ApiError::NotFound(format!("timeline {id} not found")),
        other => internal(other),
    })
}

async fn status(map: Map) -> Json<Status> {
    Json(Status { id: map.conf().id })
}

async fn metrics_text(map: Map) -> Result<Response, ApiError> {
    let text = metrics::gather(&map).map_err(internal)?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

async fn create_timeline(
    map: Map,
    bearer: Bearer,
    JsonBody(request): JsonBody<TimelineCreateRequest>,
) -> Result<Json<()>, ApiError> {
    check(&bearer, Some(request.tenant_id))?;
    let wal_seg_size = request.wal_seg_size.unwrap_or(DEFAULT_SEGMENT_SIZE);
    let segment_start = request.commit_lsn.segment_start(wal_seg_size.max(1) as usize);
    let new = NewTimeline {
        id: TenantTimelineId::new(request.tenant_id, request.timeline_id),
        server: crate::acceptor::ServerInfo {
            pg_version: request.pg_version,
            system_id: request.system_id.unwrap_or(0),
            wal_seg_size,
        },
        commit_lsn: request.commit_lsn,
        local_start_lsn: request.local_start_lsn.map_or(segment_start, Lsn),
    };
    map.get_or_create(new).await.map_err(internal)?;
    Ok(Json(()))
}

async fn timeline_status(
    map: Map,
    bearer: Bearer,
    params: PathParams,
) -> Result<Json<TimelineStatus>, ApiError> {
    let id = timeline_id(&params)?;
    check(&bearer, Some(id.tenant_id))?;
    let timeline = find(&map, id)?;
    let control = timeline.control().await.map_err(internal)?;
    let snapshot = timeline.snapshot();
    let positions = snapshot.positions;
    let switch = |entry: &safekeeper_api::protocol::TermLsn| TermSwitch {
        term: entry.term.0,
        lsn: entry.lsn,
    };
    Ok(Json(TimelineStatus {
        tenant_id: id.tenant_id,
        timeline_id: id.timeline_id,
        acceptor_state: AcceptorStateStatus {
            term: control.term.0,
            epoch: snapshot.epoch.0,
            term_history: control.term_history.entries().iter().map(switch).collect(),
        },
        pg_info: ServerInfo {
            pg_version: control.server.pg_version,
            system_id: control.server.system_id,
            wal_seg_size: control.server.wal_seg_size,
        },
        flush_lsn: snapshot.flush_lsn,
        timeline_start_lsn: control.timeline_start_lsn,
        local_start_lsn: control.local_start_lsn,
        commit_lsn: positions.commit_lsn,
        backup_lsn: positions.backup_lsn,
        peer_horizon_lsn: positions.peer_horizon_lsn,
        remote_consistent_lsn: positions.remote_consistent_lsn,
    }))
}

async fn delete_timeline(
    map: Map,
    bearer: Bearer,
    params: PathParams,
    _: NoBody,
) -> Result<Json<TimelineDeleteStatus>, ApiError> {
    let id = timeline_id(&params)?;
    check(&bearer, Some(id.tenant_id))?;
    Ok(Json(map.delete(id).await.map_err(internal)?))
}

async fn delete_tenant(
    map: Map,
    bearer: Bearer,
    params: PathParams,
    _: NoBody,
) -> Result<Json<BTreeMap<String, TimelineDeleteStatus>>, ApiError> {
    let tenant = params.parse("tenant_id")?;
    check(&bearer, Some(tenant))?;
    let deleted = map.delete_tenant(tenant).await.map_err(internal)?;
    let by_name = deleted
        .into_iter()
        .map(|(id, status)| (id.timeline_id.to_string(), status));
    Ok(Json(by_name.collect()))
}

async fn record_safekeeper_info(
    map: Map,
    bearer: Bearer,
    params: PathParams,
    JsonBody(info): JsonBody<SkTimelineInfo>,
) -> Result<Json<()>, ApiError> {
    let id = timeline_id(&params)?;
    check(&bearer, Some(id.tenant_id))?;
    find(&map, id)?
        .record_peer(NodeId(0), info)
        .await
        .map_err(internal)?;
    Ok(Json(()))
}

/// A segment of a timeline, for a safekeeper that copies it.
async fn timeline_file(map: Map, bearer: Bearer, params: PathParams) -> Result<Response, ApiError> {
    let id = timeline_id(&params)?;
    check(&bearer, Some(id.tenant_id))?;
    let name: String = params.parse("name")?;
    let timeline = find(&map, id)?;
    let segments = timeline.wal_dir().segments().map_err(internal)?;
    // Only what is found under a segment's name: a name from a request is no path.
    let wanted = |found: &&SegmentFile| found.path.file_name().is_some_and(|found| found == name.as_str());
    let no_such = || ApiError::NotFound(format!("timeline {id} has no WAL segment {name}"));
    let segment = segments.iter().find(wanted).ok_or_else(no_such)?;
    // It may have been renamed since.
    let file = tokio::fs::File::open(&segment.path)
        .await
        .map_err(|_| no_such())?;
    let body = axum::body::Body::from_stream(tokio_util::io::ReaderStream::new(file));
    Ok(body.into_response())
}

async fn pull_timeline(
    map: Map,
    bearer: Bearer,
    headers: axum::http::HeaderMap,
    JsonBody(request): JsonBody<PullTimelineRequest>,
) -> Result<Json<PullTimelineResponse>, ApiError> {
    check(&bearer, Some(request.tenant_id))?;
    let header = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.strip_prefix("Bearer "));
    let pulled = crate::pull_timeline::run(&map, &request, token).await;
    pulled.map(Json).map_err(ApiError::Internal)
}

async fn debug_dump(map: Map, bearer: Bearer, query: QueryParams) -> Result<Json<Dump>, ApiError> {
    check(&bearer, None)?;
    let selection = selection(&query)?;
    Ok(Json(dump::build(&map, selection).await))
}

fn selection(query: &QueryParams) -> Result<Selection, ApiError> {
    const KNOWN: [&str; 7] = [
        "dump_all",
        "dump_control_file",
        "dump_memory",
        "dump_disk_content",
        "dump_term_history",
        "tenant_id",
        "timeline_id",
    ];
    if let Some(unknown) = query.names().find(|name| !KNOWN.contains(name)) {
        return Err(ApiError::BadRequest(anyhow::anyhow!(
            "Unknown query parameter: {unknown}"
        )));
    }
    let part = |name: &str, default: bool| {
        let wanted = query.optional(name)?.unwrap_or(default);
        Ok::<_, ApiError>(if wanted { Part::Wanted } else { Part::Skipped })
    };
    let all = query.optional("dump_all")?.unwrap_or(false);
    Ok(Selection {
        control_file: part("dump_control_file", all)?,
        memory: part("dump_memory", all)?,
        disk_content: part("dump_disk_content", all)?,
        term_history: part("dump_term_history", true)?,
        tenant_id: query.optional("tenant_id")?,
        timeline_id: query.optional("timeline_id")?,
    })
}

/// The routes.
pub fn router(map: Arc<TimelineMap>) -> Router {
    let options = ServerOptions {
        auth: map.conf().auth.clone(),
        open_uris: &["/v1/status"],
        launch_header: None,
    };
    let routes = Router::new()
        .route("/v1/status", get(status))
        .route("/metrics", get(metrics_text))
        .route("/v1/tenant/timeline", post(create_timeline))
        .route(
            "/v1/tenant/{tenant_id}/timeline/{timeline_id}",
            get(timeline_status).delete(delete_timeline),
        )
        .route(
            "/v1/tenant/{tenant_id}/timeline/{timeline_id}/file/{name}",
            get(timeline_file),
        )
        .route("/v1/pull_timeline", post(pull_timeline))
        .route("/v1/tenant/{tenant_id}", delete(delete_tenant))
        .route(
            "/v1/record_safekeeper_info/{tenant_id}/{timeline_id}",
            post(record_safekeeper_info),
        )
        .route("/v1/debug_dump", get(debug_dump));
    utils::http::finish(routes.with_state(map), options)
}
