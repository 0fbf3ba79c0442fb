//! A bucket of a service that speaks S3.
//!
//! * Keys are `<prefix>/<path>`; without a prefix they begin with `/`.
//! * Objects up to [`PART_BYTES`] are one request, larger ones a multipart upload whose parts go one after the
//!   other; an upload that fails or is dropped is aborted, so that the service does not keep its parts.
//! * Nothing is retried here, and no request waits longer than the configured time. A download may take longer
//!   as a whole, but never that long for its next piece.
//! * At most `concurrency_limit` requests are under way; a download counts until its contents are read or
//!   dropped.
//! * Nothing relies on conditional requests: not every service honours them.
//!
//! Credentials are those of the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`.

mod failure;
mod metrics;
mod multipart;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use aws_smithy_http_client::tls;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::failure::{Attempt, status};
use self::metrics::Request;
use crate::{ByteStream, Download, Listing, RemotePath, RemoteStorageError, S3Config, StorageMetadata};

/// Objects longer than this are uploaded in parts of this length. A WAL segment is one request.
const PART_BYTES: u64 = 16 * 1024 * 1024;
/// Objects that one request may delete.
const DELETE_BATCH_MAX: usize = 1000;

/// See the module's head.
#[derive(Clone, Debug)]
pub struct S3 {
    client: Client,
    config: Arc<S3Config>,
    requests: Arc<Semaphore>,
}

fn credentials() -> Result<Credentials, RemoteStorageError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let needed = |name: &str| {
        let missing = || RemoteStorageError::Unusable(format!("S3 needs {name} in the environment"));
        variable(name).ok_or_else(missing)
    };
    Ok(Credentials::new(
        needed("AWS_ACCESS_KEY_ID")?,
        needed("AWS_SECRET_ACCESS_KEY")?,
        variable("AWS_SESSION_TOKEN"),
        None,
        "environment",
    ))
}

/// Only one provider of cryptography is linked, and none is set up for a service on plain HTTP.
fn http_client(endpoint: Option<&str>) -> SharedHttpClient {
    let builder = aws_smithy_http_client::Builder::new();
    if endpoint.is_some_and(|url| url.starts_with("http://")) {
        return builder.build_http();
    }
    let ring = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
    builder.tls_provider(ring).build_https()
}

fn timeouts(timeout: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(timeout.min(Duration::from_secs(10)))
        .operation_timeout(timeout)
        .build()
}

impl S3 {
    /// A client for the bucket of `config`. Sends nothing.
    pub(crate) fn new(config: &S3Config) -> Result<Self, RemoteStorageError> {
        let mut builder = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(config.region.clone()))
            .credentials_provider(credentials()?)
            .http_client(http_client(config.endpoint.as_deref()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts(config.timeout))
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .force_path_style(config.endpoint.is_some());
        builder.set_endpoint_url(config.endpoint.clone());
        Ok(S3 {
            client: Client::from_conf(builder.build()),
            config: Arc::new(config.clone()),
            requests: Arc::new(Semaphore::new(config.concurrency_limit.get())),
        })
    }

    fn key(&self, path: &RemotePath) -> String {
        format!("{}{path}", self.key_prefix())
    }

    /// What stands in front of a path to make it a key.
    fn key_prefix(&self) -> String {
        format!("{}/", self.config.prefix.as_deref().unwrap_or_default())
    }

