//! The acceptor: a safekeeper's half of the consensus protocol, as a deterministic state machine.
//!
//! A message of a proposer goes in; ordered [`Action`]s come out. Whoever drives it carries the actions
//! out one after the other and stops at the first that fails. It reads no clock, randomness, disk or
//! socket, so that a simulator can run the very same code over a disk of its own.
//!
//! Rules and wire format: `libpq.md`, section 5.3.
//!
//! Invariants
//! * A reply comes behind every `PersistControl`, `FlushWal` and `TruncateWal` it depends on: what a
//!   proposer is told survives a crash between any two actions.
//! * Nothing depends on a `SavePositions` before [`Acceptor::positions_saved`]: until then the positions
//!   are not reported as persisted, and no WAL is removed for their sake.
//! * The term never goes back. A vote is given once per term, and the term is durable before the answer.
//! * The term history names a term only once the WAL that contradicts it is gone: truncation is
//!   durable before the new history is. The other way round, a crash would make old WAL pass for WAL of
//!   the new term.
//! * WAL is appended at `write_lsn` only, and only in the term whose proposer was heard to be elected
//!   since the WAL was opened. Nothing before `commit_lsn` is ever cut off.
//! * `flush_lsn` is always the end of a whole record.
//!
//! When an action fails, the state here is ahead of the disk. The driver then drops the acceptor and
//! makes a new one with [`Acceptor::recover`] from what is durable; no reply behind the failed action
//! has been sent, so nobody depends on what is lost.
//!
//! Not here: creating timelines, connections, and reading the WAL.

mod refusal;
mod state;

use bytes::Bytes;
use safekeeper_api::mutation::{Mutation, is_active};
use safekeeper_api::protocol::{
    AcceptorGreeting, AcceptorMessage, AppendRequest, AppendResponse, HotStandbyFeedback, PageserverFeedback,
    ProposerElected, ProposerGreeting, ProposerId, ProposerMessage, Term, VoteRequest, VoteResponse,
};
use utils::id::NodeId;
use utils::lsn::Lsn;

use postgres_ffi::v15::BLCKSZ;
use postgres_ffi::v15::stream::{Checksums, RecordEnds};
use postgres_ffi::v15::wal_page;
pub use refusal::{ElectedProblem, Refusal};
pub use state::{ControlState, PeerState, ServerInfo};

/// Something to be done, in the order given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Replace the control file; durable before the next action.
    PersistControl(Box<ControlState>),
    /// Raise the positions in the control file to these at least, and call [`Acceptor::positions_saved`]
    /// when that is durable. The actions behind it need not wait for it. A `PersistControl` that comes
    /// before its end keeps what it has written.
    SavePositions(Positions),
    /// Write WAL, not necessarily durable. `begin` is the end of what was written before.
    WriteWal {
        /// Position of the first byte.
        begin: Lsn,
        /// The WAL.
        bytes: Bytes,
    },
    /// Make all WAL written so far durable; the last whole record in it ends at `up_to`.
    FlushWal {
        /// End of the last whole record.
        up_to: Lsn,
    },
    /// Cut the WAL off at `to` and leave zeros behind it; durable before the next action.
    TruncateWal {
        /// New end of the WAL.
        to: Lsn,
    },
    /// Send a message on the connection whose message was given.
    Reply(AcceptorMessage),
}

/// What readers of this acceptor's WAL have reported, passed on to the proposer.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReaderFeedback {
    /// Combination over the hot standbys.
    pub standby: HotStandbyFeedback,
    /// Report of the pageserver that has received most.
    pub pageserver: Option<PageserverFeedback>,
}

/// Positions another safekeeper of the timeline has published.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PeerInfo {
    /// Term of the last record of its WAL.
    pub last_log_term: Option<Term>,
    /// Its commit LSN.
    pub commit_lsn: Lsn,
    /// WAL before this is in object storage.
    pub backup_lsn: Lsn,
    /// WAL before this is of no more use to the pageserver.
    pub remote_consistent_lsn: Lsn,
    /// WAL before this is on all safekeepers, and committed.
    pub peer_horizon_lsn: Lsn,
}

/// Positions that advance more often than the control file is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Positions {
    /// WAL before this is final.
    pub commit_lsn: Lsn,
    /// WAL before this is in object storage.
    pub backup_lsn: Lsn,
    /// WAL before this is on all safekeepers, and committed.
    pub peer_horizon_lsn: Lsn,
    /// WAL before this is of no more use to the pageserver.
    pub remote_consistent_lsn: Lsn,
}

