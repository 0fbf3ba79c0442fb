//! Messages from an acceptor to the proposer.

use bytes::{BufMut, Bytes, BytesMut};
use utils::id::NodeId;
use utils::lsn::Lsn;

use super::wire::{Reader, tag_of};
use super::{DecodeError, HotStandbyFeedback, PageserverFeedback, Term, TermHistory};

const TAG_GREETING: u64 = b'g' as u64;
const TAG_VOTE: u64 = b'v' as u64;
const TAG_APPEND: u64 = b'a' as u64;

/// Any message from an acceptor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AcceptorMessage {
    /// Answer to the proposer's greeting.
    Greeting(AcceptorGreeting),
    /// Answer to a vote request.
    VoteResponse(VoteResponse),
    /// Answer to one or more append requests.
    AppendResponse(AppendResponse),
}

impl AcceptorMessage {
    /// Reads one message.
    ///
    /// # Errors
    /// [`DecodeError`] if `raw` is not exactly one message of an acceptor.
    pub fn decode(raw: Bytes) -> Result<AcceptorMessage, DecodeError> {
        match tag_of(&raw)? {
            TAG_GREETING => AcceptorGreeting::decode(raw).map(AcceptorMessage::Greeting),
            TAG_VOTE => VoteResponse::decode(raw).map(AcceptorMessage::VoteResponse),
            TAG_APPEND => AppendResponse::decode(raw).map(AcceptorMessage::AppendResponse),
            tag => Err(DecodeError::UnknownTag(tag)),
        }
    }

    /// Appends the wire form.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            AcceptorMessage::Greeting(greeting) => greeting.encode(out),
            AcceptorMessage::VoteResponse(vote) => vote.encode(out),
            AcceptorMessage::AppendResponse(append) => append.encode(out),
        }
    }
}

/// Answer to the proposer's greeting.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AcceptorGreeting {
    /// The acceptor's stored term.
    pub term: Term,
    /// The safekeeper.
    pub node_id: NodeId,
}

impl AcceptorGreeting {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 24;

    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(TAG_GREETING);
        out.put_u64_le(self.term.0);
        out.put_u64_le(self.node_id.0);
    }

    fn decode(raw: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::after_tag("AcceptorGreeting", raw);
        let greeting = AcceptorGreeting {
            term: reader.term()?,
            node_id: NodeId(reader.u64()?),
        };
        reader.finish()?;
        Ok(greeting)
    }
}

/// Answer to a vote request. It carries the state of the acceptor whether it voted or not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VoteResponse {
    /// The acceptor's term after the request.
    pub term: Term,
    /// Whether the vote was given.
    pub vote_given: bool,
    /// End of the acceptor's durable WAL.
    pub flush_lsn: Lsn,
    /// Everything before this was on all safekeepers, as far as the acceptor knows.
    pub truncate_lsn: Lsn,
    /// The acceptor's history, cut at `flush_lsn`.
    pub term_history: TermHistory,
    /// Where the timeline's WAL begins; 0 if the acceptor does not know.
    pub timeline_start_lsn: Lsn,
}

impl VoteResponse {
    fn encode(&self, out: &mut BytesMut) {
        out.reserve(48 + self.term_history.encoded_len());
        out.put_u64_le(TAG_VOTE);
        out.put_u64_le(self.term.0);
        out.put_u64_le(u64::from(self.vote_given));
        out.put_u64_le(self.flush_lsn.0);
        out.put_u64_le(self.truncate_lsn.0);
        self.term_history.encode(out);
        out.put_u64_le(self.timeline_start_lsn.0);
    }

    fn decode(raw: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::after_tag("VoteResponse", raw);
        let vote = VoteResponse {
            term: reader.term()?,
            vote_given: reader.flag("voteGiven")?,
            flush_lsn: reader.lsn()?,
            truncate_lsn: reader.lsn()?,
            term_history: reader.term_history()?,
            timeline_start_lsn: reader.lsn()?,
        };
        reader.finish()?;
        Ok(vote)
    }
}

/// Answer to one or more append requests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AppendResponse {
    /// The acceptor's term; above the proposer's if a newer one has been elected.
    pub term: Term,
    /// End of the last whole record in the acceptor's durable WAL; 0 if the request was refused.
    pub flush_lsn: Lsn,
    /// The acceptor's persisted commit LSN; 0 if the request was refused.
    pub commit_lsn: Lsn,
    /// What hot standbys of this acceptor need.
    pub hs_feedback: HotStandbyFeedback,
    /// How far the pageserver is, if one has reported.
    pub pageserver_feedback: Option<PageserverFeedback>,
}

impl AppendResponse {
    /// Length of everything before the pageserver feedback, in bytes, with the tag.
    pub const FIXED_LEN: usize = 56;

    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(TAG_APPEND);
        out.put_u64_le(self.term.0);
        out.put_u64_le(self.flush_lsn.0);
        out.put_u64_le(self.commit_lsn.0);
        out.put_i64_le(self.hs_feedback.ts);
        out.put_u64_le(self.hs_feedback.xmin);
        out.put_u64_le(self.hs_feedback.catalog_xmin);
        if let Some(feedback) = &self.pageserver_feedback {
            feedback.encode(out);
        }
    }

    fn decode(raw: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::after_tag("AppendResponse", raw);
        let (term, flush_lsn, commit_lsn) = (reader.term()?, reader.lsn()?, reader.lsn()?);
        let hs_feedback = HotStandbyFeedback {
            ts: reader.i64()?,
            xmin: reader.u64()?,
            catalog_xmin: reader.u64()?,
        };
        let pageserver_feedback = match reader.remaining() {
            0 => None,
            rest => Some(PageserverFeedback::decode(&reader.bytes(rest)?)?),
        };
        Ok(AppendResponse {
            term,
            flush_lsn,
            commit_lsn,
            hs_feedback,
            pageserver_feedback,
        })
    }
}