    /// The path of a key, if it is one of ours. Keys of groups end with `/`.
    fn path(&self, key: &str) -> Option<RemotePath> {
        let path = key.strip_prefix(&self.key_prefix())?;
        path.strip_suffix('/').unwrap_or(path).parse().ok()
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.requests).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }

    pub(crate) async fn upload(
        &self,
        path: &RemotePath,
        contents: ByteStream,
        length: u64,
        metadata: &StorageMetadata,
    ) -> Result<(), RemoteStorageError> {
        let _permit = self.permit().await;
        let mut parts = multipart::Parts::new(path, contents);
        if length > PART_BYTES {
            return self.upload_parts(path, parts, length, metadata).await;
        }
        let whole = parts.next().await?;
        parts.check_end(length).await?;
        let put = self
            .client
            .put_object()
            .bucket(&self.config.bucket)
            .key(self.key(path))
            .set_metadata(Some(metadata.clone().into_iter().collect()))
            .body(whole.into());
        let attempt = Attempt::new(Request::PutObject, "upload", path);
        put.send().await.map_err(|error| attempt.failed(error))?;
        Ok(())
    }

    pub(crate) async fn download(
        &self,
        path: &RemotePath,
        range: Option<Range<u64>>,
    ) -> Result<Download, RemoteStorageError> {
        if range.as_ref().is_some_and(|range| range.is_empty()) {
            return self.empty_part(path).await;
        }
        let permit = self.permit().await;
        // The last byte is included.
        let range = range.map(|range| format!("bytes={}-{}", range.start, range.end - 1));
        let get = self
            .client
            .get_object()
            .bucket(&self.config.bucket)
            .key(self.key(path))
            .set_range(range);
        let attempt = Attempt::new(Request::GetObject, "download", path);
        match get.send().await {
            Ok(output) => Ok(self.contents(output, permit)),
            // The range begins behind the end.
            Err(error) if status(&error) == Some(416) => {
                drop(permit);
                self.empty_part(path).await
            }
            Err(SdkError::ServiceError(refusal)) if refusal.err().is_no_such_key() => {
                Err(RemoteStorageError::NotFound(path.clone()))
            }
            Err(error) => Err(attempt.failed(error)),
        }
    }

    /// No bytes of an object, if it is there.
    async fn empty_part(&self, path: &RemotePath) -> Result<Download, RemoteStorageError> {
        let _permit = self.permit().await;
        let head = self
            .client
            .head_object()
            .bucket(&self.config.bucket)
            .key(self.key(path));
        let attempt = Attempt::new(Request::GetObject, "examine", path);
        match head.send().await {
            Ok(head) => Ok(Download {
                contents: Box::pin(futures::stream::empty()),
                metadata: head.metadata.unwrap_or_default().into_iter().collect(),
            }),
            Err(SdkError::ServiceError(refusal)) if refusal.err().is_not_found() => {
                Err(RemoteStorageError::NotFound(path.clone()))
            }
            Err(error) => Err(attempt.failed(error)),
        }
    }

    fn contents(&self, output: GetObjectOutput, permit: OwnedSemaphorePermit) -> Download {
        let metadata = output.metadata.unwrap_or_default().into_iter().collect();
        let timeout = self.config.timeout;
        let pieces =
            futures::stream::try_unfold((output.body, permit), move |(mut body, permit)| async move {
                let piece = tokio::time::timeout(timeout, body.next())
                    .await
                    .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "download stalls"))?;
                let piece = piece.transpose().map_err(std::io::Error::other)?;
                Ok(piece.map(|piece| (piece, (body, permit))))
            });
        Download {
            contents: Box::pin(pieces),
            metadata,
        }
    }

    pub(crate) async fn list(&self, prefix: Option<&RemotePath>) -> Result<Listing, RemoteStorageError> {
        let _permit = self.permit().await;
        let key_prefix = match prefix {
            Some(prefix) => format!("{}/", self.key(prefix)),
            None => self.key_prefix(),
        };
        let mut listing = Listing::default();
        let mut continuation = None;
        loop {
            let page = self
                .client
                .list_objects_v2()
                .bucket(&self.config.bucket)
                .prefix(&key_prefix)
                .delimiter("/")
                .set_continuation_token(continuation);
            let attempt = Attempt::new(Request::ListObjects, "list", &key_prefix);
            let page = page.send().await.map_err(|error| attempt.failed(error))?;
            let groups = page.common_prefixes().iter().filter_map(|group| group.prefix());
            listing.prefixes.extend(groups.filter_map(|key| self.path(key)));
            for object in page.contents() {
                // Keys that are no paths were not made by us.
                let path = object.key().and_then(|key| self.path(key));
                let size = object.size().and_then(|size| u64::try_from(size).ok());
                listing.objects.extend(path.zip(size));
            }
            continuation = page.next_continuation_token;
            if continuation.is_none() {
                break;
            }
        }
        listing.prefixes.sort();
        listing.objects.sort();
        Ok(listing)
    }

    pub(crate) async fn delete(&self, paths: &[RemotePath]) -> Result<(), RemoteStorageError> {
        let _permit = self.permit().await;
        for batch in paths.chunks(DELETE_BATCH_MAX) {
            let what = match batch {
                [one] => one.to_string(),
                several => format!("{} and {} more objects", several[0], several.len() - 1),
            };
            let attempt = Attempt::new(Request::DeleteObject, "delete", &what);
            let keys = batch.iter().map(|path| {
                let key = ObjectIdentifier::builder().key(self.key(path));
                key.build().expect("the key is set")
            });
            let wanted = Delete::builder().set_objects(Some(keys.collect())).quiet(true);
            let delete = self
                .client
                .delete_objects()
                .bucket(&self.config.bucket)
                .delete(wanted.build().expect("the objects are set"));
            let done = delete.send().await.map_err(|error| attempt.failed(error))?;
            let failures = done.errors().iter();
            let mut failures = failures.filter(|failure| failure.code() != Some("NoSuchKey"));
            if let Some(failure) = failures.next() {
                let attempt = Attempt::new(Request::DeleteObject, "delete", failure.key().unwrap_or(&what));
                return Err(attempt.failed_with_code(failure.code(), failure.message()));
            }
        }
        Ok(())
    }
}