impl Positions {
    /// Each of them as far as the one that is further.
    pub fn max(self, other: Positions) -> Positions {
        Positions {
            commit_lsn: self.commit_lsn.max(other.commit_lsn),
            backup_lsn: self.backup_lsn.max(other.backup_lsn),
            peer_horizon_lsn: self.peer_horizon_lsn.max(other.peer_horizon_lsn),
            remote_consistent_lsn: self.remote_consistent_lsn.max(other.remote_consistent_lsn),
        }
    }
}

/// Whether a record, or the page header in front of one, can stand at `lsn`.
fn may_start_record(lsn: Lsn, segment_size: usize) -> bool {
    let offset = lsn.page_offset(BLCKSZ);
    let page = Lsn(lsn.0 - offset as u64);
    let outside_header = offset == 0 || offset >= wal_page::header_len(page, segment_size);
    lsn.is_valid() && lsn.is_aligned() && outside_header
}

/// The state machine. See the module's head.
#[derive(Debug)]
pub struct Acceptor {
    node_id: NodeId,
    /// As of the last `PersistControl` or finished `SavePositions`.
    control: ControlState,
    positions: Positions,
    /// Whether a `SavePositions` is not finished yet.
    saving: bool,
    /// Positions that are ahead of the control file by more than this, in bytes, are saved.
    save_lag: u64,
    proposer_id: ProposerId,
    write_lsn: Lsn,
    /// End of the last whole record written.
    record_lsn: Lsn,
    flush_lsn: Lsn,
    /// Whether WAL was written since the last `FlushWal`.
    dirty: bool,
    /// Highest commit LSN the proposer has told, which the WAL here may not reach yet.
    announced_commit_lsn: Lsn,
    response_due: bool,
    /// Follows the records of what is appended; `None` until a proposer is heard to be elected.
    scan: Option<RecordEnds>,
}

impl Acceptor {
    /// The acceptor with the durable state `control` and durable WAL whose last whole record ends at
    /// `flush_lsn` (0 if there is none).
    pub fn recover(node_id: NodeId, control: ControlState, flush_lsn: Lsn) -> Self {
        assert!(
            flush_lsn >= control.commit_lsn,
            "WAL of {} ends at {flush_lsn}, before its commit LSN {}",
            control.id,
            control.commit_lsn
        );
        Acceptor {
            node_id,
            positions: control.positions(),
            saving: false,
            save_lag: u64::from(control.server.wal_seg_size),
            proposer_id: control.proposer_id,
            control,
            write_lsn: flush_lsn,
            record_lsn: flush_lsn,
            flush_lsn,
            dirty: false,
            announced_commit_lsn: Lsn::INVALID,
            response_due: false,
            scan: None,
        }
    }

    /// Saves positions whenever they are more than `bytes` ahead of the control file, instead of a segment.
    pub fn with_save_lag(mut self, bytes: u64) -> Self {
        self.save_lag = bytes;
        self
    }

    /// A [`Action::SavePositions`] with these positions is done: they are durable. If others have got far ahead
    /// meanwhile, they are saved next; nothing else may come that would have it done.
    pub fn positions_saved(&mut self, saved: Positions, out: &mut Vec<Action>) {
        self.control.raise_positions(saved);
        self.saving = false;
        self.check_order();
        self.save_if_far_ahead(out);
    }

    /// The state as the control file has it once the actions so far are carried out; positions that are
    /// being saved do not count yet.
    pub fn control(&self) -> &ControlState {
        &self.control
    }

    /// The positions as they are in memory.
    pub fn positions(&self) -> Positions {
        self.positions
    }

    /// The proposer that was heard last.
    pub fn proposer_id(&self) -> ProposerId {
        self.proposer_id
    }

    /// The acceptor's term.
    pub fn term(&self) -> Term {
        self.control.term
    }

    /// Term of the last record of the durable WAL.
    pub fn epoch(&self) -> Term {
        self.control.term_history.epoch_at(self.flush_lsn)
    }

    /// End of the bytes written, which may be in the middle of a record.
    pub fn write_lsn(&self) -> Lsn {
        self.write_lsn
    }

    /// End of the last whole record written.
    pub fn record_lsn(&self) -> Lsn {
        self.record_lsn
    }

    /// End of the last whole record that is durable once the actions so far are carried out.
    pub fn flush_lsn(&self) -> Lsn {
        self.flush_lsn
    }

