//! State of the current control file version, and the pieces the older versions share with it.
//!
//! Numbers are fixed-width little endian; strings and sequences start with a u64 count. Ids are
//! strings of 32 hexadecimal digits.

use std::str::FromStr;

use safekeeper_api::protocol::{ProposerId, Term, TermHistory, TermLsn};
use utils::id::{NodeId, TenantTimelineId};
use utils::lsn::Lsn;

use super::DecodeError;
use crate::acceptor::{ControlState, PeerState, ServerInfo};

const HEX_ID_LEN: usize = 32;

/// Entries as a history, if they are one.
pub(super) fn history(entries: Vec<TermLsn>) -> Result<TermHistory, DecodeError> {
    TermHistory::new(entries).map_err(|_| DecodeError::Malformed("the term history is out of order"))
}

/// Reads fields off the front of a state, checking every length.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(raw: &'a [u8]) -> Self {
        Reader(raw)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(DecodeError::Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.take(N)?.try_into().expect("take gives what was asked"))
    }

    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.u64().map(Lsn)
    }

    /// A string of 32 hexadecimal digits, parsed.
    pub fn hex<T: FromStr>(&mut self) -> Result<T, DecodeError> {
        if self.u64()? != HEX_ID_LEN as u64 {
            return Err(DecodeError::Malformed("an id has the wrong length"));
        }
        std::str::from_utf8(self.take(HEX_ID_LEN)?)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(DecodeError::Malformed("an id is not hexadecimal"))
    }

    /// A proposer's 16-byte id written as a string.
    pub fn hex_proposer_id(&mut self) -> Result<ProposerId, DecodeError> {
        self.hex::<utils::id::TenantId>()
            .map(|id| ProposerId(id.as_bytes()))
    }

    /// Elements each read by `element`. The count is not trusted for an allocation.
    fn sequence<T>(
        &mut self,
        element: impl Fn(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.u64()?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(element(self)?);
        }
        Ok(items)
    }

    pub fn term_history(&mut self) -> Result<TermHistory, DecodeError> {
        self.sequence(|reader| {
            Ok(TermLsn {
                term: Term(reader.u64()?),
                lsn: reader.lsn()?,
            })
        })
        .and_then(history)
    }

    pub fn server(&mut self) -> Result<ServerInfo, DecodeError> {
        Ok(ServerInfo {
            pg_version: self.u32()?,
            system_id: self.u64()?,
            wal_seg_size: self.u32()?,
        })
    }

    pub fn peers(&mut self) -> Result<Vec<(NodeId, PeerState)>, DecodeError> {
        self.sequence(|reader| {
            let id = NodeId(reader.u64()?);
            let peer = PeerState {
                backup_lsn: reader.lsn()?,
                term: Term(reader.u64()?),
                flush_lsn: reader.lsn()?,
                commit_lsn: reader.lsn()?,
            };
            Ok((id, peer))
        })
    }

    pub fn finish(self) -> Result<(), DecodeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Malformed("bytes are left over after its end"))
        }
    }
}

fn put_u64(raw: &mut Vec<u8>, value: u64) {
    raw.extend_from_slice(&value.to_le_bytes());
}

fn put_hex(raw: &mut Vec<u8>, id: [u8; 16]) {
    put_u64(raw, HEX_ID_LEN as u64);
    raw.extend_from_slice(hex::encode(id).as_bytes());
}

pub(super) fn encode_state(state: &ControlState, raw: &mut Vec<u8>) {
    put_hex(raw, state.id.tenant_id.as_bytes());
    put_hex(raw, state.id.timeline_id.as_bytes());
    put_u64(raw, state.term.0);
    put_u64(raw, state.term_history.entries().len() as u64);
    for switch in state.term_history.entries() {
        put_u64(raw, switch.term.0);
        put_u64(raw, switch.lsn.0);
    }
    raw.extend_from_slice(&state.server.pg_version.to_le_bytes());
    put_u64(raw, state.server.system_id);
    raw.extend_from_slice(&state.server.wal_seg_size.to_le_bytes());
    put_hex(raw, state.proposer_id.0);
    for lsn in [
        state.timeline_start_lsn,
        state.local_start_lsn,
        state.commit_lsn,
        state.backup_lsn,
        state.peer_horizon_lsn,
        state.remote_consistent_lsn,
    ] {
        put_u64(raw, lsn.0);
    }
    put_u64(raw, state.peers.len() as u64);
    for (id, peer) in &state.peers {
        for value in [
            id.0,
            peer.backup_lsn.0,
            peer.term.0,
            peer.flush_lsn.0,
            peer.commit_lsn.0,
        ] {
            put_u64(raw, value);
        }
    }
}

pub(super) fn decode_state(raw: &[u8]) -> Result<ControlState, DecodeError> {
    let mut reader = Reader::new(raw);
    let id = TenantTimelineId::new(reader.hex()?, reader.hex()?);
    let state = ControlState {
        id,
        term: Term(reader.u64()?),
        term_history: reader.term_history()?,
        server: reader.server()?,
        proposer_id: reader.hex_proposer_id()?,
        timeline_start_lsn: reader.lsn()?,
        local_start_lsn: reader.lsn()?,
        commit_lsn: reader.lsn()?,
        backup_lsn: reader.lsn()?,
        peer_horizon_lsn: reader.lsn()?,
        remote_consistent_lsn: reader.lsn()?,
        peers: reader.peers()?,
    };
    reader.finish()?;
    Ok(state)
}
