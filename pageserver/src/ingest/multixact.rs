//! Multixacts: offsets and members of new ones, new pages, truncation.

use std::collections::BTreeSet;

use pageserver_api::reltag::SlruKind;
use pageserver_api::value::WalRecord;
use postgres_ffi::c_struct::CStruct;
use postgres_ffi::v15::bodies::{MultiXactCreate, MultiXactTruncate, zero_page as zeroed_page};
use postgres_ffi::v15::rmgr;
use postgres_ffi::v15::slru::{
    SlruPage, multixact_member_page, multixact_member_segments_removed, multixact_offset_page,
    multixact_offset_segment_is_removed,
};
use wal_redo::multixact_after;

use super::clog::zero_slru_page;
use super::counters::Counters;
use super::{Context, IngestFault};
use crate::pgdatadir::modification::Modification;
use crate::timeline::store::ReadStore;

const OFFSETS: SlruKind = SlruKind::MultiXactOffsets;
const MEMBERS: SlruKind = SlruKind::MultiXactMembers;

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    counters: &mut Counters,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let raw = cx.record.main_data;
    match cx.record.rmgr_info() {
        rmgr::XLOG_MULTIXACT_ZERO_OFF_PAGE => zero_slru_page(m, OFFSETS, zeroed_page(raw)?).await,
        rmgr::XLOG_MULTIXACT_ZERO_MEM_PAGE => zero_slru_page(m, MEMBERS, zeroed_page(raw)?).await,
        rmgr::XLOG_MULTIXACT_CREATE_ID => create(m, counters, cx, MultiXactCreate::parse(raw)?).await,
        rmgr::XLOG_MULTIXACT_TRUNCATE_ID => truncate(m, counters, MultiXactTruncate::decode(raw)?).await,
        _ => Ok(()),
    }
}

async fn create<S: ReadStore>(
    m: &mut Modification<'_, S>,
    counters: &mut Counters,
    cx: &Context<'_>,
    new: MultiXactCreate,
) -> Result<(), IngestFault> {
    // The record sets the offset of the next multixact, too, which may stand on the next page.
    let (next, _) = multixact_after(new.multi, new.offset, new.members.len() as u32);
    let pages = BTreeSet::from([new.multi, next].map(multixact_offset_page));
    for page in pages {
        let SlruPage { segment, block } = SlruPage::new(page);
        let record = WalRecord::Postgres {
            will_init: false,
            record: cx.raw.clone(),
        };
        m.put_slru_record(OFFSETS, segment, block, record).await?;
    }
    let members: Vec<(u32, u32)> = new
        .members
        .iter()
        .map(|member| (member.xid, member.status))
        .collect();
    put_members(m, new.offset, &members).await?;
    counters.advance_past_multi(new.multi, new.offset.wrapping_add(members.len() as u32));
    for (xid, _) in members {
        counters.advance_past_xid(xid);
    }
    Ok(())
}

/// Stores the members, one value for each page concerned. Offsets wrap around.
async fn put_members<S: ReadStore>(
    m: &mut Modification<'_, S>,
    first: u32,
    members: &[(u32, u32)],
) -> Result<(), IngestFault> {
    let mut offset = first;
    let mut rest = members;
    while !rest.is_empty() {
        let page = multixact_member_page(offset);
        let on_page = |count: usize| multixact_member_page(offset.wrapping_add(count as u32)) == page;
        let count = (1..rest.len())
            .find(|count| !on_page(*count))
            .unwrap_or(rest.len());
        let (here, later) = rest.split_at(count);
        let record = WalRecord::MultixactMembersCreate {
            offset,
            members: here.to_vec(),
        };
        let SlruPage { segment, block } = SlruPage::new(page);
        m.put_slru_record(MEMBERS, segment, block, record).await?;
        offset = offset.wrapping_add(count as u32);
        rest = later;
    }
    Ok(())
}

async fn truncate<S: ReadStore>(
    m: &mut Modification<'_, S>,
    counters: &mut Counters,
    cut: MultiXactTruncate,
) -> Result<(), IngestFault> {
    counters.set_oldest_multi(cut.end_multi, cut.oldest_multi_db);
    let removed: BTreeSet<u32> =
        multixact_member_segments_removed(cut.start_member, cut.end_member).collect();
    m.drop_slru_segments(MEMBERS, |segno| removed.contains(&segno))
        .await?;
    let removed = |segno| multixact_offset_segment_is_removed(segno, cut.end_multi);
    Ok(m.drop_slru_segments(OFFSETS, removed).await?)
}
