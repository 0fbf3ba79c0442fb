//! Counters of requests, in the registry that all metrics of a process share.

use std::sync::LazyLock;

use prometheus::{IntCounterVec, register_int_counter_vec};

/// Kinds of requests, as the counters have them.
#[derive(Clone, Copy)]
pub(super) enum Request {
    GetObject,
    PutObject,
    DeleteObject,
    ListObjects,
}

impl Request {
    pub fn name(self) -> &'static str {
        match self {
            Request::GetObject => "get_object",
            Request::PutObject => "put_object",
            Request::DeleteObject => "delete_object",
            Request::ListObjects => "list_objects",
        }
    }
}

pub(super) static REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "remote_storage_s3_requests_count",
        "Requests to S3",
        &["request_type"]
    )
    .expect("the metric is registered once")
});

pub(super) static FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "remote_storage_s3_failures_count",
        "Requests to S3 that failed",
        &["request_type"]
    )
    .expect("the metric is registered once")
});
