//! Multixacts: offsets and members of new ones, new pages, truncation.

use pageserver_api::reltag::SlruKind;
use pageserver_api::value::WalRecord;
use postgres_ffi::cursor::{Cursor, Truncated};
use postgres_ffi::v15::checkpoint::precedes;
use postgres_ffi::v15::rmgr;

use super::clog::{PAGES_PER_SEGMENT, zero_slru_page};
use super::counters::Counters;
use super::{Context, IngestFault};
use crate::pgdatadir::modification::Modification;
use crate::timeline::store::ReadStore;

/// Offsets per page of `pg_multixact/offsets`.
const OFFSETS_PER_PAGE: u32 = 8192 / 4;
/// Members per page of `pg_multixact/members`: groups of 4 flag bytes and 4 transaction ids.
const MEMBERS_PER_PAGE: u32 = 8192 / 20 * 4;
/// `FirstMultiXactId`.
const FIRST_MULTI: u32 = 1;

const OFFSETS: SlruKind = SlruKind::MultiXactOffsets;
const MEMBERS: SlruKind = SlruKind::MultiXactMembers;

/// `xl_multixact_create`.
struct Create {
    multi: u32,
    offset: u32,
    /// Transaction and status of each member.
    members: Vec<(u32, u32)>,
}

impl Create {
    fn decode(raw: &[u8]) -> Result<Self, Truncated> {
        let mut body = Cursor::new(raw);
        let (multi, offset, count) = (body.u32()?, body.u32()?, body.u32()?);
        let words = body.u32s((count as usize).saturating_mul(2))?;
        let members = words.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        Ok(Create {
            multi,
            offset,
            members,
        })
    }
}

/// `xl_multixact_truncate`.
struct Truncate {
    oldest_multi_db: u32,
    end_multi: u32,
    start_member: u32,
    end_member: u32,
}

impl Truncate {
    fn decode(raw: &[u8]) -> Result<Self, Truncated> {
        let mut body = Cursor::new(raw);
        let (oldest_multi_db, _start_multi, end_multi) = (body.u32()?, body.u32()?, body.u32()?);
        Ok(Truncate {
            oldest_multi_db,
            end_multi,
            start_member: body.u32()?,
            end_member: body.u32()?,
        })
    }
}

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    counters: &mut Counters,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let raw = &cx.record.main_data;
    let page = || Cursor::new(raw).u32().map_err(IngestFault::malformed);
    match cx.record.rmgr_info() {
        rmgr::XLOG_MULTIXACT_ZERO_OFF_PAGE => zero_slru_page(m, OFFSETS, page()?).await,
        rmgr::XLOG_MULTIXACT_ZERO_MEM_PAGE => zero_slru_page(m, MEMBERS, page()?).await,
        rmgr::XLOG_MULTIXACT_CREATE_ID => {
            create(m, counters, Create::decode(raw).map_err(IngestFault::malformed)?).await
        }
        rmgr::XLOG_MULTIXACT_TRUNCATE_ID => {
            truncate(
                m,
                counters,
                Truncate::decode(raw).map_err(IngestFault::malformed)?,
            )
            .await
        }
        _ => Ok(()),
    }
}

async fn create<S: ReadStore>(
    m: &mut Modification<'_, S>,
    counters: &mut Counters,
    new: Create,
) -> Result<(), IngestFault> {
    let count = new.members.len() as u32;
    put_offset(m, new.multi, new.offset).await?;
    put_members(m, new.offset, &new.members).await?;
    counters.advance_past_multi(new.multi, new.offset.wrapping_add(count));
    for (xid, _) in new.members {
        counters.advance_past_xid(xid);
    }
    Ok(())
}

/// Stores where the members of a multixact start.
async fn put_offset<S: ReadStore>(
    m: &mut Modification<'_, S>,
    multi: u32,
    offset: u32,
) -> Result<(), IngestFault> {
    let page = multi / OFFSETS_PER_PAGE;
    let record = WalRecord::MultixactOffsetCreate { multi, offset };
    Ok(m.put_slru_record(
        OFFSETS,
        page / PAGES_PER_SEGMENT,
        page % PAGES_PER_SEGMENT,
        record,
    )
    .await?)
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
        let page = offset / MEMBERS_PER_PAGE;
        let fit = (MEMBERS_PER_PAGE - offset % MEMBERS_PER_PAGE).min((u32::MAX - offset).saturating_add(1));
        let (here, later) = rest.split_at(rest.len().min(fit as usize));
        let record = WalRecord::MultixactMembersCreate {
            offset,
            members: here.to_vec(),
        };
        m.put_slru_record(
            MEMBERS,
            page / PAGES_PER_SEGMENT,
            page % PAGES_PER_SEGMENT,
            record,
        )
        .await?;
        offset = offset.wrapping_add(here.len() as u32);
        rest = later;
    }
    Ok(())
}

async fn truncate<S: ReadStore>(
    m: &mut Modification<'_, S>,
    counters: &mut Counters,
    cut: Truncate,
) -> Result<(), IngestFault> {
    counters.set_oldest_multi(cut.end_multi, cut.oldest_multi_db);
    let (start, end) = (member_segment(cut.start_member), member_segment(cut.end_member));
    m.drop_slru_segments(MEMBERS, |segno| in_ring(segno, start, end))
        .await?;
    // The multixact before the oldest is kept: its end is where the oldest one's members start.
    let kept = if cut.end_multi <= FIRST_MULTI {
        u32::MAX
    } else {
        cut.end_multi - 1
    };
    let cutoff = kept / OFFSETS_PER_PAGE;
    Ok(
        m.drop_slru_segments(OFFSETS, |segno| offsets_before(segno, cutoff))
            .await?,
    )
}

fn member_segment(offset: u32) -> u32 {
    offset / MEMBERS_PER_PAGE / PAGES_PER_SEGMENT
}

/// Whether `n` lies in `start..end` of numbers that wrap around.
fn in_ring(n: u32, start: u32, end: u32) -> bool {
    if start <= end {
        (start..end).contains(&n)
    } else {
        n >= start || n < end
    }
}

/// Whether all multixacts of an offsets segment precede those of page `cutoff`
/// (`MultiXactOffsetPagePrecedes` of its first and last page).
fn offsets_before(segno: u32, cutoff: u32) -> bool {
    let first_of = |page: u32| page.wrapping_mul(OFFSETS_PER_PAGE).wrapping_add(FIRST_MULTI + 1);
    let page_precedes = |page: u32| {
        let (multi, from) = (first_of(page), first_of(cutoff));
        precedes(multi, from) && precedes(multi, from.wrapping_add(OFFSETS_PER_PAGE - 1))
    };
    let first = segno.wrapping_mul(PAGES_PER_SEGMENT);
    page_precedes(first) && page_precedes(first.wrapping_add(PAGES_PER_SEGMENT - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_to_drop() {
        assert_eq!(MEMBERS_PER_PAGE, 1636);
        assert!(in_ring(3, 3, 5) && in_ring(4, 3, 5) && !in_ring(5, 3, 5) && !in_ring(3, 3, 3));
        assert!(in_ring(9, 8, 1) && in_ring(0, 8, 1) && !in_ring(1, 8, 1));
        assert!(offsets_before(0, 32) && !offsets_before(0, 31) && !offsets_before(1, 32));
    }

    #[test]
    fn a_create_record_that_promises_too_much_is_refused() {
        let raw: Vec<u8> = [5u32, 1, u32::MAX, 700, 1]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect();
        assert!(Create::decode(&raw).is_err());
    }
}
