//! Metrics that every daemon has, and the registry of its own ones.
//!
//! `libmetrics_*` of the pageserver's management API, section 4. Metrics are made once, from names that are
//! constants, and live as long as the process.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGauge, IntGaugeVec, Opts, default_registry};

static HANDLER_REQUESTS: LazyLock<IntCounter> = LazyLock::new(|| {
    let opts = Opts::new("libmetrics_metric_handler_requests_total", "Requests for metrics");
    registered(IntCounter::with_opts(opts))
});
static BUILD_INFO: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let opts = Opts::new("libmetrics_build_info", "Build of this process");
    registered(IntGaugeVec::new(opts, &["revision"]))
});
static LAUNCH_TIMESTAMP: LazyLock<IntGauge> = LazyLock::new(|| {
    let opts = Opts::new(
        "libmetrics_launch_timestamp",
        "Start of this process, milliseconds since 1970",
    );
    registered(IntGauge::with_opts(opts))
});

/// Puts a metric into the registry of the process.
///
/// # Panics
/// The name or a label is invalid, or there is one of that name: both are mistakes in the program.
pub fn registered<C: Collector + Clone + 'static>(collector: Result<C, prometheus::Error>) -> C {
    let collector = collector.expect("metric names and labels are constants and valid");
    default_registry()
        .register(Box::new(collector.clone()))
        .expect("each metric is registered once");
    collector
}

/// Sets what is constant for the life of the process. Call once, at start.
pub fn init() {
    BUILD_INFO.with_label_values(&[crate::VERSION]).set(1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LAUNCH_TIMESTAMP.set(i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
}

/// The metrics in the registry, and what the kernel knows of this process. Counts as a request for metrics.
pub fn gather() -> Vec<MetricFamily> {
    HANDLER_REQUESTS.inc();
    let mut families = prometheus::gather();
    families.extend(disk_io());
    families.extend(max_rss());
    families
}

/// Number behind `field` in a file of `/proc` with one field a line; 0 without one, for then there is nothing to
/// be told.
fn proc_field(path: &str, field: &str) -> i64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok());
    value.unwrap_or(0)
}

fn disk_io() -> Vec<MetricFamily> {
    let opts = Opts::new(
        "libmetrics_disk_io_bytes_total",
        "Bytes read from and written to disk",
    );
    let gauge = IntGaugeVec::new(opts, &["io_operation"]).expect("the name is a constant and valid");
    for (field, operation) in [("read_bytes:", "read"), ("write_bytes:", "write")] {
        gauge
            .with_label_values(&[operation])
            .set(proc_field("/proc/self/io", field));
    }
    gauge.collect()
}

fn max_rss() -> Vec<MetricFamily> {
    let gauge = IntGauge::new("libmetrics_maxrss_kb", "Most memory this process had, in KiB")
        .expect("the name is a constant and valid");
    gauge.set(proc_field("/proc/self/status", "VmHWM:"));
    gauge.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(families: &[MetricFamily], name: &str) -> f64 {
        let family = families.iter().find(|family| family.name() == name);
        let metric = &family.unwrap_or_else(|| panic!("no {name}")).get_metric()[0];
        metric.get_gauge().get_value() + metric.get_counter().get_value()
    }

    #[test]
    fn every_daemon_has_them() {
        init();
        let requests = value(&gather(), "libmetrics_metric_handler_requests_total");
        let families = gather();
        let now = value(&families, "libmetrics_metric_handler_requests_total");
        assert!(now > requests);
        assert_eq!(value(&families, "libmetrics_build_info"), 1.0);
        assert!(value(&families, "libmetrics_launch_timestamp") > 1.6e12);
        assert!(
            value(&families, "libmetrics_maxrss_kb") > 1000.0,
            "a process has more than 1 MB"
        );
        let io = families
            .iter()
            .find(|family| family.name() == "libmetrics_disk_io_bytes_total");
        assert_eq!(io.map(|family| family.get_metric().len()), Some(2));
    }
}
