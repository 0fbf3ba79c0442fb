//! Metrics of the process and of each timeline (management API, section 4).
//!
//! Counters and histograms of a timeline live as long as somebody holds its [`TimelineMetrics`]; gauges
//! are made anew from the state of the tenants for each request. Either way nothing is left of a
//! timeline that is gone.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntGauge, IntGaugeVec, Opts};
use utils::id::TenantTimelineId;
use utils::metrics::registered;

mod gauges;
pub mod remote;

pub use gauges::gather;

const TIMELINE_LABELS: [&str; 2] = ["tenant_id", "timeline_id"];

/// Seconds; fine where page reads usually lie.
const SMGR_BUCKETS: [f64; 19] = [
    1e-5, 1e-4, 1.5e-4, 2e-4, 2.5e-4, 3e-4, 3.5e-4, 5e-4, 7.5e-4, 1e-3, 2.5e-3, 5e-3, 7.5e-3, 1e-2, 1.25e-2,
    1.5e-2, 2.5e-2, 5e-2, 1e-1,
];

/// Seconds, 10^(n/5) for n from -30 to 10.
fn critical_buckets() -> Vec<f64> {
    (-30..=10).map(|n| 10f64.powf(f64::from(n) / 5.0)).collect()
}

static WAIT_LSN: LazyLock<HistogramVec> = LazyLock::new(|| {
    let opts = HistogramOpts::new("pageserver_wait_lsn_seconds", "Time requests waited for WAL")
        .buckets(critical_buckets());
    registered(HistogramVec::new(opts, &TIMELINE_LABELS))
});
static SMGR_QUERY: LazyLock<HistogramVec> = LazyLock::new(|| {
    let opts = HistogramOpts::new(
        "pageserver_smgr_query_seconds",
        "Time to answer a compute's request",
    )
    .buckets(SMGR_BUCKETS.to_vec());
    registered(HistogramVec::new(
        opts,
        &["smgr_query_type", "tenant_id", "timeline_id"],
    ))
});
static FILES_VISITED: LazyLock<Histogram> = LazyLock::new(|| {
    let opts = HistogramOpts::new(
        "pageserver_read_layers_visited",
        "Layer files that one read of one key has looked into",
    )
    .buckets((0..=32).map(f64::from).collect());
    registered(Histogram::with_opts(opts))
});
static LIVE_CONNECTIONS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let opts = Opts::new("pageserver_live_connections", "Connections open now");
    registered(IntGaugeVec::new(opts, &["pageserver_connection_kind"]))
});
/// Sets what is constant for the life of the process. Call once, at start.
pub fn init() {
    utils::metrics::init();
    for kind in [ConnectionKind::PageService, ConnectionKind::WalReceiver] {
        LIVE_CONNECTIONS.with_label_values(&[kind.label()]);
    }
}

/// Counts a read of one key that looked into so many layer files.
pub fn note_read(files_visited: u32) {
    FILES_VISITED.observe(f64::from(files_visited));
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConnectionKind {
    /// A compute's, or a tool's.
    PageService,
    /// To a safekeeper.
    WalReceiver,
}

impl ConnectionKind {
    fn label(self) -> &'static str {
        match self {
            ConnectionKind::PageService => "page_service",
            ConnectionKind::WalReceiver => "wal_receiver",
        }
    }
}

/// Counts a connection for as long as it is held.
#[derive(Debug)]
pub struct LiveConnection(IntGauge);

impl LiveConnection {
    /// One more connection.
    pub fn new(kind: ConnectionKind) -> Self {
        let gauge = LIVE_CONNECTIONS.with_label_values(&[kind.label()]);
        gauge.inc();
        LiveConnection(gauge)
    }
}

impl Drop for LiveConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Kinds of requests of computes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SmgrQuery {
    /// Does a relation exist?
    Exists,
    /// How large is it?
    Nblocks,
    /// A page.
    GetPage,
    /// How large is a database?
    DbSize,
}