    /// Start of the last record appended since a proposer was elected, if there was one.
    pub fn last_record_start(&self) -> Option<Lsn> {
        let scan = self.scan.as_ref()?;
        (scan.last_start() < scan.last_end()).then(|| scan.last_start())
    }

    /// One message in, actions out. Append requests are only written: call [`Self::finish_batch`] once
    /// no more of them are at hand.
    ///
    /// # Errors
    /// The message is refused: term, history and WAL are as before, and `out` holds at most a flush of
    /// what was written before.
    pub fn step(&mut self, message: ProposerMessage, out: &mut Vec<Action>) -> Result<(), Refusal> {
        let (term_before, commit_before) = (self.control.term, self.positions.commit_lsn);
        let result = match message {
            ProposerMessage::Greeting(greeting) => self.on_greeting(greeting, out),
            ProposerMessage::VoteRequest(vote) => {
                self.on_vote(vote, out);
                Ok(())
            }
            ProposerMessage::Elected(elected) => self.on_elected(elected, out),
            ProposerMessage::Append(append) => self.on_append(append, out),
        };
        assert!(
            self.control.term >= term_before,
            "the term went back from {term_before}"
        );
        assert!(
            self.positions.commit_lsn >= commit_before,
            "the commit LSN went back"
        );
        self.check_order();
        result
    }

    fn check_order(&self) {
        assert!(self.control.commit_lsn <= self.positions.commit_lsn);
        assert!(self.positions.commit_lsn <= self.flush_lsn);
        assert!(self.flush_lsn <= self.record_lsn);
        assert!(self.record_lsn <= self.write_lsn);
    }

    fn on_greeting(&mut self, greeting: ProposerGreeting, out: &mut Vec<Action>) -> Result<(), Refusal> {
        let ControlState { id, server, .. } = &self.control;
        if server.pg_version != 0 && greeting.pg_version / 10_000 != server.pg_version / 10_000 {
            return Err(Refusal::ServerVersion {
                got: greeting.pg_version,
                expected: server.pg_version,
            });
        }
        if greeting.tenant_id != id.tenant_id {
            return Err(Refusal::Tenant {
                got: greeting.tenant_id,
                expected: id.tenant_id,
            });
        }
        if greeting.timeline_id != id.timeline_id {
            return Err(Refusal::Timeline {
                got: greeting.timeline_id,
                expected: id.timeline_id,
            });
        }
        if greeting.wal_seg_size != server.wal_seg_size {
            return Err(Refusal::WalSegSize {
                got: greeting.wal_seg_size,
                expected: server.wal_seg_size,
            });
        }
        self.proposer_id = greeting.proposer_id;
        // A proposer that only synchronises runs before there is a cluster, and names none.
        let system_id = match greeting.system_id {
            0 => server.system_id,
            named => named,
        };
        if system_id != server.system_id || server.pg_version == 0 {
            self.control.server.system_id = system_id;
            self.control.server.pg_version = greeting.pg_version;
            self.persist(out);
        }
        out.push(Action::Reply(AcceptorMessage::Greeting(AcceptorGreeting {
            term: self.control.term,
            node_id: self.node_id,
        })));
        Ok(())
    }

    fn on_vote(&mut self, request: VoteRequest, out: &mut Vec<Action>) {
        self.flush(out);
        let again = is_active(Mutation::VoteTwice) && self.control.term == request.term;
        let vote_given = self.control.term < request.term || again;
        if vote_given {
            self.control.term = request.term;
            if !is_active(Mutation::VoteWithoutPersist) {
                self.persist(out);
            }
        }
        let flush_lsn = self.flush_lsn.max(self.control.timeline_start_lsn);
        out.push(Action::Reply(AcceptorMessage::VoteResponse(VoteResponse {
            term: self.control.term,
            vote_given,
            flush_lsn,
            truncate_lsn: self.positions.peer_horizon_lsn,
            term_history: self.control.term_history.up_to(flush_lsn),
            timeline_start_lsn: self.control.timeline_start_lsn,
        })));
    }

