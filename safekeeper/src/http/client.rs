//! The little of an HTTP client that one safekeeper needs to talk to another.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

/// Longest JSON answer that is read, in bytes.
const JSON_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A request to another safekeeper failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL is none of a plain HTTP service.
    #[error("{0} is not an http URL")]
    Url(String),
    /// Nobody answers.
    #[error("cannot connect to {host}")]
    Connect {
        /// The host.
        host: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The conversation broke off.
    #[error("request to {url} failed")]
    Http {
        /// What was asked for.
        url: String,
        /// The cause.
        source: hyper::Error,
    },
    /// The answer is an error.
    #[error("{url} answered {status}: {text}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: StatusCode,
        /// The body, shortened.
        text: String,
    },
    /// The answer is not what it should be.
    #[error("malformed answer from {url}")]
    Malformed {
        /// What was asked for.
        url: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// The answer is too long.
    #[error("answer from {0} is too long")]
    TooLong(String),
}

impl ClientError {
    /// Whether what was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ClientError::Status { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}

/// Asks for `path` of the service at the base URL `base`, with a bearer token if there is one.
pub async fn get(base: &str, path: &str, token: Option<&str>) -> Result<Response<Incoming>, ClientError> {
    let url = format!("{}{path}", base.trim_end_matches('/'));
    let uri: Uri = url.parse().map_err(|_| ClientError::Url(url.clone()))?;
    let is_http = uri.scheme_str() == Some("http");
    let host = uri
        .host()
        .filter(|_| is_http)
        .ok_or_else(|| ClientError::Url(url.clone()))?;
    let address = (host, uri.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address)
        .await
        .map_err(|source| ClientError::Connect {
            host: host.to_owned(),
            source,
        })?;
    let http_error = |source| ClientError::Http {
        url: url.clone(),
        source,
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(http_error)?;
    // Ends with the request; its error is the request's.
    tokio::spawn(connection);
    let path_and_query = uri.path_and_query().map_or("/", |part| part.as_str());
    let mut request = Request::get(path_and_query).header(header::HOST, host);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|_| ClientError::Url(url.clone()))?;
    let response = sender.send_request(request).await.map_err(http_error)?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let body = read_body(response, &url).await?;
    let text = String::from_utf8_lossy(&body).chars().take(1000).collect();
    Err(ClientError::Status { url, status, text })
}

/// The same, with a JSON answer.
pub async fn get_json<T: DeserializeOwned>(
    base: &str,
    path: &str,
    token: Option<&str>,
) -> Result<T, ClientError> {
    let response = get(base, path, token).await?;
    let body = read_body(response, base).await?;
    serde_json::from_slice(&body).map_err(|source| ClientError::Malformed {
        url: format!("{base}{path}"),
        source,
    })
}

async fn read_body(mut response: Response<Incoming>, url: &str) -> Result<Vec<u8>, ClientError> {
    let mut body = Vec::new();
    while let Some(piece) = next_piece(&mut response, url).await? {
        if body.len() + piece.len() > JSON_BYTES_MAX {
            return Err(ClientError::TooLong(url.to_owned()));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// The next piece of an answer's body; `None` at its end.
pub async fn next_piece(response: &mut Response<Incoming>, url: &str) -> Result<Option<Bytes>, ClientError> {
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame.map_err(|source| ClientError::Http {
            url: url.to_owned(),
            source,
        })?;
        if let Ok(piece) = frame.into_data() {
            return Ok(Some(piece));
        }
    }
    Ok(None)
}