impl SmgrQuery {
    const ALL: [SmgrQuery; 4] = [
        SmgrQuery::Exists,
        SmgrQuery::Nblocks,
        SmgrQuery::GetPage,
        SmgrQuery::DbSize,
    ];

    fn label(self) -> &'static str {
        match self {
            SmgrQuery::Exists => "get_rel_exists",
            SmgrQuery::Nblocks => "get_rel_size",
            SmgrQuery::GetPage => "get_page_at_lsn",
            SmgrQuery::DbSize => "get_db_size",
        }
    }
}

/// Histograms of one timeline. They vanish with the last holder.
#[derive(Debug)]
pub struct TimelineMetrics {
    id: TenantTimelineId,
    /// Seconds that requests waited for WAL.
    pub wait_lsn: Histogram,
    smgr: [Histogram; 4],
}

static TIMELINES: LazyLock<Mutex<HashMap<TenantTimelineId, Weak<TimelineMetrics>>>> =
    LazyLock::new(Mutex::default);

impl TimelineMetrics {
    /// The metrics of a timeline, shared by all who ask for them.
    pub fn of(id: TenantTimelineId) -> Arc<Self> {
        let mut timelines = TIMELINES.lock();
        if let Some(metrics) = timelines.get(&id).and_then(Weak::upgrade) {
            return metrics;
        }
        let (tenant, timeline) = (id.tenant_id.to_string(), id.timeline_id.to_string());
        let metrics = Arc::new(TimelineMetrics {
            id,
            wait_lsn: WAIT_LSN.with_label_values(&[&tenant, &timeline]),
            smgr: SmgrQuery::ALL
                .map(|query| SMGR_QUERY.with_label_values(&[query.label(), tenant.as_str(), &timeline])),
        });
        timelines.insert(id, Arc::downgrade(&metrics));
        metrics
    }

    /// Seconds to answer requests of this kind.
    pub fn smgr(&self, query: SmgrQuery) -> &Histogram {
        &self.smgr[query as usize]
    }
}

impl Drop for TimelineMetrics {
    fn drop(&mut self) {
        let mut timelines = TIMELINES.lock();
        if timelines
            .get(&self.id)
            .is_some_and(|metrics| metrics.strong_count() > 0)
        {
            // Somebody has asked anew meanwhile and shares the series.
            return;
        }
        timelines.remove(&self.id);
        let (tenant, timeline) = (self.id.tenant_id.to_string(), self.id.timeline_id.to_string());
        // An error would mean that the series is gone already.
        let _ = WAIT_LSN.remove_label_values(&[&tenant, &timeline]);
        for query in SmgrQuery::ALL {
            let _ = SMGR_QUERY.remove_label_values(&[query.label(), tenant.as_str(), &timeline]);
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::core::Collector;
    use utils::id::{TenantId, TimelineId};

    use super::*;

    #[test]
    fn series_vanish_with_their_last_holder() {
        let id = TenantTimelineId::new(TenantId::generate(), TimelineId::generate());
        let shown = || {
            let mut text = String::new();
            for family in SMGR_QUERY.collect() {
                for metric in family.get_metric() {
                    text += &format!("{metric:?}");
                }
            }
            text.contains(&id.timeline_id.to_string())
        };
        let one = TimelineMetrics::of(id);
        let two = TimelineMetrics::of(id);
        one.smgr(SmgrQuery::GetPage).observe(1e-4);
        assert_eq!(two.smgr(SmgrQuery::GetPage).get_sample_count(), 1);
        drop(one);
        assert!(shown());
        drop(two);
        assert!(!shown());
    }

    #[test]
    fn critical_buckets_span_a_microsecond_to_a_hundred_seconds() {
        let buckets = critical_buckets();
        assert_eq!(buckets.len(), 41);
        assert!((buckets[0] - 1e-6).abs() < 1e-12 && (buckets[40] - 100.0).abs() < 1e-9);
    }
}
