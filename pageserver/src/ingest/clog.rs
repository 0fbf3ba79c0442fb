//! Transaction status (`pg_xact`): new pages, truncation, and the setting of commit and abort bits.

use pageserver_api::reltag::SlruKind;
use pageserver_api::value::WalRecord;
use postgres_ffi::cursor::Cursor;
use postgres_ffi::v15::checkpoint::{FIRST_NORMAL_XID, precedes};
use postgres_ffi::v15::rmgr;

use super::counters::Counters;
use super::{Context, IngestFault};
use crate::pgdatadir::modification::Modification;
use crate::pgdatadir::zero_page;
use crate::timeline::store::ReadStore;

/// Pages per SLRU segment file (`SLRU_PAGES_PER_SEGMENT`).
pub(super) const PAGES_PER_SEGMENT: u32 = 32;
/// Transactions per clog page: two bits each.
const XIDS_PER_PAGE: u32 = 8192 * 4;

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    counters: &mut Counters,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let mut body = Cursor::new(&cx.record.main_data);
    let page = body.u32().map_err(IngestFault::malformed)?;
    match cx.record.rmgr_info() {
        rmgr::CLOG_ZEROPAGE => zero_slru_page(m, SlruKind::Clog, page).await?,
        rmgr::CLOG_TRUNCATE => {
            let oldest_xid = body.u32().map_err(IngestFault::malformed)?;
            let oldest_xid_db = body.u32().map_err(IngestFault::malformed)?;
            counters.set_oldest_xid(oldest_xid, oldest_xid_db);
            m.drop_slru_segments(SlruKind::Clog, |segno| is_before(segno, page))
                .await?;
        }
        _ => {}
    }
    Ok(())
}

/// Makes a page of zeros.
pub(super) async fn zero_slru_page<S: ReadStore>(
    m: &mut Modification<'_, S>,
    kind: SlruKind,
    page: u32,
) -> Result<(), IngestFault> {
    let (segno, block) = (page / PAGES_PER_SEGMENT, page % PAGES_PER_SEGMENT);
    Ok(m.put_slru_page(kind, segno, block, zero_page()).await?)
}

/// Whether all transactions of a segment precede those of page `cutoff` (`CLOGPagePrecedes` of its first and last page).
fn is_before(segno: u32, cutoff: u32) -> bool {
    let first_of = |page: u32| {
        page.wrapping_mul(XIDS_PER_PAGE)
            .wrapping_add(FIRST_NORMAL_XID + 1)
    };
    let page_precedes = |page: u32| {
        let (xid, from) = (first_of(page), first_of(cutoff));
        precedes(xid, from) && precedes(xid, from.wrapping_add(XIDS_PER_PAGE - 1))
    };
    let first = segno.wrapping_mul(PAGES_PER_SEGMENT);
    page_precedes(first) && page_precedes(first.wrapping_add(PAGES_PER_SEGMENT - 1))
}

/// How a transaction ended.
#[derive(Clone, Copy)]
pub(super) enum Outcome {
    /// At this time, in microseconds since 2000.
    Committed(i64),
    Aborted,
}

/// Sets the status of a transaction and its subtransactions: one value for each clog page concerned.
pub(super) async fn set_status<S: ReadStore>(
    m: &mut Modification<'_, S>,
    xid: u32,
    subxids: &[u32],
    outcome: Outcome,
) -> Result<(), IngestFault> {
    let mut xids = Vec::with_capacity(1 + subxids.len());
    xids.push(xid);
    xids.extend_from_slice(subxids);
    // Subtransactions have higher ids than their parent, so pages come in order, except once at the wraparound.
    xids.sort_unstable();
    for group in xids.chunk_by(|a, b| a / XIDS_PER_PAGE == b / XIDS_PER_PAGE) {
        let page = group[0] / XIDS_PER_PAGE;
        let xids = group.to_vec();
        let record = match outcome {
            Outcome::Committed(timestamp) => WalRecord::ClogSetCommitted { xids, timestamp },
            Outcome::Aborted => WalRecord::ClogSetAborted { xids },
        };
        let (segno, block) = (page / PAGES_PER_SEGMENT, page % PAGES_PER_SEGMENT);
        m.put_slru_record(SlruKind::Clog, segno, block, record).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_segments_before_the_cutoff_go() {
        assert!(!is_before(0, 0) && !is_before(0, 31));
        assert!(is_before(0, 32) && is_before(0, 40) && !is_before(1, 63));
        // Pages a third of the number range ahead are in the future, not in the past.
        assert!(!is_before(0xfff, 0) || is_before(0xfff, 32));
        let last_page = u32::MAX / XIDS_PER_PAGE;
        assert!(is_before(last_page / PAGES_PER_SEGMENT, 1));
    }
}
