//! Routes of tenants.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use pageserver_api::models::{
    TenantConfigRequest, TenantConfigResponse, TenantCreateRequest, TenantInfo, TenantState,
};
use utils::http::{ApiError, Bearer, JsonBody, PathParams};
use utils::id::TenantId;

use super::{AppState, check_permission, get_tenant_error, internal, not_found, tenant_inaccessible};
use crate::server::Server;
use crate::tenant::{self, AttachError, CreateTenantError, DetachError, LoadTenantError, Tenant};

pub(super) fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/tenant", get(list).post(create))
        .route("/v1/tenant/config", put(configure))
        .route("/v1/tenant/{tenant_id}", get(show))
        .route("/v1/tenant/{tenant_id}/config", get(show_config))
        .route("/v1/tenant/{tenant_id}/attach", post(attach))
        .route("/v1/tenant/{tenant_id}/detach", post(detach))
        .route("/v1/tenant/{tenant_id}/load", post(load))
        .route("/v1/tenant/{tenant_id}/ignore", post(ignore))
}

/// The state as the API names it.
pub fn tenant_state(state: &tenant::TenantState) -> TenantState {
    match state {
        tenant::TenantState::Loading => TenantState::Loading,
        tenant::TenantState::Attaching => TenantState::Attaching,
        tenant::TenantState::Active => TenantState::Active,
        tenant::TenantState::Stopping => TenantState::Stopping,
        tenant::TenantState::Broken { .. } => TenantState::Broken,
    }
}

fn info(tenant: &Tenant) -> TenantInfo {
    let state = tenant_state(&tenant.state());
    TenantInfo {
        id: tenant.id,
        state,
        current_physical_size: None,
        has_in_progress_downloads: matches!(state, TenantState::Loading | TenantState::Attaching),
    }
}

async fn list(State(server): AppState, bearer: Bearer) -> Result<Json<Vec<TenantInfo>>, ApiError> {
    check_permission(&bearer, None)?;
    Ok(Json(
        server.tenants.list().iter().map(|tenant| info(tenant)).collect(),
    ))
}

async fn create(
    State(server): AppState,
    bearer: Bearer,
    JsonBody(request): JsonBody<Option<TenantCreateRequest>>,
) -> Result<(StatusCode, Json<TenantId>), ApiError> {
    check_permission(&bearer, None)?;
    let request = request.unwrap_or_default();
    let id = request.new_tenant_id.unwrap_or_else(TenantId::generate);
    let created = server.tenants.create_tenant(id, request.config).await;
    created.map_err(|error| match error {
        CreateTenantError::AlreadyExists { .. } => ApiError::Conflict(error.to_string()),
        other => internal(other),
    })?;
    Ok((StatusCode::CREATED, Json(id)))
}

async fn show(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
) -> Result<Json<TenantInfo>, ApiError> {
    let id: TenantId = params.parse("tenant_id")?;
    check_permission(&bearer, Some(id))?;
    let tenant = server.tenants.get(id).map_err(tenant_inaccessible)?;
    let physical_size = tenant
        .timelines()
        .iter()
        .map(|timeline| timeline.physical_size())
        .sum();
    Ok(Json(TenantInfo {
        current_physical_size: Some(physical_size),
        ..info(&tenant)
    }))
}

async fn configure(
    State(server): AppState,
    bearer: Bearer,
    JsonBody(request): JsonBody<TenantConfigRequest>,
) -> Result<Json<()>, ApiError> {
    check_permission(&bearer, Some(request.tenant_id))?;
    let tenant = server
        .tenants
        .get_active(request.tenant_id)
        .map_err(tenant_inaccessible)?;
    tenant.set_overrides(request.config).await.map_err(internal)?;
    Ok(Json(()))
}

async fn show_config(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
) -> Result<Json<TenantConfigResponse>, ApiError> {
    let id: TenantId = params.parse("tenant_id")?;
    check_permission(&bearer, Some(id))?;
    let tenant = server.tenants.get(id).map_err(get_tenant_error)?;
    Ok(Json(TenantConfigResponse {
        tenant_specific_overrides: tenant.overrides(),
        effective_config: (*tenant.config()).clone(),
    }))
}

/// The tenant that the path names, after checking that the bearer may act on it.
fn tenant_id(bearer: &Bearer, params: &PathParams) -> Result<TenantId, ApiError> {
    let id: TenantId = params.parse("tenant_id")?;
    check_permission(bearer, Some(id))?;
    Ok(id)
}

async fn attach(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
) -> Result<(StatusCode, Json<()>), ApiError> {
    let id = tenant_id(&bearer, &params)?;
    let attached = server.tenants.attach_tenant(id).await;
    attached.map_err(|error| match error {
        AttachError::NoRemoteStorage => ApiError::BadRequest(error.into()),
        AttachError::Exists(..) => ApiError::Conflict(error.to_string()),
        other => internal(other),
    })?;
    Ok((StatusCode::ACCEPTED, Json(())))
}

async fn load(
    State(server): AppState,
    bearer: Bearer,
    params: PathParams,
) -> Result<(StatusCode, Json<()>), ApiError> {
    let id = tenant_id(&bearer, &params)?;
    let loaded = server.tenants.load_tenant(id).await;
    loaded.map_err(|error| match error {
        LoadTenantError::Exists(..) => ApiError::Conflict(error.to_string()),
        LoadTenantError::NoDirectory(_) => not_found(error),
        other => internal(other),
    })?;
    Ok((StatusCode::ACCEPTED, Json(())))
}

fn detach_error(error: DetachError) -> ApiError {
    match error {
        DetachError::NoRemoteStorage => ApiError::BadRequest(error.into()),
        other => internal(other),
    }
}

/// Runs to its end even if the client does not wait for it.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this request with it.
            Err(_) => std::future::pending().await,
        },
    }
}

async fn detach(State(server): AppState, bearer: Bearer, params: PathParams) -> Result<Json<()>, ApiError> {
    let id = tenant_id(&bearer, &params)?;
    let tenants = Arc::clone(&server.tenants);
    let detached = to_the_end(async move { tenants.detach_tenant(id).await }).await;
    detached.map_err(detach_error)?;
    Ok(Json(()))
}

async fn ignore(State(server): AppState, bearer: Bearer, params: PathParams) -> Result<Json<()>, ApiError> {
    let id = tenant_id(&bearer, &params)?;
    let tenants = Arc::clone(&server.tenants);
    let ignored = to_the_end(async move { tenants.ignore_tenant(id).await }).await;
    ignored.map_err(detach_error)?;
    Ok(Json(()))
}
