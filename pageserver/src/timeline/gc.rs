//! Garbage collection: layers that no retained LSN needs go.
//!
//! Retained are all LSNs from the cutoff on, and the branch points. The cutoff is durable before anything is
//! removed, so that after a crash no read is allowed where something is missing. A branch point is
//! registered, or refused, under the lock under which the cutoff moves.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pageserver_api::key::Key;
use pageserver_api::layer_name::LayerFileName;
use utils::crashsafe::CrashsafeError;
use utils::lsn::Lsn;

use super::Timeline;
use crate::layers::map::LayerMap;
use crate::pgdatadir::DataError;
use crate::timestamp_search::{self, Found};

/// Seconds from the Unix epoch to PostgreSQL's, 2000-01-01.
const POSTGRES_EPOCH_SECS: u64 = 946_684_800;

/// Nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// The LSN of a point in time cannot be found.
    #[error("cannot find the LSN to retain history from")]
    Search(#[from] DataError),
    /// The cutoff cannot be made durable.
    #[error("cannot save the new cutoff")]
    Metadata(#[from] CrashsafeError),
}

/// What a collection found; numbers of layers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct GcOutcome {
    /// Looked at.
    pub total: u64,
    /// Kept: they have versions after the cutoff.
    pub needed_by_cutoff: u64,
    /// Kept: they have versions after the point in time to retain.
    pub needed_by_pitr: u64,
    /// Kept: a branch reads them.
    pub needed_by_branches: u64,
    /// Kept: no image layers replace them.
    pub not_updated: u64,
    /// Removed.
    pub removed: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// What is to stay readable.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Bytes of WAL behind the last record.
    pub horizon_bytes: u64,
    /// Time behind now.
    pub pitr: Duration,
}

#[derive(Clone, Copy)]
struct Cutoffs {
    horizon: Lsn,
    pitr: Lsn,
}

impl Timeline {
    /// Removes the layers that are not needed to read what is to stay.
    pub async fn gc(self: &Arc<Self>, retention: Retention) -> Result<GcOutcome, GcError> {
        let started = Instant::now();
        let _turn = self.housekeeping_turn.lock().await;
        fail::fail_point!("before-timeline-gc");
        let cutoffs = self.find_cutoffs(retention).await?;
        let Some(retained) = self.move_cutoff(cutoffs.horizon.min(cutoffs.pitr)).await? else {
            tracing::info!(timeline = %self.id(), "no GC while a timeline that may be a branch cannot be used");
            return Ok(GcOutcome::default());
        };
        let files = self.layers.load().files.clone();
        let images = images_of(&files);
        let mut outcome = GcOutcome::default();
        let mut removed = std::collections::HashSet::new();
        for layer in files.iter() {
            outcome.total += 1;
            let name = layer.name();
            let last = Lsn(name.lsn_range().end.0 - 1);
            let reads_it = |lsn: &Lsn| name.lsn_range().start <= *lsn && !is_replaced(name, &images, *lsn);
            if last > cutoffs.horizon {
                outcome.needed_by_cutoff += 1;
            } else if last > cutoffs.pitr || last > retained.cutoff {
                outcome.needed_by_pitr += 1;
            } else if retained.branch_points.iter().any(reads_it) {
                outcome.needed_by_branches += 1;
            } else if !is_replaced(name, &images, retained.cutoff) {
                outcome.not_updated += 1;
            } else {
                outcome.removed += 1;
                removed.insert(name.clone());
            }
        }
        if removed.is_empty() {
            tracing::debug!(timeline = %self.id(), "Nothing to GC");
        } else {
            self.replace_files(Vec::new(), removed);
            fail::fail_point!("after-timeline-gc-removed-layers");
        }
        outcome.elapsed = started.elapsed();
        Ok(outcome)
    }

    async fn find_cutoffs(&self, retention: Retention) -> Result<Cutoffs, GcError> {
        let (oldest, newest) = (self.latest_gc_cutoff_lsn(), self.last_record().last);
        let horizon = Lsn(newest.0.saturating_sub(retention.horizon_bytes));
        if retention.pitr.is_zero() || horizon <= oldest {
            return Ok(Cutoffs {
                horizon,
                pitr: horizon,
            });
        }
        let epoch = SystemTime::UNIX_EPOCH + Duration::from_secs(POSTGRES_EPOCH_SECS);
        let since_epoch = SystemTime::now().duration_since(epoch).unwrap_or_default();
        let time = since_epoch.saturating_sub(retention.pitr).as_micros() as i64;
        let pitr = match timestamp_search::search(self, time, oldest, newest).await? {
            Found::At(lsn) => lsn,
            // Nothing was committed since: the newest state is the one to keep.
            Found::Future => newest,
            // Without commit times there is nothing to go by, so everything stays.
            Found::Past | Found::NoData => oldest,
        };
        Ok(Cutoffs { horizon, pitr })
    }

    /// Refuses reads and branches below `wanted` from now on, also after a restart. `None`: where branches
    /// are is not known, so nothing changes.
    async fn move_cutoff(&self, wanted: Lsn) -> Result<Option<Retained>, GcError> {
        let retained = {
            let branch_points = self.horizon.branch_points.lock();
            if branch_points.values().any(|lsn| !lsn.is_valid()) {
                return Ok(None);
            }
            self.horizon.cutoff.fetch_max(wanted);
            Retained {
                cutoff: self.horizon.cutoff.load(),
                branch_points: branch_points.values().copied().collect(),
            }
        };
        self.save_cutoff().await?;
        Ok(Some(retained))
    }
}

struct Retained {
    cutoff: Lsn,
    branch_points: Vec<Lsn>,
}

/// All image layers by the start of their key range.
fn images_of(files: &LayerMap) -> Vec<LayerFileName> {
    let names = files.iter().map(|layer| layer.name());
    let mut images: Vec<LayerFileName> = names.filter(|name| !name.is_delta()).cloned().collect();
    images.sort_by_key(|name| name.key_range().start);
    images
}

/// Whether reads at `lsn` find newer images for all keys of the layer, so that they never come to it.
fn is_replaced(name: &LayerFileName, images: &[LayerFileName], lsn: Lsn) -> bool {
    let Range { start, end } = name.key_range().clone();
    let oldest = name.lsn_range().end;
    let mut covered_to: Key = start;
    for image in images {
        if covered_to >= end || image.key_range().start > covered_to {
            break;
        }
        // The image at the layer's last LSN replaces a delta layer, but not itself.
        let at = image.lsn_range().start;
        let newer = if name.is_delta() {
            Lsn(at.0 + 1) >= oldest
        } else {
            at >= oldest
        };
        if newer && at <= lsn {
            covered_to = covered_to.max(image.key_range().end);
        }
    }
    covered_to >= end
}