    fn on_elected(&mut self, elected: ProposerElected, out: &mut Vec<Action>) -> Result<(), Refusal> {
        if elected.term < self.control.term {
            return Ok(());
        }
        self.flush(out);
        let start = elected.start_streaming_at;
        let scan = self.check_elected(&elected).map_err(|reason| Refusal::Elected {
            term: elected.term,
            start,
            reason,
        })?;
        if elected.term > self.control.term {
            self.control.term = elected.term;
            self.persist(out);
        }
        if !is_active(Mutation::HistoryBeforeTruncate) && !is_active(Mutation::KeepDivergedWal) {
            out.push(Action::TruncateWal { to: start });
        }
        (self.write_lsn, self.record_lsn, self.flush_lsn) = (start, start, start);
        self.scan = Some(scan);
        self.announced_commit_lsn = Lsn::INVALID;

        let control = &mut self.control;
        control.term_history = elected.term_history;
        if is_active(Mutation::ForgetHistoryEntry) {
            control.term_history = control.term_history.without_last_but_one();
        }
        if !control.timeline_start_lsn.is_valid() {
            control.timeline_start_lsn = elected.timeline_start_lsn;
        }
        if !control.local_start_lsn.is_valid() {
            control.local_start_lsn = start;
        }
        let first = control.timeline_start_lsn;
        let positions = &mut self.positions;
        positions.commit_lsn = positions.commit_lsn.max(first);
        positions.backup_lsn = positions.backup_lsn.max(first);
        positions.remote_consistent_lsn = positions.remote_consistent_lsn.max(first);
        self.persist(out);
        if is_active(Mutation::HistoryBeforeTruncate) {
            out.push(Action::TruncateWal { to: start });
        }
        Ok(())
    }

    /// Whether the WAL here can be made to follow the elected proposer's.
    fn check_elected(&self, elected: &ProposerElected) -> Result<RecordEnds, ElectedProblem> {
        let start = elected.start_streaming_at;
        if elected.term_history.last().map(|last| last.term) != Some(elected.term) {
            return Err(ElectedProblem::History);
        }
        if elected.term == self.epoch() && self.flush_lsn > start {
            return Err(ElectedProblem::SameTermAhead(self.flush_lsn));
        }
        if start < self.positions.commit_lsn {
            return Err(ElectedProblem::Committed(self.positions.commit_lsn));
        }
        if self.flush_lsn.is_valid() && start > self.flush_lsn {
            return Err(ElectedProblem::Gap(self.flush_lsn));
        }
        let first = match self.control.timeline_start_lsn {
            Lsn::INVALID => elected.timeline_start_lsn,
            known => known,
        };
        let segment_size = self.control.server.wal_seg_size as usize;
        if first > start || !may_start_record(start, segment_size) {
            return Err(ElectedProblem::NoBoundary);
        }
        Ok(RecordEnds::new(start, segment_size, Checksums::Verify))
    }

    fn on_append(&mut self, request: AppendRequest, out: &mut Vec<Action>) -> Result<(), Refusal> {
        if request.term < self.control.term && !is_active(Mutation::AppendInOldTerm) {
            out.push(Action::Reply(AcceptorMessage::AppendResponse(AppendResponse {
                term: self.control.term,
                flush_lsn: Lsn::INVALID,
                commit_lsn: Lsn::INVALID,
                hs_feedback: HotStandbyFeedback::NONE,
                pageserver_feedback: None,
            })));
            return Ok(());
        }
        // Having voted for a term is not enough: the WAL here may still contradict the term's.
        let follows = self.control.term_history.last().map(|last| last.term) == Some(request.term);
        if request.term > self.control.term || !follows || self.scan.is_none() {
            return Err(Refusal::AppendBeforeElected(request.term));
        }
        self.proposer_id = request.proposer_id;
        if !request.wal.is_empty() {
            self.append(request.begin_lsn, request.wal, out)?;
        }
        self.announced_commit_lsn = self.announced_commit_lsn.max(request.commit_lsn);
        let positions = &mut self.positions;
        positions.peer_horizon_lsn = positions.peer_horizon_lsn.max(request.truncate_lsn);
        self.response_due = true;
        Ok(())
    }

    fn append(&mut self, begin: Lsn, wal: Bytes, out: &mut Vec<Action>) -> Result<(), Refusal> {
        let write_lsn = self.write_lsn;
        if begin < write_lsn {
            return Err(Refusal::Rewrites { write_lsn, begin });
        }
        if begin > write_lsn {
            return Err(Refusal::Gap { write_lsn, begin });
        }
        // Taken out: if the WAL is malformed, only another election makes the end of ours known.
        let mut scan = self
            .scan
            .take()
            .expect("on_append has checked that the scan is there");
        scan.feed(&wal)
            .map_err(|source| Refusal::Malformed { begin, source })?;
        self.write_lsn = write_lsn + wal.len() as u64;
        assert_eq!(
            scan.fed_lsn(),
            self.write_lsn,
            "the scan has seen what is written"
        );
        self.record_lsn = scan.last_end();
        self.scan = Some(scan);
        self.dirty = true;
        out.push(Action::WriteWal { begin, bytes: wal });
        Ok(())
    }

