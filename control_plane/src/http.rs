//! Client of the daemons' management APIs.

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One daemon's management API.
pub struct ApiClient {
    client: Client<HttpConnector, Full<Bytes>>,
    address: String,
    token: Option<String>,
}

/// The daemon answered, but not with success.
#[derive(Debug, thiserror::Error)]
#[error("Error: {msg}")]
pub struct RefusedError {
    /// Status of the answer.
    pub status: StatusCode,
    /// Text of the answer.
    pub msg: String,
}

#[derive(serde::Deserialize)]
struct ErrorBody {
    msg: String,
}

impl ApiClient {
    /// A client of the API at `address` (`host:port`) that shows `token`, if there is one.
    pub fn new(address: &str, token: Option<String>) -> Self {
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        ApiClient {
            client,
            address: address.to_owned(),
            token,
        }
    }

    /// Sends a request without a body.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.request(Method::GET, path, None::<&()>).await
    }

    /// Sends a request with a JSON body.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        self.request(method, path, Some(body)).await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let uri = format!("http://{}{path}", self.address);
        let mut request = Request::builder().method(method).uri(&uri);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let raw = match body {
            Some(body) => serde_json::to_vec(body).context("cannot write request as JSON")?,
            None => Vec::new(),
        };
        let request = request
            .body(Full::new(Bytes::from(raw)))
            .context("malformed request")?;
        let response = self
            .client
            .request(request)
            .await
            .with_context(|| format!("cannot reach {uri}"))?;
        let status = response.status();
        let raw = response
            .into_body()
            .collect()
            .await
            .context("answer was cut off")?
            .to_bytes();
        if !status.is_success() {
            let msg = match serde_json::from_slice::<ErrorBody>(&raw) {
                Ok(body) => body.msg,
                Err(_) => format!("{uri} answered {status}"),
            };
            bail!(RefusedError { status, msg });
        }
        serde_json::from_slice(&raw).with_context(|| format!("{uri} answered with unexpected JSON"))
    }
}
