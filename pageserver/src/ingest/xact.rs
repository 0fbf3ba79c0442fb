//! Ends of transactions: status, dropped relations, prepared transactions.

use bytes::Bytes;
use postgres_ffi::cursor::{Cursor, Truncated};
use postgres_ffi::v15::rmgr;

use super::clog::{Outcome, set_status};
use super::counters::Counters;
use super::smgr::read_rel_node;
use super::{Context, IngestFault};
use crate::pgdatadir::modification::{Modification, RelNode};
use crate::timeline::store::ReadStore;

/// `XACT_XINFO_HAS_*`: which parts a commit or abort record has.
mod xinfo {
    pub(super) const DBINFO: u32 = 1;
    pub(super) const SUBXACTS: u32 = 1 << 1;
    pub(super) const RELFILENODES: u32 = 1 << 2;
    pub(super) const INVALS: u32 = 1 << 3;
    pub(super) const TWOPHASE: u32 = 1 << 4;
    pub(super) const DROPPED_STATS: u32 = 1 << 8;
}

/// Length of a `SharedInvalidationMessage` in bytes.
const INVALIDATION_LEN: usize = 16;
/// Length of an `xl_xact_stats_item` in bytes.
const STATS_ITEM_LEN: usize = 12;

/// What ingest needs of a commit or abort record (`ParseCommitRecord`, `ParseAbortRecord`).
#[derive(Debug, Default, Eq, PartialEq)]
struct XactEnd {
    /// Microseconds since 2000.
    time: i64,
    subxids: Vec<u32>,
    dropped: Vec<RelNode>,
    /// The prepared transaction that ends; 0 for an ordinary end.
    twophase_xid: u32,
}

impl XactEnd {
    fn decode(info: u8, raw: &[u8]) -> Result<Self, Truncated> {
        let mut body = Cursor::new(raw);
        let mut end = XactEnd {
            time: body.i64()?,
            ..Default::default()
        };
        let parts = if info & rmgr::XLOG_XACT_HAS_INFO != 0 {
            body.u32()?
        } else {
            0
        };
        if parts & xinfo::DBINFO != 0 {
            body.skip(8)?;
        }
        if parts & xinfo::SUBXACTS != 0 {
            let count = body.u32()? as usize;
            end.subxids = body.u32s(count)?;
        }
        if parts & xinfo::RELFILENODES != 0 {
            for _ in 0..body.u32()? {
                end.dropped.push(read_rel_node(&mut body)?);
            }
        }
        if parts & xinfo::DROPPED_STATS != 0 {
            let count = body.u32()? as usize;
            body.skip(count.saturating_mul(STATS_ITEM_LEN))?;
        }
        // Abort records have no invalidations, and commit records have them here.
        if parts & xinfo::INVALS != 0 {
            let count = body.u32()? as usize;
            body.skip(count.saturating_mul(INVALIDATION_LEN))?;
        }
        if parts & xinfo::TWOPHASE != 0 {
            end.twophase_xid = body.u32()?;
        }
        Ok(end)
    }
}

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    counters: &mut Counters,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let (info, raw) = (cx.record.header.info, &cx.record.main_data);
    let own_xid = cx.record.header.xid;
    let op = info & rmgr::XLOG_XACT_OPMASK;
    match op {
        rmgr::XLOG_XACT_PREPARE => return prepare(m, counters, own_xid, raw).await,
        rmgr::XLOG_XACT_COMMIT
        | rmgr::XLOG_XACT_ABORT
        | rmgr::XLOG_XACT_COMMIT_PREPARED
        | rmgr::XLOG_XACT_ABORT_PREPARED => {}
        _ => return Ok(()),
    }
    let end = XactEnd::decode(info, raw).map_err(IngestFault::malformed)?;
    let prepared = matches!(
        op,
        rmgr::XLOG_XACT_COMMIT_PREPARED | rmgr::XLOG_XACT_ABORT_PREPARED
    );
    let committed = matches!(op, rmgr::XLOG_XACT_COMMIT | rmgr::XLOG_XACT_COMMIT_PREPARED);
    let xid = if prepared { end.twophase_xid } else { own_xid };
    if xid == 0 {
        return Err(IngestFault::malformed("end of transaction 0"));
    }
    counters.advance_past_xid(xid);
    for subxid in &end.subxids {
        counters.advance_past_xid(*subxid);
    }
    let outcome = if committed {
        Outcome::Committed(end.time)
    } else {
        Outcome::Aborted
    };
    set_status(m, xid, &end.subxids, outcome).await?;
    if !end.dropped.is_empty() {
        m.drop_rels(&end.dropped).await?;
    }
    if prepared {
        m.drop_twophase(xid).await?;
    }
    Ok(())
}

/// From `TwoPhaseFileHeader`: magic, total length, xid.
fn prepared_xid(state: &[u8]) -> Result<u32, Truncated> {
    let mut header = Cursor::new(state);
    header.skip(8)?;
    header.u32()
}

/// The main data is the state file as PostgreSQL writes it at a checkpoint, but for the CRC at its end.
async fn prepare<S: ReadStore>(
    m: &mut Modification<'_, S>,
    counters: &mut Counters,
    own_xid: u32,
    state: &Bytes,
) -> Result<(), IngestFault> {
    let xid = prepared_xid(state).map_err(IngestFault::malformed)?;
    if xid != own_xid {
        return Err(IngestFault::malformed(format!(
            "state of transaction {xid} prepared by {own_xid}"
        )));
    }
    counters.advance_past_xid(xid);
    Ok(m.put_twophase(xid, state.clone()).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn parts_stand_in_their_order() {
        let parts = xinfo::DBINFO
            | xinfo::SUBXACTS
            | xinfo::RELFILENODES
            | xinfo::DROPPED_STATS
            | xinfo::INVALS
            | xinfo::TWOPHASE;
        let raw = words(&[
            5, 0, parts, 1, 2, // time, xinfo, database and tablespace
            2, 801, 802, // subtransactions
            1, 1663, 5, 16384, // dropped relation
            1, 0, 0, 0, // dropped statistics
            1, 0, 0, 0, 0,   // invalidation message
            777, // prepared transaction
        ]);
        let end = XactEnd::decode(rmgr::XLOG_XACT_HAS_INFO, &raw).unwrap();
        let dropped = vec![RelNode {
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
        }];
        assert_eq!(
            end,
            XactEnd {
                time: 5,
                subxids: vec![801, 802],
                dropped,
                twophase_xid: 777
            }
        );
        for len in 0..raw.len() {
            assert!(XactEnd::decode(rmgr::XLOG_XACT_HAS_INFO, &raw[..len]).is_err());
        }
        assert_eq!(
            XactEnd::decode(0, &raw[..8]).unwrap(),
            XactEnd {
                time: 5,
                ..Default::default()
            }
        );
    }

    #[test]
    fn huge_counts_are_refused() {
        for part in [
            xinfo::SUBXACTS,
            xinfo::RELFILENODES,
            xinfo::DROPPED_STATS,
            xinfo::INVALS,
        ] {
            let raw = words(&[0, 0, part, u32::MAX, 1, 2, 3, 4, 5, 6]);
            assert!(XactEnd::decode(rmgr::XLOG_XACT_HAS_INFO, &raw).is_err());
        }
    }
}
