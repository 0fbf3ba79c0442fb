//! `PUT /v1/failpoints`, in test builds.

use axum::Json;
use pageserver_api::models::FailpointConfig;
use utils::http::{ApiError, JsonBody};

/// Sets failpoints.
pub async fn configure(JsonBody(failpoints): JsonBody<Vec<FailpointConfig>>) -> Result<Json<()>, ApiError> {
    if !cfg!(feature = "testing") {
        return Err(ApiError::BadRequest(anyhow::anyhow!(
            "Cannot manage failpoints because pageserver was compiled without testing APIs"
        )));
    }
    for failpoint in failpoints {
        tracing::info!("setting failpoint {} to '{}'", failpoint.name, failpoint.actions);
        utils::failpoints::configure(&failpoint.name, &failpoint.actions)
            .map_err(|why| ApiError::BadRequest(anyhow::anyhow!("Failed to configure failpoints: {why}")))?;
    }
    Ok(Json(()))
}
