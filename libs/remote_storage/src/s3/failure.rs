//! What a failed request means: whether the service was out of order, or refuses for good.

use std::fmt::Display;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::metrics::{self, Request};
use crate::{Cause, RemoteStorageError};

/// Codes of refusals that no other attempt will change, besides those that come with status 403.
const PERMANENT_CODES: [&str; 5] = [
    "AccessDenied",
    "InvalidBucketName",
    "InvalidObjectName",
    "KeyTooLongError",
    "NoSuchBucket",
];

/// HTTP status of the service's answer, if it answered.
pub(super) fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    Some(error.raw_response()?.status().as_u16())
}

/// One request, counted when made, and what to call it if it fails.
pub(super) struct Attempt {
    request: Request,
    action: &'static str,
    object: String,
}

impl Attempt {
    pub fn new(request: Request, action: &'static str, object: impl Display) -> Self {
        metrics::REQUESTS.with_label_values(&[request.name()]).inc();
        Attempt {
            request,
            action,
            object: object.to_string(),
        }
    }

    /// The error for a request that failed as a whole.
    pub fn failed<E>(self, error: SdkError<E, HttpResponse>) -> RemoteStorageError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let is_permanent =
            status(&error) == Some(403) || error.code().is_some_and(|code| PERMANENT_CODES.contains(&code));
        // The message of the service stands in the metadata, not in the chain of causes.
        let told = error.code().map(|code| match error.message() {
            Some(message) => format!("{code}: {message}"),
            None => code.to_owned(),
        });
        let cause = match told {
            Some(told) => told.into(),
            None => error
                .into_source()
                .unwrap_or_else(|error| error.to_string().into()),
        };
        self.finish(is_permanent, cause)
    }

    /// The error for a part of a request that the service answers by a code.
    pub fn failed_with_code(self, code: Option<&str>, message: Option<&str>) -> RemoteStorageError {
        let is_permanent = code.is_some_and(|code| PERMANENT_CODES.contains(&code));
        let told = format!("{}: {}", code.unwrap_or("no code"), message.unwrap_or_default());
        self.finish(is_permanent, told.into())
    }

    fn finish(self, is_permanent: bool, cause: Cause) -> RemoteStorageError {
        metrics::FAILURES.with_label_values(&[self.request.name()]).inc();
        if is_permanent {
            return RemoteStorageError::Refused {
                action: self.action,
                object: self.object,
                source: cause,
            };
        }
        RemoteStorageError::Io {
            action: self.action,
            object: self.object,
            source: std::io::Error::other(cause),
        }
    }
}
