//! From a point in time to an LSN: the last one at which no later transaction had committed.
//!
//! Clog pages carry the time of the latest commit on them, so the latest commit up to an LSN is the
//! latest of all pages at that LSN, and it only grows with the LSN: a binary search finds the place.
//! Commit times come from the compute's clock; where that was set back, the search sees the maximum.

use pageserver_api::key;
use pageserver_api::reltag::SlruKind;
use postgres_ffi::v15::BLCKSZ;
use utils::lsn::Lsn;

use crate::pgdatadir::{self, DataError};
use crate::timeline::ReadStore;

/// Clog pages read in one traversal.
const PAGES_PER_READ: usize = 128;

/// What the search found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// At this LSN all commits up to the time are there, and no later one.
    At(Lsn),
    /// No transaction has committed after the time: it is not over yet for this timeline.
    Future,
    /// All commits that can still be read came after the time.
    Past,
    /// No transaction has committed.
    NoData,
}

/// Searches the LSNs from `oldest` to `newest` for `time`, in microseconds since 2000-01-01 UTC.
pub async fn search<S: ReadStore>(
    store: &S,
    time: i64,
    oldest: Lsn,
    newest: Lsn,
) -> Result<Found, DataError> {
    match latest_commit(store, newest).await? {
        None => return Ok(Found::NoData),
        Some(latest) if latest <= time => return Ok(Found::Future),
        Some(_) => {}
    }
    if latest_commit(store, oldest)
        .await?
        .is_some_and(|latest| latest > time)
    {
        return Ok(Found::Past);
    }
    // In units of 8 bytes: `low` has no later commit, `high` has one.
    let (mut low, mut high) = (oldest.0 / 8, newest.0.div_ceil(8));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match latest_commit(store, Lsn(middle * 8)).await? {
            Some(latest) if latest > time => high = middle,
            _ => low = middle,
        }
    }
    let at = Lsn((low * 8).max(oldest.0));
    match latest_commit(store, at).await? {
        // The first commit there is came later than asked for.
        None => Ok(Found::Past),
        Some(_) => Ok(Found::At(at)),
    }
}

/// Time of the latest commit up to `lsn`, `None` if there was none.
async fn latest_commit<S: ReadStore>(store: &S, lsn: Lsn) -> Result<Option<i64>, DataError> {
    let mut latest = None;
    for segno in pgdatadir::slru_segments(store, SlruKind::Clog, lsn)
        .await?
        .numbers
    {
        let blocks = pgdatadir::slru_segment_size(store, SlruKind::Clog, segno, lsn).await?;
        let keys: Vec<_> = (0..blocks)
            .map(|block| key::slru_block_key(SlruKind::Clog, segno, block))
            .collect();
        for chunk in keys.chunks(PAGES_PER_READ) {
            for page in store.get_many(chunk, lsn).await?.into_iter().flatten() {
                latest = latest.max(commit_time(&page));
            }
        }
    }
    Ok(latest)
}

/// What stands behind a clog page on which a transaction has committed.
fn commit_time(page: &[u8]) -> Option<i64> {
    let raw = page.get(BLCKSZ..)?.first_chunk::<8>()?;
    Some(i64::from_be_bytes(*raw))
}

#[cfg(test)]
mod tests {
    use pageserver_api::value::Value;

    use super::*;
    use crate::pgdatadir::cache::MetadataCache;
    use crate::pgdatadir::modification::Modification;
    use crate::timeline::WriteBatch;
    use crate::timeline::memory_store::MemoryStore;

    /// A timeline that starts at 0x100, with commits at these LSNs and times.
    async fn timeline(commits: &[(u64, i64)]) -> MemoryStore {
        let store = MemoryStore::default();
        let (mut cache, mut batch) = (MetadataCache::default(), WriteBatch::default());
        let mut m = Modification::new(&store, &mut cache, &mut batch, Lsn(0x100));
        m.init_empty();
        m.extend_slru(SlruKind::Clog, 0, 1, |_| true).await.unwrap();
        m.put_slru_page(SlruKind::Clog, 0, 0, vec![0; BLCKSZ].into())
            .await
            .unwrap();
        m.finish();
        for (lsn, time) in commits {
            let mut page = vec![0; BLCKSZ];
            page.extend(time.to_be_bytes());
            batch.put(
                key::slru_block_key(SlruKind::Clog, 0, 0),
                Lsn(*lsn),
                Value::Image(page.into()),
            );
        }
        store.put(batch);
        store
    }

    async fn check(commits: &[(u64, i64)], time: i64, expected: Found) {
        let store = timeline(commits).await;
        let found = search(&store, time, Lsn(0x100), Lsn(0x1000)).await.unwrap();
        assert_eq!(found, expected, "{time} in {commits:?}");
    }

    #[tokio::test]
    async fn finds_the_last_lsn_without_a_later_commit() {
        let commits = [(0x200, 1000), (0x308, 2000), (0x1000, 3000)];
        check(&[], 5, Found::NoData).await;
        check(&commits, 999, Found::Past).await;
        check(&commits, 1000, Found::At(Lsn(0x300))).await;
        check(&commits, 1999, Found::At(Lsn(0x300))).await;
        check(&commits, 2000, Found::At(Lsn(0xff8))).await;
        check(&commits, 2999, Found::At(Lsn(0xff8))).await;
        check(&commits, 3000, Found::Future).await;
    }
}
