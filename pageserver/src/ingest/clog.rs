//! Transaction status (`pg_xact`): new pages, truncation, and the setting of commit and abort bits.

use pageserver_api::reltag::SlruKind;
use pageserver_api::value::WalRecord;
use postgres_ffi::c_struct::CStruct;
use postgres_ffi::v15::bodies::{ClogTruncate, zero_page as zeroed_page};
use postgres_ffi::v15::rmgr;
use postgres_ffi::v15::slru::{SlruPage, clog_page, clog_segment_is_removed};

use super::counters::Counters;
use super::{Context, IngestFault};
use crate::pgdatadir::modification::Modification;
use crate::pgdatadir::zero_page;
use crate::timeline::store::ReadStore;

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    counters: &mut Counters,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    match cx.record.rmgr_info() {
        rmgr::CLOG_ZEROPAGE => zero_slru_page(m, SlruKind::Clog, zeroed_page(cx.record.main_data)?).await?,
        rmgr::CLOG_TRUNCATE => {
            let cut = ClogTruncate::decode(cx.record.main_data)?;
            counters.set_oldest_xid(cut.oldest_xid, cut.oldest_xid_db);
            let removed = |segno| clog_segment_is_removed(segno, cut.page);
            m.drop_slru_segments(SlruKind::Clog, removed).await?;
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
    let SlruPage { segment, block } = SlruPage::new(page);
    Ok(m.put_slru_page(kind, segment, block, zero_page()).await?)
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
    xids.sort_unstable();
    for group in xids.chunk_by(|a, b| clog_page(*a) == clog_page(*b)) {
        let SlruPage { segment, block } = SlruPage::new(clog_page(group[0]));
        let xids = group.to_vec();
        let record = match outcome {
            Outcome::Committed(timestamp) => WalRecord::ClogSetCommitted { xids, timestamp },
            Outcome::Aborted => WalRecord::ClogSetAborted { xids },
        };
        m.put_slru_record(SlruKind::Clog, segment, block, record).await?;
    }
    Ok(())
}
