//! The API describes itself: `/swagger.yml` is the OpenAPI document, `/v1/doc` the same for people.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;

use crate::server::Server;

/// Written by hand beside the routes; a test compares the two.
pub(super) const OPENAPI: &str = include_str!("openapi.yml");

pub(super) fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/swagger.yml", get(openapi))
        .route("/v1/doc", get(page))
        .route("/v1/panic", get(panic))
}

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/yaml")], OPENAPI)
}

/// Without a script from elsewhere: the page must work where there is no other host to ask.
async fn page() -> Html<String> {
    let text = OPENAPI.replace('&', "&amp;").replace('<', "&lt;");
    Html(format!(
        "<!DOCTYPE html><title>Pageserver management API</title>\
         <h1>Pageserver management API</h1><p>As <a href=\"/swagger.yml\">OpenAPI document</a>:</p><pre>{text}</pre>"
    ))
}

/// Shows that a panic is logged and that the process lives on.
async fn panic() -> StatusCode {
    let outcome = tokio::spawn(async { panic!("asked for by a request to /v1/panic") }).await;
    debug_assert!(outcome.is_err());
    StatusCode::NO_CONTENT
}
