//! Messages from the proposer to an acceptor.

use bytes::{BufMut, Bytes, BytesMut};
use utils::id::{TenantId, TimelineId};
use utils::lsn::Lsn;

use super::wire::{Reader, TAG_LEN, tag_of};
use super::{APPEND_WAL_BYTES_MAX, DecodeError, PROTOCOL_VERSION, ProposerId, Term, TermHistory};

const TAG_GREETING: u64 = b'g' as u64;
const TAG_VOTE: u64 = b'v' as u64;
const TAG_ELECTED: u64 = b'e' as u64;
const TAG_APPEND: u64 = b'a' as u64;

/// Any message from a proposer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ProposerMessage {
    /// First message of a connection.
    Greeting(ProposerGreeting),
    /// Asks for a vote.
    VoteRequest(VoteRequest),
    /// Tells that the election is won.
    Elected(ProposerElected),
    /// WAL, or a heartbeat.
    Append(AppendRequest),
}

impl ProposerMessage {
    /// Reads one message, whose WAL shares memory with `raw`.
    ///
    /// # Errors
    /// [`DecodeError`] if `raw` is not exactly one message of a proposer.
    pub fn decode(raw: Bytes) -> Result<ProposerMessage, DecodeError> {
        match tag_of(&raw)? {
            TAG_GREETING => ProposerGreeting::decode(raw).map(ProposerMessage::Greeting),
            TAG_VOTE => VoteRequest::decode(raw).map(ProposerMessage::VoteRequest),
            TAG_ELECTED => ProposerElected::decode(raw).map(ProposerMessage::Elected),
            TAG_APPEND => AppendRequest::decode(raw).map(ProposerMessage::Append),
            tag => Err(DecodeError::UnknownTag(tag)),
        }
    }

    /// Appends the wire form.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            ProposerMessage::Greeting(greeting) => out.put_slice(&greeting.encode()),
            ProposerMessage::VoteRequest(vote) => out.put_slice(&vote.encode()),
            ProposerMessage::Elected(elected) => elected.encode(out),
            ProposerMessage::Append(append) => {
                out.put_slice(&append.encode_header());
                out.put_slice(&append.wal);
            }
        }
    }
}

/// First message of a connection: who the proposer is and which timeline it writes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProposerGreeting {
    /// PostgreSQL's version number, such as 150004.
    pub pg_version: u32,
    /// This run of the proposer.
    pub proposer_id: ProposerId,
    /// System identifier of the cluster.
    pub system_id: u64,
    /// The timeline.
    pub timeline_id: TimelineId,
    /// The tenant that owns it.
    pub tenant_id: TenantId,
    /// PostgreSQL's own timeline number, always 1 here.
    pub pg_timeline: u32,
    /// Size of a WAL segment, in bytes.
    pub wal_seg_size: u32,
}

impl ProposerGreeting {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 80;

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::LEN);
        out.put_u64_le(TAG_GREETING);
        out.put_u32_le(PROTOCOL_VERSION);
        out.put_u32_le(self.pg_version);
        out.put_slice(&self.proposer_id.0);
        out.put_u64_le(self.system_id);
        out.put_slice(&self.timeline_id.as_bytes());
        out.put_slice(&self.tenant_id.as_bytes());
        out.put_u32_le(self.pg_timeline);
        out.put_u32_le(self.wal_seg_size);
        assert_eq!(out.len(), Self::LEN, "the fields of a greeting have fixed sizes");
        out
    }

    fn decode(raw: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::after_tag("ProposerGreeting", raw);
        // Other versions may have other fields: nothing more is known of them.
        let version = reader.u32()?;
        if version != PROTOCOL_VERSION {
            return Err(DecodeError::ProtocolVersion(version));
        }
        let greeting = ProposerGreeting {
            pg_version: reader.u32()?,
            proposer_id: ProposerId(reader.id()?),
            system_id: reader.u64()?,
            timeline_id: reader.id()?.into(),
            tenant_id: reader.id()?.into(),
            pg_timeline: reader.u32()?,
            wal_seg_size: reader.u32()?,
        };
        reader.finish()?;
        Ok(greeting)
    }
}

/// Asks an acceptor to vote for this proposer in `term`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VoteRequest {
    /// The term to be elected in.
    pub term: Term,
    /// The candidate.
    pub proposer_id: ProposerId,
}

impl VoteRequest {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 32;

    fn encode(&self) -> [u8; Self::LEN] {
        let mut raw = [0; Self::LEN];
        raw[..8].copy_from_slice(&TAG_VOTE.to_le_bytes());
        raw[8..16].copy_from_slice(&self.term.0.to_le_bytes());
        raw[16..].copy_from_slice(&self.proposer_id.0);
        raw
    }

