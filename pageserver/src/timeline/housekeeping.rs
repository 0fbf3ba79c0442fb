//! The background tasks of a timeline: compaction and garbage collection, each in its period.

use std::sync::Arc;
use std::time::Duration;

use pageserver_api::tenant_config::EvictionPolicy;

use super::Timeline;
use super::gc::Retention;
use crate::layers::LayerError;
use crate::layers::file::Layer;
use crate::task_kind::TaskKind;

/// How often a task whose period is 0, that is, which is off, looks whether that has changed.
const OFF_CHECK_PERIOD: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
enum Job {
    Compaction,
    Gc,
    Eviction,
}

impl Job {
    fn task_kind(self) -> TaskKind {
        match self {
            Job::Compaction => TaskKind::Compaction,
            Job::Gc => TaskKind::GarbageCollector,
            Job::Eviction => TaskKind::Eviction,
        }
    }
}

async fn scrub_layer(layer: &Arc<Layer>) -> Result<(), LayerError> {
    let pin = layer.pin().await?;
    let layer = Arc::clone(layer);
    utils::blocking::run(move || {
        let _pin = pin;
        layer.scrub()
    })
    .await
}

impl Timeline {
    pub(super) fn start_housekeeping(self: &Arc<Self>) {
        for job in [Job::Compaction, Job::Gc, Job::Eviction] {
            let timeline = Arc::clone(self);
            self.spawn(job.task_kind().scope(async move {
                let stopping = timeline.cancel.clone();
                tokio::select! {
                    // First: a job that was given up for the stop has not failed.
                    biased;
                    () = stopping.cancelled() => {}
                    () = timeline.repeat(job) => {}
                }
            }));
        }
    }

    /// Reads all layer files of the timeline and returns what is wrong with them.
    pub async fn scrub(&self) -> Vec<LayerError> {
        let files = self.layers.load().files.clone();
        let mut found = Vec::new();
        for layer in files.iter() {
            let was_local = layer.residence().is_local();
            found.extend(scrub_layer(layer).await.err());
            if !was_local {
                let layer = Arc::clone(layer);
                found.extend(utils::blocking::run(move || layer.evict()).await.err());
            }
        }
        found
    }

    async fn repeat(self: &Arc<Self>, job: Job) {
        loop {
            let period = self.period(job);
            // Spread, so that not all timelines work at the same time after a start.
            let wait = if period.is_zero() {
                OFF_CHECK_PERIOD
            } else {
                period.mul_f64(rand::random_range(0.8..1.2))
            };
            tokio::time::sleep(wait).await;
            if self.period(job).is_zero() {
                continue;
            }
            let turn = self.context.housekeeping.acquire().await;
            let _turn = turn.expect("the semaphore is never closed");
            if let Err(error) = self.run(job).await {
                tracing::error!(tenant_id = %self.tenant_id, timeline_id = %self.timeline_id,
                    "housekeeping failed, will retry in its next period: {error:#}");
            }
        }
    }

    fn period(&self, job: Job) -> Duration {
        let config = self.config.load();
        match job {
            Job::Compaction => config.compaction_period,
            Job::Gc => config.gc_period,
            Job::Eviction => match config.eviction_policy {
                EvictionPolicy::NoEviction => Duration::ZERO,
                EvictionPolicy::LayerAccessThreshold { period, .. } => period,
            },
        }
    }

    async fn run(self: &Arc<Self>, job: Job) -> anyhow::Result<()> {
        match job {
            Job::Compaction => self.compact().await?,
            Job::Gc => {
                let config = self.config();
                let retention = Retention {
                    horizon_bytes: config.gc_horizon,
                    pitr: config.pitr_interval,
                };
                self.gc(retention).await?;
            }
            Job::Eviction => {
                if let EvictionPolicy::LayerAccessThreshold { threshold, .. } = self.config().eviction_policy
                {
                    self.evict_unused_for(threshold).await?;
                }
            }
        }
        Ok(())
    }
}
