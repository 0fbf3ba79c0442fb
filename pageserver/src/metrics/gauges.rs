//! Gauges that are read off the state of the server for each request.

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::TIMELINE_LABELS;
use crate::server::Server;
use crate::tenant::Tenant;
use pageserver_api::models::TenantState;
use utils::id::TenantTimelineId;

/// Everything there is to show.
pub fn gather(server: &Server) -> Vec<MetricFamily> {
    let gauges = Gauges::new();
    for tenant in server.tenants.list() {
        gauges.add_tenant(server, &tenant);
    }
    let mut families = utils::metrics::gather();
    for gauge in [
        &gauges.last_record_lsn,
        &gauges.logical_size,
        &gauges.resident_size,
        &gauges.read_depth,
        &gauges.tenant_states,
    ] {
        families.extend(gauge.collect());
    }
    families.extend(gauges.ondisk_layers.collect());
    gauges
        .disk_full
        .set(i64::from(server.tenants.context().disk.is_full()));
    families.extend(gauges.disk_full.collect());
    families.extend(gauges.materialized_cache_hits.collect());
    // A family without series has nothing to say, and the text format no way to say it.
    families.retain(|family| !family.get_metric().is_empty());
    families
}

struct Gauges {
    last_record_lsn: IntGaugeVec,
    logical_size: IntGaugeVec,
    resident_size: IntGaugeVec,
    read_depth: IntGaugeVec,
    tenant_states: IntGaugeVec,
    ondisk_layers: IntGauge,
    disk_full: IntGauge,
    materialized_cache_hits: IntCounterVec,
}

fn gauge_vec(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    IntGaugeVec::new(Opts::new(name, help), labels).expect("names here are constants and valid")
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("names here are constants and valid")
}

impl Gauges {
    fn new() -> Self {
        Gauges {
            last_record_lsn: gauge_vec(
                "pageserver_last_record_lsn",
                "End of the last record ingested",
                &TIMELINE_LABELS,
            ),
            logical_size: gauge_vec(
                "pageserver_current_logical_size",
                "Bytes of all relations",
                &TIMELINE_LABELS,
            ),
            resident_size: gauge_vec(
                "pageserver_resident_physical_size",
                "Bytes of layer files on disk",
                &TIMELINE_LABELS,
            ),
            read_depth: gauge_vec(
                "pageserver_read_depth_layers",
                "Layer files a read may have to visit, as of the last compaction",
                &TIMELINE_LABELS,
            ),
            tenant_states: gauge_vec(
                "pageserver_tenant_states_count",
                "1 for the state each tenant is in",
                &["tenant_id", "state"],
            ),
            ondisk_layers: gauge("pageserver_ondisk_layers", "Layer files on disk"),
            disk_full: gauge(
                "pageserver_disk_full",
                "1 from the first write that failed for want of room on the disk to the next that succeeded",
            ),
            materialized_cache_hits: IntCounterVec::new(
                Opts::new(
                    "pageserver_materialized_cache_hits_total",
                    "Reads that began with a page made for an earlier one",
                ),
                &TIMELINE_LABELS,
            )
            .expect("names here are constants and valid"),
        }
    }

    fn add_tenant(&self, server: &Server, tenant: &Tenant) {
        let tenant_id = tenant.id.to_string();
        let present = crate::http::tenant_state(&tenant.state());
        for state in TenantState::ALL {
            let name = state.as_str().to_lowercase();
            let gauge = self.tenant_states.with_label_values(&[&tenant_id, &name]);
            gauge.set(i64::from(state == present));
        }
        for timeline in tenant.timelines() {
            let labels = [tenant_id.clone(), timeline.timeline_id.to_string()];
            let set = |gauge: &IntGaugeVec, value: u64| gauge.with_label_values(&labels).set(value as i64);
            set(&self.last_record_lsn, timeline.last_record().last.0);
            set(&self.resident_size, timeline.resident_size());
            set(&self.read_depth, timeline.read_depth() as u64);
            let hits = self.materialized_cache_hits.with_label_values(&labels);
            hits.inc_by(timeline.remembered_page_hits());
            self.ondisk_layers.add(timeline.resident_layer_count() as i64);
            let id = TenantTimelineId::new(tenant.id, timeline.timeline_id);
            if let Some(status) = server.receivers.status(id) {
                set(&self.logical_size, status.logical_size().approximate());
            }
        }
    }
}