    fn decode(raw: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::after_tag("VoteRequest", raw);
        let vote = VoteRequest {
            term: reader.term()?,
            proposer_id: ProposerId(reader.id()?),
        };
        reader.finish()?;
        Ok(vote)
    }
}

/// Tells an acceptor that the proposer is elected, and where its WAL goes on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProposerElected {
    /// The term of the proposer.
    pub term: Term,
    /// End of the WAL the acceptor has in common with the proposer; what it has behind is cut off.
    pub start_streaming_at: Lsn,
    /// The history with the proposer's own term as the last entry.
    pub term_history: TermHistory,
    /// Where the timeline's WAL begins.
    pub timeline_start_lsn: Lsn,
}

impl ProposerElected {
    fn encode(&self, out: &mut BytesMut) {
        out.reserve(TAG_LEN + 24 + self.term_history.encoded_len());
        out.put_u64_le(TAG_ELECTED);
        out.put_u64_le(self.term.0);
        out.put_u64_le(self.start_streaming_at.0);
        self.term_history.encode(out);
        out.put_u64_le(self.timeline_start_lsn.0);
    }

    fn decode(raw: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::after_tag("ProposerElected", raw);
        let elected = ProposerElected {
            term: reader.term()?,
            start_streaming_at: reader.lsn()?,
            term_history: reader.term_history()?,
            timeline_start_lsn: reader.lsn()?,
        };
        reader.finish()?;
        Ok(elected)
    }
}

/// WAL to be appended, or a heartbeat if it carries none.
#[derive(Clone, Eq, PartialEq)]
pub struct AppendRequest {
    /// The term of the proposer.
    pub term: Term,
    /// Where the WAL of that term begins.
    pub epoch_start_lsn: Lsn,
    /// Position of the first byte of `wal`.
    pub begin_lsn: Lsn,
    /// Everything before this is on a quorum.
    pub commit_lsn: Lsn,
    /// Everything before this is on all safekeepers.
    pub truncate_lsn: Lsn,
    /// The sender.
    pub proposer_id: ProposerId,
    /// The WAL, at most [`APPEND_WAL_BYTES_MAX`] bytes.
    pub wal: Bytes,
}

impl AppendRequest {
    /// Length of everything before the WAL, in bytes, with the tag.
    pub const HEADER_LEN: usize = 72;

    /// Position behind the last byte of `wal`.
    pub fn end_lsn(&self) -> Lsn {
        self.begin_lsn + self.wal.len() as u64
    }

    /// What stands in front of the WAL, so that a sender need not copy the WAL behind it.
    pub fn encode_header(&self) -> [u8; Self::HEADER_LEN] {
        assert!(
            self.wal.len() <= APPEND_WAL_BYTES_MAX,
            "append request of {} bytes",
            self.wal.len()
        );
        let mut raw = [0; Self::HEADER_LEN];
        let numbers = [
            TAG_APPEND,
            self.term.0,
            self.epoch_start_lsn.0,
            self.begin_lsn.0,
            self.end_lsn().0,
            self.commit_lsn.0,
            self.truncate_lsn.0,
        ];
        for (slot, number) in raw.chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        raw[56..].copy_from_slice(&self.proposer_id.0);
        raw
    }

    fn decode(raw: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::after_tag("AppendRequest", raw);
        let (term, epoch_start_lsn) = (reader.term()?, reader.lsn()?);
        let (begin, end) = (reader.lsn()?, reader.lsn()?);
        let (commit_lsn, truncate_lsn) = (reader.lsn()?, reader.lsn()?);
        let proposer_id = ProposerId(reader.id()?);
        let len = end
            .checked_sub(begin)
            .filter(|len| *len <= APPEND_WAL_BYTES_MAX as u64)
            .ok_or(DecodeError::AppendRange { begin, end })?;
        let wal = reader.bytes(len as usize)?;
        reader.finish()?;
        Ok(AppendRequest {
            term,
            epoch_start_lsn,
            begin_lsn: begin,
            commit_lsn,
            truncate_lsn,
            proposer_id,
            wal,
        })
    }
}

/// Shows how much WAL there is, not the WAL itself: it holds user data.
impl std::fmt::Debug for AppendRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppendRequest")
            .field("term", &self.term.0)
            .field("epoch_start_lsn", &self.epoch_start_lsn)
            .field("begin_lsn", &self.begin_lsn)
            .field("wal_bytes", &self.wal.len())
            .field("commit_lsn", &self.commit_lsn)
            .field("truncate_lsn", &self.truncate_lsn)
            .finish_non_exhaustive()
    }
}
