//! Metrics of a timeline's remote half (management API, section 4).

use std::sync::LazyLock;
use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts};
use utils::id::TenantTimelineId;

use super::{TIMELINE_LABELS, registered};

const KIND_LABELS: [&str; 4] = ["tenant_id", "timeline_id", "file_kind", "op_kind"];

static UNFINISHED: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "pageserver_remote_timeline_client_calls_unfinished",
        "Remote operations started and not ended",
    );
    registered(IntGaugeVec::new(opts, &KIND_LABELS))
});
static STARTED: LazyLock<HistogramVec> = LazyLock::new(|| {
    let opts = HistogramOpts::new(
        "pageserver_remote_timeline_client_calls_started",
        "Remote operations under way when another one starts",
    );
    let buckets = [
        0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 40.0, 60.0, 80.0, 100.0, 500.0,
    ];
    registered(HistogramVec::new(opts.buckets(buckets.to_vec()), &KIND_LABELS))
});
static SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let opts = HistogramOpts::new(
        "pageserver_remote_operation_seconds",
        "Time of attempts of remote operations",
    );
    let labels = ["tenant_id", "timeline_id", "file_kind", "op_kind", "status"];
    registered(HistogramVec::new(opts, &labels))
});
static BYTES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "pageserver_remote_timeline_client_bytes_total",
        "Bytes of files that were brought to object storage, or from there",
    );
    registered(IntCounterVec::new(opts, &KIND_LABELS))
});
static PHYSICAL_SIZE: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let opts = Opts::new(
        "pageserver_remote_physical_size",
        "Bytes of layers that the durable index names",
    );
    registered(IntGaugeVec::new(opts, &TIMELINE_LABELS))
});

/// What an operation is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileKind {
    /// A layer file.
    Layer,
    /// `index_part.json`.
    Index,
}

impl FileKind {
    const ALL: [FileKind; 2] = [FileKind::Layer, FileKind::Index];

    fn label(self) -> &'static str {
        match self {
            FileKind::Layer => "layer",
            FileKind::Index => "index",
        }
    }
}

/// What an operation does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OpKind {
    /// To object storage.
    Upload,
    /// From object storage.
    Download,
    /// In object storage.
    Delete,
}

impl OpKind {
    const ALL: [OpKind; 3] = [OpKind::Upload, OpKind::Download, OpKind::Delete];

    fn label(self) -> &'static str {
        match self {
            OpKind::Upload => "upload",
            OpKind::Download => "download",
            OpKind::Delete => "delete",
        }
    }
}

/// The series of one timeline, which vanish with it.
#[derive(Debug)]
pub struct RemoteMetrics {
    tenant: String,
    timeline: String,
}

/// An operation under way; ends when dropped.
#[derive(Debug)]
pub struct Unfinished(IntGauge);

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl RemoteMetrics {
    /// Of the timeline `id`.
    pub fn new(id: TenantTimelineId) -> Self {
        RemoteMetrics {
            tenant: id.tenant_id.to_string(),
            timeline: id.timeline_id.to_string(),
        }
    }

    fn labels(&self, file: FileKind, op: OpKind) -> [&str; 4] {
        [&self.tenant, &self.timeline, file.label(), op.label()]
    }

    /// Counts an operation for as long as the result is held.
    pub fn begin(&self, file: FileKind, op: OpKind) -> Unfinished {
        let gauge = UNFINISHED.with_label_values(&self.labels(file, op));
        STARTED
            .with_label_values(&self.labels(file, op))
            .observe(gauge.get() as f64);
        gauge.inc();
        Unfinished(gauge)
    }

    /// Notes how an attempt ended.
    pub fn observe<T, E>(&self, file: FileKind, op: OpKind, result: &Result<T, E>, took: Duration) {
        let [tenant, timeline, file, op] = self.labels(file, op);
        let status = if result.is_ok() { "success" } else { "failure" };
        SECONDS
            .with_label_values(&[tenant, timeline, file, op, status])
            .observe(took.as_secs_f64());
    }

    /// Counts the bytes of a file that has gone its way.
    pub fn add_bytes(&self, file: FileKind, op: OpKind, bytes: u64) {
        BYTES.with_label_values(&self.labels(file, op)).inc_by(bytes);
    }

    /// Sets the bytes of all layers that the durable index names.
    pub fn set_physical_size(&self, bytes: u64) {
        PHYSICAL_SIZE
            .with_label_values(&[&self.tenant, &self.timeline])
            .set(bytes as i64);
    }
}

impl Drop for RemoteMetrics {
    fn drop(&mut self) {
        // Errors mean that there is no such series.
        let _ = PHYSICAL_SIZE.remove_label_values(&[&self.tenant, &self.timeline]);
        for (file, op) in FileKind::ALL
            .into_iter()
            .flat_map(|file| OpKind::ALL.map(|op| (file, op)))
        {
            let labels = self.labels(file, op);
            let _ = UNFINISHED.remove_label_values(&labels);
            let _ = STARTED.remove_label_values(&labels);
            let _ = BYTES.remove_label_values(&labels);
            for status in ["success", "failure"] {
                let [tenant, timeline, file, op] = labels;
                let _ = SECONDS.remove_label_values(&[tenant, timeline, file, op, status]);
            }
        }
    }
}
