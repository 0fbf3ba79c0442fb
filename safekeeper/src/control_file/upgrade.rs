//! Older control file versions, read into the current state.
//!
//! | version | difference from the one after it |
//! |---|---|
//! | 6 | pg_version 0 means 140005 |
//! | 5 | timeline_start_lsn and local_start_lsn may be 0, which became 1 |
//! | 4 | no timeline_start/local_start; an S3 position that is dropped; remote_consistent is reset |
//! | 3 | ids inside the server part; a WAL start position that is dropped |
//! | 2 | raw 16-byte ids |
//! | 1 | an epoch in place of the term history |

use safekeeper_api::protocol::{ProposerId, Term, TermLsn};
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

use super::DecodeError;
use super::codec::{self, Reader};
use crate::acceptor::{ControlState, ServerInfo};

/// Version of the server where files before version 7 say 0.
const PG_VERSION_BEFORE_7: u32 = 140_005;

pub(super) fn decode_state(raw: &[u8], version: u32) -> Result<ControlState, DecodeError> {
    let mut state = match version {
        5 | 6 => codec::decode_state(raw)?,
        4 => decode_4(raw)?,
        1..=3 => decode_1_to_3(raw, version)?,
        _ => return Err(DecodeError::Version(version)),
    };
    if state.server.pg_version == 0 {
        state.server.pg_version = PG_VERSION_BEFORE_7;
    }
    if version == 5 {
        // Position 0 means "no WAL yet" since version 6; what was written before had WAL.
        let at_least_one = |lsn: Lsn| if lsn.is_valid() { lsn } else { Lsn(1) };
        state.timeline_start_lsn = at_least_one(state.timeline_start_lsn);
        state.local_start_lsn = at_least_one(state.local_start_lsn);
    }
    Ok(state)
}

fn decode_4(raw: &[u8]) -> Result<ControlState, DecodeError> {
    let mut reader = Reader::new(raw);
    let id = TenantTimelineId::new(reader.hex()?, reader.hex()?);
    let mut state = ControlState::empty(id);
    state.term = Term(reader.u64()?);
    state.term_history = reader.term_history()?;
    state.server = reader.server()?;
    state.proposer_id = reader.hex_proposer_id()?;
    state.commit_lsn = reader.lsn()?;
    let _s3_wal_lsn = reader.lsn()?;
    state.peer_horizon_lsn = reader.lsn()?;
    let _remote_consistent_lsn = reader.lsn()?;
    state.peers = reader.peers()?;
    reader.finish()?;
    Ok(state)
}

fn decode_1_to_3(raw: &[u8], version: u32) -> Result<ControlState, DecodeError> {
    let mut reader = Reader::new(raw);
    let term = Term(reader.u64()?);
    let term_history = if version == 1 {
        codec::history(vec![TermLsn {
            term: Term(reader.u64()?),
            lsn: Lsn(0),
        }])?
    } else {
        reader.term_history()?
    };
    let (pg_version, system_id) = (reader.u32()?, reader.u64()?);
    let id = if version == 3 {
        TenantTimelineId::new(reader.hex()?, reader.hex()?)
    } else {
        let (tenant, timeline): ([u8; 16], [u8; 16]) = (reader.array()?, reader.array()?);
        TenantTimelineId::new(tenant.into(), timeline.into())
    };
    let wal_seg_size = reader.u32()?;
    let proposer_id = if version == 3 {
        reader.hex_proposer_id()?
    } else {
        ProposerId(reader.array()?)
    };
    let mut state = ControlState::empty(id);
    state.term = term;
    state.term_history = term_history;
    state.server = ServerInfo {
        pg_version,
        system_id,
        wal_seg_size,
    };
    state.proposer_id = proposer_id;
    state.commit_lsn = reader.lsn()?;
    state.peer_horizon_lsn = reader.lsn()?;
    let _wal_start_lsn = reader.lsn()?;
    reader.finish()?;
    Ok(state)
}