    /// Makes what was appended durable and answers the append requests since the last batch, if there
    /// were any, with one response.
    pub fn finish_batch(&mut self, feedback: ReaderFeedback, out: &mut Vec<Action>) {
        self.flush(out);
        if !std::mem::take(&mut self.response_due) {
            return;
        }
        self.advance_commit(self.announced_commit_lsn);
        self.save_if_far_ahead(out);
        self.check_order();
        let term = match is_active(Mutation::AppendInOldTerm) {
            true => self
                .control
                .term_history
                .last()
                .map_or(Term::ZERO, |last| last.term),
            false => self.control.term,
        };
        out.push(Action::Reply(AcceptorMessage::AppendResponse(AppendResponse {
            term,
            flush_lsn: self.flush_lsn,
            commit_lsn: self.control.commit_lsn,
            hs_feedback: feedback.standby,
            pageserver_feedback: feedback.pageserver,
        })));
    }

    /// Takes what another safekeeper has published.
    pub fn on_peer_info(&mut self, peer: PeerInfo, out: &mut Vec<Action>) {
        let epoch = self.epoch();
        // Only a peer whose WAL is of the same term certainly has the same WAL.
        let same_epoch = epoch != Term::ZERO && peer.last_log_term == Some(epoch);
        if same_epoch || is_active(Mutation::PeerCommitOfOtherTerm) {
            self.advance_commit(peer.commit_lsn);
        }
        self.advance_backup_lsn(peer.backup_lsn);
        self.advance_remote_consistent_lsn(peer.remote_consistent_lsn);
        let positions = &mut self.positions;
        positions.peer_horizon_lsn = positions.peer_horizon_lsn.max(peer.peer_horizon_lsn);
        self.check_order();
        self.save_if_far_ahead(out);
    }

    /// WAL before `lsn` is in object storage.
    pub fn advance_backup_lsn(&mut self, lsn: Lsn) {
        self.positions.backup_lsn = self.positions.backup_lsn.max(lsn);
    }

    /// WAL before `lsn` is of no more use to the pageserver. Nothing behind the end of the WAL can be.
    pub fn advance_remote_consistent_lsn(&mut self, lsn: Lsn) {
        self.positions.remote_consistent_lsn = self.positions.remote_consistent_lsn.max(lsn);
    }

    fn advance_commit(&mut self, lsn: Lsn) {
        let known = match is_active(Mutation::CommitWithoutWal) {
            true => lsn,
            false => lsn.min(self.flush_lsn),
        };
        self.positions.commit_lsn = self.positions.commit_lsn.max(known);
    }

    fn flush(&mut self, out: &mut Vec<Action>) {
        if std::mem::take(&mut self.dirty) {
            self.flush_lsn = self.record_lsn;
            if !is_active(Mutation::AcknowledgeBeforeFlush) {
                out.push(Action::FlushWal {
                    up_to: self.flush_lsn,
                });
            }
        }
    }

    /// Has the positions saved if what the control file says is far behind. If the first WAL of the newest
    /// term has just become final, the control file is written at once: a proposer that only synchronises
    /// waits for that.
    pub fn save_if_far_ahead(&mut self, out: &mut Vec<Action>) {
        let (now, then) = (&self.positions, &self.control);
        let epoch_start = then.epoch_start_lsn();
        if now.commit_lsn >= epoch_start && then.commit_lsn < epoch_start {
            return self.persist(out);
        }
        let lags = [
            (now.commit_lsn, then.commit_lsn),
            (now.backup_lsn, then.backup_lsn),
            (now.peer_horizon_lsn, then.peer_horizon_lsn),
            (now.remote_consistent_lsn, then.remote_consistent_lsn),
        ];
        let is_far = lags
            .iter()
            .any(|(now, then)| now.saturating_sub(*then) > self.save_lag);
        if is_far && !self.saving {
            self.saving = true;
            out.push(Action::SavePositions(self.positions));
            if is_active(Mutation::CountUnsavedPositions) {
                self.control.raise_positions(self.positions);
            }
        }
    }

    fn persist(&mut self, out: &mut Vec<Action>) {
        self.control.raise_positions(self.positions);
        self.control.proposer_id = self.proposer_id;
        out.push(Action::PersistControl(Box::new(self.control.clone())));
    }
}

#[cfg(test)]
mod tests;
