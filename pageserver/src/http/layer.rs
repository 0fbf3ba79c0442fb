//! Routes of the layers of a timeline: where they are, and moving them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use pageserver_api::layer_name::LayerFileName;
use pageserver_api::models::{DownloadLayersInfo, DownloadLayersRequest, LayerMapInfo};
use utils::http::{ApiError, Bearer, JsonBody, PathParams, QueryParams};

use super::timeline::find;
use super::{AppState, internal, not_found};
use crate::layers::LayerError;
use crate::layers::access::ResetStats;
use crate::layers::file::Layer;
use crate::server::Server;
use crate::timeline::Timeline;
use crate::timeline::eviction::{LayerMoved, evict, fetch};

pub(super) fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route(
            "/v1/tenant/{tenant_id}/timeline/{timeline_id}/layer",
            get(list_layers),
        )
        .route(
            "/v1/tenant/{tenant_id}/timeline/{timeline_id}/layer/{layer_file_name}",
            get(download_layer).delete(evict_layer),
        )
        .route(
            "/v1/tenant/{tenant_id}/timeline/{timeline_id}/download_remote_layers",
            get(show_download).post(start_download),
        )
}

fn reset_stats(query: &QueryParams) -> Result<ResetStats, ApiError> {
    let given: Option<String> = query.optional("reset")?;
    match given.as_deref() {
        None | Some("NoReset") => Ok(ResetStats::Nothing),
        Some("JustTaskKindFlags") => Ok(ResetStats::TaskKinds),
        Some("AllStats") => Ok(ResetStats::All),
        Some(other) => Err(ApiError::BadRequest(anyhow::anyhow!(
            "cannot parse query param reset: '{other}' is none of NoReset, JustTaskKindFlags, AllStats"
        ))),
    }
}

async fn list_layers(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
    query: QueryParams,
) -> Result<Json<LayerMapInfo>, ApiError> {
    let timeline = find(&server, &bearer, &params)?;
    Ok(Json(timeline.layer_map_info(reset_stats(&query)?)))
}

/// The layer that the path names, or the response that there is none.
fn find_layer(timeline: &Timeline, params: &PathParams) -> Result<Result<Arc<Layer>, Response>, ApiError> {
    let text: String = params.parse("layer_file_name")?;
    let name: Option<LayerFileName> = text.parse().ok();
    let found = name.and_then(|name| timeline.find_layer(&name));
    Ok(found.ok_or_else(|| {
        let message = format!("Layer {}/{text} not found", timeline.id());
        (StatusCode::BAD_REQUEST, Json(message)).into_response()
    }))
}

fn moved(result: Result<LayerMoved, LayerError>) -> Result<Response, ApiError> {
    Ok(match result.map_err(internal)? {
        LayerMoved::Yes => Json(()).into_response(),
        LayerMoved::No => StatusCode::NOT_MODIFIED.into_response(),
    })
}

async fn download_layer(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
) -> Result<Response, ApiError> {
    let timeline = find(&server, &bearer, &params)?;
    match find_layer(&timeline, &params)? {
        Ok(layer) => moved(fetch(&layer).await),
        Err(response) => Ok(response),
    }
}

async fn evict_layer(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
) -> Result<Response, ApiError> {
    let timeline = find(&server, &bearer, &params)?;
    match find_layer(&timeline, &params)? {
        Ok(layer) => moved(evict(layer).await),
        Err(response) => Ok(response),
    }
}

async fn start_download(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
    JsonBody(request): JsonBody<DownloadLayersRequest>,
) -> Result<(StatusCode, Json<DownloadLayersInfo>), ApiError> {
    let timeline = find(&server, &bearer, &params)?;
    Ok(
        match timeline.start_download_all(request.max_concurrent_downloads) {
            Ok(started) => (StatusCode::ACCEPTED, Json(started)),
            Err(running) => (StatusCode::CONFLICT, Json(running)),
        },
    )
}

async fn show_download(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
) -> Result<Json<DownloadLayersInfo>, ApiError> {
    let timeline = find(&server, &bearer, &params)?;
    let info = timeline.download_all_info();
    info.map(Json)
        .ok_or_else(|| not_found("task never started since last pageserver process start"))
}
