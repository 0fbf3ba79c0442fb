//! Ends of transactions: status, dropped relations, prepared transactions.

use postgres_ffi::v15::rmgr;
use postgres_ffi::v15::xact::{self, Prepare, XactEnd};

use super::clog::{Outcome, set_status};
use super::counters::Counters;
use super::smgr::rel_node;
use super::{Context, IngestFault};
use crate::pgdatadir::modification::{Modification, OriginMove, RelNode};
use crate::timeline::store::ReadStore;

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    counters: &mut Counters,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let (header, main_data) = (&cx.record.header, cx.record.main_data);
    if header.info & rmgr::XLOG_XACT_OPMASK == rmgr::XLOG_XACT_PREPARE {
        return prepare(m, counters, cx).await;
    }
    let Some(outcome) = XactEnd::outcome_of(header.info) else {
        return Ok(());
    };
    let end = XactEnd::parse(outcome, header.info, main_data)?;
    let xid = end.twophase_xid.unwrap_or(header.xid);
    if xid == 0 {
        return Err(IngestFault::malformed("end of transaction 0"));
    }
    counters.advance_past_xid(xid);
    for subxid in &end.subxacts {
        counters.advance_past_xid(*subxid);
    }
    let outcome = match outcome {
        xact::Outcome::Committed => Outcome::Committed(end.time),
        xact::Outcome::Aborted => Outcome::Aborted,
    };
    set_status(m, xid, &end.subxacts, outcome).await?;
    if !end.dropped.is_empty() {
        let dropped: Vec<RelNode> = end.dropped.into_iter().map(rel_node).collect();
        m.drop_rels(&dropped).await?;
    }
    if let Some((remote_lsn, _)) = end.origin {
        m.move_origin(cx.record.origin_id, OriginMove::Forward(remote_lsn))
            .await?;
    }
    if end.twophase_xid.is_some() {
        m.drop_twophase(xid).await?;
    }
    Ok(())
}

/// The main data is the state file as PostgreSQL writes it at a checkpoint, but for the CRC at its end.
async fn prepare<S: ReadStore>(
    m: &mut Modification<'_, S>,
    counters: &mut Counters,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let prepared = Prepare::parse(cx.record.main_data)?;
    let (xid, writer) = (prepared.header.xid, cx.record.header.xid);
    if xid != writer {
        return Err(IngestFault::malformed(format!(
            "state of transaction {xid} prepared by {writer}"
        )));
    }
    for xid in prepared.subxacts {
        counters.advance_past_xid(xid);
    }
    if cx.record.origin_id != 0 {
        let to = OriginMove::Forward(prepared.header.origin_lsn);
        m.move_origin(cx.record.origin_id, to).await?;
    }
    Ok(m.put_twophase(xid, cx.raw.slice_ref(cx.record.main_data)).await?)
}
