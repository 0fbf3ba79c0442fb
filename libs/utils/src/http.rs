//! The common side of the HTTP management servers: error bodies, request ids, bearer tokens.
//!
//! Handlers return `Result<Json<T>, ApiError>`; the status and the text of a failure are chosen here
//! and nowhere else. [`finish`] wraps a router with what every server has in common.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, middleware};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument;

use crate::auth::{AuthError, Claims, JwtAuth};

/// A request that could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The request is malformed.
    #[error("{0:#}")]
    BadRequest(anyhow::Error),
    /// No valid token.
    #[error("Unauthorized: {0}")]
    Unauthorized(String),
    /// The token does not allow this.
    #[error("Forbidden: {0}")]
    Forbidden(String),
    /// What the request names is not here.
    #[error("NotFound: {0}")]
    NotFound(String),
    /// What the request wants to make is there already, or in use.
    #[error("Conflict: {0}")]
    Conflict(String),
    /// The server failed. Carries the cause chain.
    #[error("{0:#}")]
    Internal(anyhow::Error),
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            ApiError::BadRequest(_) => StatusCode::BAD_REQUEST,
            ApiError::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            ApiError::Forbidden(_) => StatusCode::FORBIDDEN,
            ApiError::NotFound(_) => StatusCode::NOT_FOUND,
            ApiError::Conflict(_) => StatusCode::CONFLICT,
            ApiError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Malformed | AuthError::TenantMissing => ApiError::Unauthorized(error.to_string()),
            _ => ApiError::Forbidden(error.to_string()),
        }
    }
}

/// Body of every answer that is not a success.
#[derive(Debug, Serialize)]
struct ErrorBody {
    msg: String,
}

/// A response with `status` and a JSON body `{"msg": ...}`.
pub fn error_response(status: StatusCode, msg: impl Into<String>) -> Response {
    (status, Json(ErrorBody { msg: msg.into() })).into_response()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match &self {
            // Only failures of the server itself want a person's eye.
            ApiError::Internal(error) => {
                tracing::error!("Error processing HTTP request: InternalServerError({error:#})");
            }
            _ => tracing::info!("Error processing HTTP request: {self}"),
        }
        error_response(self.status(), self.to_string())
    }
}

/// The body of a request, parsed as JSON whatever its content type. An empty body reads as `null`.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let raw = axum::body::Bytes::from_request(request, state)
            .await
            .map_err(|error| ApiError::BadRequest(anyhow::anyhow!("cannot read request body: {error}")))?;
        let text: &[u8] = if raw.is_empty() { b"null" } else { &raw };
        serde_json::from_slice(text).map(JsonBody).map_err(|error| {
            ApiError::BadRequest(anyhow::Error::new(error).context("Failed to parse json request"))
        })
    }
}

/// Path parameters by name; what cannot be parsed is named in the error.
pub struct PathParams(std::collections::HashMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for PathParams {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, ApiError> {
        Path::from_request_parts(parts, state)
            .await
            .map(|Path(params)| PathParams(params))
            .map_err(|error| ApiError::BadRequest(anyhow::anyhow!("{error}")))
    }
}

impl PathParams {
    /// The parameter `name` as a `T`.
    pub fn parse<T: std::str::FromStr>(&self, name: &str) -> Result<T, ApiError> {
        self.0
            .get(name)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| ApiError::BadRequest(anyhow::anyhow!("failed to parse {name}")))
    }
}

/// Query parameters, checked one by one as the interface says.
pub struct QueryParams(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for QueryParams {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(params)| QueryParams(params))
            .map_err(|error| ApiError::BadRequest(anyhow::anyhow!("cannot parse query: {error}")))
    }
}

impl QueryParams {
    /// Names of the parameters given, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// The parameter `name` as a `T`, if given.
    pub fn optional<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ApiError>
    where
        T::Err: std::fmt::Display,
    {
        let bad = |text: String| ApiError::BadRequest(anyhow::anyhow!(text));
        let mut values = self
            .0
            .iter()
            .filter(|(given, _)| given == name)
            .map(|(_, value)| value);
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(bad(format!("param {name} specified more than once")));
        }
        value
            .parse()
            .map(Some)
            .map_err(|error| bad(format!("cannot parse query param {name}: {error}")))
    }

    /// The parameter `name` as a `T`.
    pub fn required<T: std::str::FromStr>(&self, name: &str) -> Result<T, ApiError>
    where
        T::Err: std::fmt::Display,
    {
        self.optional(name)?
            .ok_or_else(|| ApiError::BadRequest(anyhow::anyhow!("no {name} specified in query parameters")))
    }
}

/// Refuses a request that has a body, as deletes must.
pub struct NoBody;

impl<S: Send + Sync> FromRequest<S> for NoBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match axum::body::Bytes::from_request(request, state).await {
            Ok(body) if body.is_empty() => Ok(NoBody),
            _ => Err(ApiError::BadRequest(anyhow::anyhow!("Unexpected request body"))),
        }
    }
}

/// Who is asking: `None` where authentication is off.
#[derive(Clone, Debug)]
pub struct Bearer(pub Option<Claims>);

impl<S: Send + Sync> FromRequestParts<S> for Bearer {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        _state: &S,
    ) -> Result<Self, ApiError> {
        // Missing only on the routes that are free of authentication.
        Ok(parts.extensions.get::<Bearer>().cloned().unwrap_or(Bearer(None)))
    }
}

