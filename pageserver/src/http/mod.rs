//! The management API (its document, sections 1 and 2).
//!
//! Handlers translate: requests into calls of the tenants and timelines, results into models, errors
//! into statuses. What is done, and whether it may be done, is decided elsewhere.

mod doc;
mod failpoints;
mod layer;
mod tenant;
mod timeline;

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use axum::routing::{get, put};
use axum::{Json, Router};
use pageserver_api::models::StatusResponse;
use utils::http::{ApiError, Bearer, ServerOptions, metrics_response};
use utils::id::TenantId;

pub use self::tenant::tenant_state;
use crate::metrics;
use crate::server::{LookupError, NewClusterError, Server};
use crate::tenant::{CreateTimelineError, GetTenantError};

type AppState = State<Arc<Server>>;

/// The routes of the API; `launched_at` is the start of the process, as text.
pub fn router(server: Arc<Server>, launched_at: &str) -> Router {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/metrics", get(show_metrics))
        .route("/v1/failpoints", put(failpoints::configure))
        .merge(doc::routes())
        .merge(tenant::routes())
        .merge(timeline::routes())
        .merge(layer::routes())
        .with_state(Arc::clone(&server));
    let launched_at = HeaderValue::from_str(launched_at).expect("a point in time is printable ASCII");
    let options = ServerOptions {
        auth: server.auth.clone(),
        open_uris: &["/v1/status", "/v1/doc", "/swagger.yml"],
        launch_header: Some((
            HeaderName::from_static("pageserver_launch_timestamp"),
            launched_at,
        )),
    };
    utils::http::finish(router, options)
}

async fn status(State(server): AppState) -> Json<StatusResponse> {
    Json(StatusResponse { id: server.config.id })
}

async fn show_metrics(State(server): AppState) -> Response {
    metrics_response(&metrics::gather(&server))
}

/// Whether the bearer may act on the tenant, or on the server as a whole (`None`).
fn check_permission(bearer: &Bearer, tenant: Option<TenantId>) -> Result<(), ApiError> {
    match &bearer.0 {
        Some(claims) => Ok(claims.check_pageserver(tenant)?),
        None => Ok(()),
    }
}

fn internal(error: impl Into<anyhow::Error>) -> ApiError {
    ApiError::Internal(error.into())
}

fn not_found(error: impl std::fmt::Display) -> ApiError {
    ApiError::NotFound(error.to_string())
}

fn get_tenant_error(error: GetTenantError) -> ApiError {
    match error {
        GetTenantError::NotFound(id) => not_found(LookupError::NoTenant(id)),
        GetTenantError::NotActive { .. } => not_found(error),
    }
}

/// For routes whose interface knows no 404.
fn tenant_inaccessible(error: GetTenantError) -> ApiError {
    internal(match error {
        GetTenantError::NotFound(id) => anyhow::Error::new(LookupError::NoTenant(id)),
        GetTenantError::NotActive { .. } => anyhow::Error::new(error),
    })
}

fn create_timeline_error(error: CreateTimelineError) -> ApiError {
    match error {
        CreateTimelineError::TenantNotActive { .. } => not_found(error),
        other => internal(other),
    }
}

fn new_cluster_error(error: NewClusterError) -> ApiError {
    match error {
        NewClusterError::Timeline(error) => create_timeline_error(error),
        other => internal(other),
    }
}

#[cfg(test)]
mod tests;
