//! Eviction when the disk fills up: the layers of all tenants that nobody used for longest go first.
//!
//! Each tenant keeps its most recently used layers up to `min_resident_size`, unless that is not enough:
//! a full disk is worse than a slow tenant.

use std::time::Duration;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::TenantManager;
use crate::task_kind::TaskKind;
use crate::timeline::eviction::{EvictionCandidate, LayerMoved, evict};

/// When layers are evicted for want of room: the setting `disk_usage_based_eviction`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskUsageConfig {
    /// Percentage of the file system that may be in use.
    #[serde(default = "default_max_usage_pct")]
    pub max_usage_pct: u8,
    /// Bytes that must be free.
    #[serde(default)]
    pub min_avail_bytes: u64,
    /// Bytes that all layer files together may take; no bound by default.
    #[serde(default)]
    pub max_resident_bytes: Option<u64>,
    /// Bytes of its most recently used layers that each tenant keeps if it can be helped.
    #[serde(default)]
    pub min_resident_size: u64,
    /// Time between two looks.
    #[serde(with = "humantime_serde")]
    pub period: Duration,
}

fn default_max_usage_pct() -> u8 {
    100
}

/// A file system as it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Usage {
    total_bytes: u64,
    avail_bytes: u64,
    resident_bytes: u64,
}

impl DiskUsageConfig {
    /// Bytes that have to go.
    fn excess(&self, usage: Usage) -> u64 {
        let percent = u64::from(self.max_usage_pct.min(100));
        let used_max = (u128::from(usage.total_bytes) * u128::from(percent) / 100) as u64;
        let used = usage.total_bytes.saturating_sub(usage.avail_bytes);
        let by_percentage = used.saturating_sub(used_max);
        let by_free = self.min_avail_bytes.saturating_sub(usage.avail_bytes);
        let by_budget = self
            .max_resident_bytes
            .map_or(0, |max| usage.resident_bytes.saturating_sub(max));
        by_percentage.max(by_free).max(by_budget)
    }
}

/// A candidate with what its tenant keeps taken into account.
struct Ranked {
    candidate: EvictionCandidate,
    /// Among the most recently used layers of its tenant, which go last.
    is_kept: bool,
}

/// Marks what the tenant keeps.
fn rank(mut of_tenant: Vec<EvictionCandidate>, min_resident_size: u64) -> Vec<Ranked> {
    of_tenant.sort_by_key(|candidate| std::cmp::Reverse(candidate.last_access));
    let mut newer_bytes = 0;
    let ranked = of_tenant.into_iter().map(|candidate| {
        newer_bytes += candidate.layer.file_len();
        let is_kept = newer_bytes <= min_resident_size;
        Ranked { candidate, is_kept }
    });
    ranked.collect()
}

impl TenantManager {
    /// Evicts whenever it is necessary, until `cancel` fires.
    pub async fn watch_disk_usage(&self, config: DiskUsageConfig, cancel: CancellationToken) {
        let work = TaskKind::Eviction.scope(async {
            loop {
                tokio::time::sleep(config.period).await;
                if let Err(error) = self.evict_for_room(&config).await {
                    tracing::error!("cannot evict layers: {error:#}");
                }
            }
        });
        tokio::select! {
            () = work => {}
            () = cancel.cancelled() => {}
        }
    }

    /// Evicts as much as `config` asks for. Returns the bytes that were freed.
    pub async fn evict_for_room(&self, config: &DiskUsageConfig) -> anyhow::Result<u64> {
        let usage = self.disk_usage().await?;
        let excess = config.excess(usage);
        if excess == 0 {
            return Ok(0);
        }
        let mut ranked: Vec<Ranked> = Vec::new();
        for tenant in self.list() {
            let timelines = tenant.timelines();
            let candidates = timelines
                .iter()
                .flat_map(|timeline| timeline.eviction_candidates());
            ranked.extend(rank(candidates.collect(), config.min_resident_size));
        }
        ranked.sort_by_key(|ranked| (ranked.is_kept, ranked.candidate.last_access));
        let mut freed = 0;
        for ranked in ranked {
            if freed >= excess {
                break;
            }
            let bytes = ranked.candidate.layer.file_len();
            if evict(ranked.candidate.layer).await? == LayerMoved::Yes {
                freed += bytes;
            }
        }
        if freed < excess {
            tracing::warn!("evicted {freed} bytes of layers, but {excess} had to go: the disk is too full");
        } else {
            tracing::info!("evicted {freed} bytes of layers to make room");
        }
        Ok(freed)
    }

    async fn disk_usage(&self) -> anyhow::Result<Usage> {
        let dir = self.workdir().to_owned();
        let stat = utils::blocking::run(move || rustix::fs::statvfs(&dir)).await?;
        let timelines = self.list().into_iter().flat_map(|tenant| tenant.timelines());
        Ok(Usage {
            total_bytes: stat.f_blocks * stat.f_frsize,
            avail_bytes: stat.f_bavail * stat.f_frsize,
            resident_bytes: timelines.map(|timeline| timeline.resident_size()).sum(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_bound_counts() {
        let config = |max_usage_pct, min_avail_bytes, max_resident_bytes| DiskUsageConfig {
            max_usage_pct,
            min_avail_bytes,
            max_resident_bytes,
            min_resident_size: 0,
            period: Duration::from_secs(1),
        };
        let usage = Usage {
            total_bytes: 1000,
            avail_bytes: 100,
            resident_bytes: 500,
        };
        for (config, want) in [
            (config(100, 0, None), 0),
            (config(90, 100, Some(500)), 0),
            (config(80, 0, None), 100),
            (config(80, 150, None), 100),
            (config(80, 250, None), 150),
            (config(80, 150, Some(200)), 300),
            (config(0, 0, None), 900),
        ] {
            assert_eq!(config.excess(usage), want, "{config:?}");
        }
    }
}