/// What differs between the servers in the parts they share.
pub struct ServerOptions {
    /// Verifies tokens; `None` turns authentication off.
    pub auth: Option<Arc<JwtAuth>>,
    /// Exact URIs that need no token.
    pub open_uris: &'static [&'static str],
    /// A header every response carries, unless a handler set it.
    pub launch_header: Option<(HeaderName, HeaderValue)>,
}

fn bearer_token(request: &Request) -> Result<&str, ApiError> {
    let unauthorized = |text: &str| ApiError::Unauthorized(text.to_owned());
    let value = request
        .headers()
        .get(header::AUTHORIZATION)
        .ok_or_else(|| unauthorized("missing authorization header"))?;
    let text = value
        .to_str()
        .map_err(|_| unauthorized("malformed authorization header"))?;
    text.strip_prefix("Bearer ")
        .ok_or_else(|| unauthorized("malformed authorization header"))
}

async fn authenticate(options: Arc<ServerOptions>, mut request: Request, next: Next) -> Response {
    if let Some(auth) = &options.auth {
        let uri = request.uri().to_string();
        if !options.open_uris.contains(&uri.as_str()) {
            let claims = bearer_token(&request).and_then(|token| Ok(auth.decode(token)?));
            match claims {
                Ok(claims) => request.extensions_mut().insert(Bearer(Some(claims))),
                Err(error) => return error.into_response(),
            };
        }
    }
    next.run(request).await
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

async fn identify(options: Arc<ServerOptions>, request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).cloned().unwrap_or_else(|| {
        let text = uuid::Uuid::new_v4().to_string();
        HeaderValue::from_str(&text).expect("a UUID is printable ASCII")
    });
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = tracing::info_span!("request", %method, %path, request_id = ?id);
    let mut response = next.run(request).instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, id);
    if let Some((name, value)) = &options.launch_header {
        response
            .headers_mut()
            .entry(name)
            .or_insert_with(|| value.clone());
    }
    response
}

/// Adds to `router` what every server has: `{"msg":"page not found"}` for unknown routes, tokens,
/// request ids.
pub fn finish(router: Router, options: ServerOptions) -> Router {
    let options = Arc::new(options);
    let for_auth = Arc::clone(&options);
    router
        .fallback(|| async { error_response(StatusCode::NOT_FOUND, "page not found") })
        .layer(middleware::from_fn(move |request, next| {
            authenticate(Arc::clone(&for_auth), request, next)
        }))
        .layer(middleware::from_fn(move |request, next| {
            identify(Arc::clone(&options), request, next)
        }))
}

/// Drops the trailing `/` of a request's path. Apply *around* a finished router, before routing:
/// `ServiceBuilder` or [`serve`] do.
fn without_trailing_slash<B>(mut request: axum::http::Request<B>) -> axum::http::Request<B> {
    let path = request.uri().path();
    if path.len() > 1 && path.ends_with('/') {
        let trimmed = path.trim_end_matches('/');
        let path_and_query = match request.uri().query() {
            Some(query) => format!("{trimmed}?{query}"),
            None => trimmed.to_owned(),
        };
        if let Ok(uri) = path_and_query.parse::<Uri>() {
            *request.uri_mut() = uri;
        }
    }
    request
}

/// Serves `router` on `listener` until `cancel` is cancelled; requests under way are finished.
pub async fn serve(
    listener: tokio::net::TcpListener,
    router: Router,
    cancel: tokio_util::sync::CancellationToken,
) -> std::io::Result<()> {
    let service = tower::ServiceExt::<Request<Body>>::map_request(router, without_trailing_slash);
    let make = tower::make::Shared::new(service);
    axum::serve(listener, make)
        .with_graceful_shutdown(async move { cancel.cancelled().await })
        .await
}

/// The metrics of `registry` in Prometheus' text format.
pub fn metrics_response(families: &[prometheus::proto::MetricFamily]) -> Response {
    let mut text = Vec::new();
    match prometheus::Encoder::encode(&prometheus::TextEncoder::new(), families, &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => ApiError::Internal(error.into()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    fn router(auth: Option<Arc<JwtAuth>>) -> Router {
        let router = Router::new()
            .route("/v1/status", get(|| async { Json(1) }))
            .route(
                "/v1/number/{n}",
                get(|params: PathParams, query: QueryParams| async move {
                    let n: u32 = params.parse("n")?;
                    let add: Option<u32> = query.optional("add")?;
                    Ok::<_, ApiError>(Json(n + add.unwrap_or(0)))
                }),
            );
        finish(
            router,
            ServerOptions {
                auth,
                open_uris: &["/v1/status"],
                launch_header: None,
            },
        )
    }

    async fn ask(uri: &str) -> (StatusCode, String) {
        let request = without_trailing_slash(Request::get(uri).body(Body::empty()).unwrap());
        let response = router(None).oneshot(request).await.unwrap();
        let status = response.status();
        assert!(response.headers().contains_key("x-request-id"));
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn errors_have_the_documented_form() {
        let check = |got: (StatusCode, String), status: u16, body: &str| {
            assert_eq!((got.0.as_u16(), got.1.as_str()), (status, body));
        };
        check(ask("/v1/status/").await, 200, "1");
        check(ask("/nowhere").await, 404, r#"{"msg":"page not found"}"#);
        check(ask("/v1/number/2/?add=3").await, 200, "5");
        check(ask("/v1/number/x").await, 400, r#"{"msg":"failed to parse n"}"#);
        let twice = r#"{"msg":"param add specified more than once"}"#;
        check(ask("/v1/number/2?add=1&add=1").await, 400, twice);
    }
}
