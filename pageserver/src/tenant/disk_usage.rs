//! Eviction when the disk fills up: the layers of all tenants that nobody used for longest go first.
//!
//! Each tenant keeps its most recently used layers up to `min_resident_size`, unless that is not enough:
//! a full disk is worse than a slow tenant.
//!
//! A look is taken once in a period, if that is configured, and in any case when a write has failed for want of room:
//! then some room is made whatever the settings say, because they have come too late.

use std::time::Duration;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{TenantManager, paths};
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

/// Part of the file system that is made free when a write has failed for want of room, and the most that is.
const ROOM_PART: u64 = 20;
const ROOM_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Why layers are evicted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reason {
    /// It is time to look.
    Period,
    /// A write has failed for want of room.
    Full,
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

/// Bytes that have to go.
fn excess(config: Option<&DiskUsageConfig>, usage: Usage, reason: Reason) -> u64 {
    let by_config = config.map_or(0, |config| config.excess(usage));
    match reason {
        Reason::Period => by_config,
        Reason::Full => by_config.max((usage.total_bytes / ROOM_PART).min(ROOM_BYTES_MAX)),
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
    pub async fn watch_disk_usage(&self, config: Option<DiskUsageConfig>, cancel: CancellationToken) {
        let disk = &self.context().disk;
        let mut failures = disk.failures();
        let work = TaskKind::Eviction.scope(async {
            loop {
                let reason = tokio::select! {
                    () = sleep_if_some(config.as_ref().map(|config| config.period)) => Reason::Period,
                    failed = failures.changed() => {
                        failed.expect("the sender lives as long as the server");
                        Reason::Full
                    }
                };
                match self.make_room(config.as_ref(), reason).await {
                    Ok(0) => {}
                    Ok(_) => disk.room_made(),
                    Err(error) => tracing::error!("cannot evict layers: {error:#}"),
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
        self.make_room(Some(config), Reason::Period).await
    }

    async fn make_room(&self, config: Option<&DiskUsageConfig>, reason: Reason) -> anyhow::Result<u64> {
        if self.context().remote.is_none() {
            // Every layer is the only copy.
            return Ok(0);
        }
        let usage = self.disk_usage().await?;
        let excess = excess(config, usage, reason);
        if excess == 0 {
            return Ok(0);
        }
        let mut ranked: Vec<Ranked> = Vec::new();
        for tenant in self.list() {
            let timelines = tenant.timelines();
            let candidates = timelines
                .iter()
                .flat_map(|timeline| timeline.eviction_candidates());
            let min_resident_size = config.map_or(0, |config| config.min_resident_size);
            ranked.extend(rank(candidates.collect(), min_resident_size));
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
        // The tenants may have a file system of their own; before the first of them there is no directory.
        let (tenants, workdir) = (paths::tenants_dir(self.workdir()), self.workdir().to_owned());
        let stat = utils::blocking::run(move || {
            let found = rustix::fs::statvfs(&tenants);
            found.or_else(|_| rustix::fs::statvfs(&workdir))
        });
        let stat = stat.await?;
        let timelines = self.list().into_iter().flat_map(|tenant| tenant.timelines());
        Ok(Usage {
            total_bytes: stat.f_blocks * stat.f_frsize,
            avail_bytes: stat.f_bavail * stat.f_frsize,
            resident_bytes: timelines.map(|timeline| timeline.resident_size()).sum(),
        })
    }
}

async fn sleep_if_some(period: Option<Duration>) {
    match period {
        Some(period) => tokio::time::sleep(period).await,
        None => std::future::pending().await,
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
            assert_eq!(excess(Some(&config), usage, Reason::Period), want, "{config:?}");
        }
    }

    #[test]
    fn on_a_full_disk_room_is_made_whatever_the_settings() {
        let usage = |total_bytes| Usage {
            total_bytes,
            avail_bytes: 0,
            resident_bytes: total_bytes,
        };
        assert_eq!(excess(None, usage(1000), Reason::Period), 0);
        assert_eq!(excess(None, usage(1000), Reason::Full), 50);
        assert_eq!(excess(None, usage(u64::MAX), Reason::Full), ROOM_BYTES_MAX);
    }
}
