//! Metrics of the whole process. Those of the timelines are gathered when they are asked for.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, Opts};
use utils::id::TenantTimelineId;
use utils::metrics::registered;

use crate::timeline::{Snapshot, Timeline};
use crate::timeline_map::TimelineMap;

const SECONDS_BUCKETS: [f64; 11] = [5e-5, 1e-4, 5e-4, 0.001, 0.003, 0.005, 0.01, 0.05, 0.1, 0.3, 0.5];
const BYTES_BUCKETS: [f64; 8] = [1.0, 10.0, 100.0, 1024.0, 8192.0, 131072.0, 1048576.0, 10485760.0];

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    registered(Histogram::with_opts(opts))
}

/// Bytes per write of WAL.
pub static WRITE_WAL_BYTES: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "safekeeper_write_wal_bytes",
        "Bytes written to WAL in a single request",
        &BYTES_BUCKETS,
    )
});
/// Seconds per write of WAL.
pub static WRITE_WAL_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "safekeeper_write_wal_seconds",
        "Seconds spent writing WAL to disk",
        &SECONDS_BUCKETS,
    )
});
/// Seconds per flush of WAL.
pub static FLUSH_WAL_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "safekeeper_flush_wal_seconds",
        "Seconds spent making WAL durable",
        &SECONDS_BUCKETS,
    )
});
/// Seconds per replacement of a control file.
pub static PERSIST_CONTROL_FILE_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "safekeeper_persist_control_file_seconds",
        "Seconds spent writing a control file",
        &SECONDS_BUCKETS,
    )
});
/// Time a timeline has spent on its WAL, in microseconds, and how much there was.
#[derive(Debug, Default)]
pub struct WalCounters {
    written_bytes: AtomicU64,
    write_micros: AtomicU64,
    flush_micros: AtomicU64,
}

impl WalCounters {
    /// Counts a write of `bytes` bytes that began at `begin`.
    pub fn count_write(&self, bytes: usize, begin: Instant) {
        let spent = begin.elapsed();
        WRITE_WAL_BYTES.observe(bytes as f64);
        WRITE_WAL_SECONDS.observe(spent.as_secs_f64());
        self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        add(&self.write_micros, spent);
    }

    /// Counts a flush that began at `begin`.
    pub fn count_flush(&self, begin: Instant) {
        let spent = begin.elapsed();
        FLUSH_WAL_SECONDS.observe(spent.as_secs_f64());
        add(&self.flush_micros, spent);
    }
}

fn add(total: &AtomicU64, spent: Duration) {
    total.fetch_add(spent.as_micros() as u64, Ordering::Relaxed);
}

/// Gauges that exist once per active timeline, filled anew for each request.
struct TimelineGauges(Vec<(&'static str, GaugeVec)>);

impl TimelineGauges {
    fn set(&mut self, name: &'static str, id: TenantTimelineId, value: f64) {
        if !self.0.iter().any(|(known, _)| *known == name) {
            let opts = Opts::new(name, name.replace('_', " "));
            let gauge = GaugeVec::new(opts, &["tenant_id", "timeline_id"])
                .expect("names here are constants and valid");
            self.0.push((name, gauge));
        }
        let gauge = self.0.iter().find(|(known, _)| *known == name);
        let (_, gauge) = gauge.expect("it was added above");
        let labels = [id.tenant_id.to_string(), id.timeline_id.to_string()];
        gauge.with_label_values(&labels).set(value);
    }

    fn add_timeline(&mut self, timeline: &Timeline, snapshot: &Snapshot) {
        let id = timeline.id();
        let positions = snapshot.positions;
        let truth = |value: bool| f64::from(u8::from(value));
        let counters = timeline.counters();
        let seconds = |micros: &AtomicU64| micros.load(Ordering::Relaxed) as f64 / 1e6;
        for (name, value) in [
            ("safekeeper_commit_lsn", positions.commit_lsn.0 as f64),
            ("safekeeper_backup_lsn", positions.backup_lsn.0 as f64),
            ("safekeeper_flush_lsn", snapshot.flush_lsn.0 as f64),
            ("safekeeper_epoch_start_lsn", snapshot.epoch_start_lsn.0 as f64),
            ("safekeeper_peer_horizon_lsn", positions.peer_horizon_lsn.0 as f64),
            (
                "safekeeper_remote_consistent_lsn",
                positions.remote_consistent_lsn.0 as f64,
            ),
            ("safekeeper_timeline_active", truth(timeline.is_active())),
            (
                "safekeeper_wal_backup_active",
                truth(timeline.offload_active().load(Ordering::Relaxed)),
            ),
            ("safekeeper_connected_computes", timeline.computes() as f64),
            ("safekeeper_acceptor_term", snapshot.term.0 as f64),
            (
                "safekeeper_written_wal_bytes_total",
                counters.written_bytes.load(Ordering::Relaxed) as f64,
            ),
            (
                "safekeeper_written_wal_seconds_total",
                seconds(&counters.write_micros),
            ),
            (
                "safekeeper_flushed_wal_seconds_total",
                seconds(&counters.flush_micros),
            ),
        ] {
            self.set(name, id, value);
        }
        if let Some(feedback) = timeline.readers().combined().pageserver {
            let reported = pq_proto::replication::unix_micros(feedback.ps_replytime) as f64 / 1e6;
            self.set(
                "safekeeper_feedback_ps_write_lsn",
                id,
                feedback.ps_writelsn.0 as f64,
            );
            self.set("safekeeper_feedback_last_time_seconds", id, reported.trunc());
        }
        if let Some(bytes) = timeline.disk_usage_after_removal() {
            self.set("safekeeper_disk_usage_bytes", id, bytes as f64);
        }
    }
}

/// All metrics, in Prometheus' text format.
///
/// # Errors
/// The encoder refused, which only a bug can make it do.
pub fn gather(map: &TimelineMap) -> Result<String, prometheus::Error> {
    let begin = Instant::now();
    LazyLock::force(&WRITE_WAL_BYTES);
    LazyLock::force(&WRITE_WAL_SECONDS);
    LazyLock::force(&FLUSH_WAL_SECONDS);
    LazyLock::force(&PERSIST_CONTROL_FILE_SECONDS);
    let mut gauges = TimelineGauges(Vec::new());
    let timelines = map.all();
    for timeline in timelines.iter().filter(|timeline| timeline.is_active()) {
        gauges.add_timeline(timeline, &timeline.snapshot());
    }
    let count = gauge("safekeeper_timelines", "Timelines loaded", timelines.len() as f64);
    let spent = gauge(
        "safekeeper_collect_timeline_metrics_seconds",
        "Seconds spent gathering the metrics of the timelines",
        begin.elapsed().as_secs_f64(),
    );
    let mut families: Vec<MetricFamily> = utils::metrics::gather();
    families.extend(gauges.0.iter().flat_map(|(_, gauge)| gauge.collect()));
    families.extend([count, spent].iter().flat_map(Collector::collect));
    let mut text = Vec::new();
    prometheus::TextEncoder::new().encode(&families, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn gauge(name: &str, help: &str, value: f64) -> Gauge {
    let gauge = Gauge::new(name, help).expect("the name is a constant and valid");
    gauge.set(value);
    gauge
}
