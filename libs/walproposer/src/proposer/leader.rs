//! An elected proposer: who is sent which WAL, and what is committed.
//!
//! Invariants
//! * A safekeeper is sent a contiguous run of WAL from the end of what it has in common with this term.
//! * `commit_lsn` is at most what a quorum has reported as durable in this term, and never goes back. A
//!   report below `epoch_start_lsn` counts as nothing: WAL of earlier terms is committed only together
//!   with the start of this one, when no safekeeper with less can be elected any more.
//! * All WAL from `commit_lsn` on is in the window, so that it can be sent to anyone. WAL before the
//!   window is committed, so a quorum has it, and one of the quorum is there whenever a quorum is.

use std::time::Duration;

use bytes::Bytes;
use safekeeper_api::mutation::{Mutation, is_active};
use safekeeper_api::protocol::{
    APPEND_WAL_BYTES_MAX, AppendRequest, AppendResponse, HotStandbyFeedback, PageserverFeedback,
    ProposerElected, ProposerId, ProposerMessage, SAFEKEEPERS_MAX, Term, TermHistory,
};
use utils::lsn::Lsn;

use super::election::Findings;
use super::hold::Hold;
use crate::config::{Config, Limits, Mode};
use crate::event::{Action, DisconnectReason, Fetch, SkIndex, Time};
use crate::peer::{Peer, Stage};
use crate::window::WalWindow;

/// Bytes of a message that count as waiting in an outbox.
pub(super) fn outbox_bytes(message: &ProposerMessage) -> u64 {
    match message {
        ProposerMessage::Append(append) => (AppendRequest::HEADER_LEN + append.wal.len()) as u64,
        _ => 0,
    }
}

/// State of an elected proposer beside that of its safekeepers.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) term: Term,
    pub(super) epoch_start_lsn: Lsn,
    pub(super) commit_lsn: Lsn,
    pub(super) window: WalWindow,
    truncate_lsn: Lsn,
    timeline_start_lsn: Lsn,
    history: TermHistory,
    proposer_id: ProposerId,
    quorum: usize,
    /// Since when the commit LSN has been further than safekeepers were told.
    untold_since: Option<Time>,
    commit_pause: Duration,
    hold: Hold,
    limits: Limits,
    reports_commit: bool,
    pageserver: Option<PageserverFeedback>,
    standby: HotStandbyFeedback,
}

impl Leader {
    /// The winner of the election in `term`; `findings.history` ends with that term.
    pub(super) fn new(config: &Config, term: Term, findings: Findings) -> Leader {
        let last = findings
            .history
            .last()
            .expect("the new term is in its own history");
        assert_eq!((last.term, last.lsn), (term, findings.end));
        assert!(findings.truncate_lsn <= findings.end);
        Leader {
            term,
            epoch_start_lsn: findings.end,
            commit_lsn: match is_active(Mutation::CommitAtElection) {
                true => findings.end,
                false => Lsn::INVALID,
            },
            window: WalWindow::new(findings.end),
            truncate_lsn: findings.truncate_lsn,
            timeline_start_lsn: findings.timeline_start_lsn,
            history: findings.history,
            proposer_id: config.greeting.proposer_id,
            quorum: config.quorum(),
            untold_since: None,
            commit_pause: config.commit_pause,
            hold: Hold::new(config.hold_back, config.safekeepers, config.quorum()),
            limits: config.limits,
            reports_commit: matches!(config.mode, Mode::Stream { .. }),
            pageserver: None,
            standby: HotStandbyFeedback::NONE,
        }
    }

    /// What must hold between any two steps.
    pub(super) fn check(&self, peers: &[Peer]) {
        let (start, end) = (self.window.start(), self.window.end());
        assert!(self.commit_lsn <= end, "committed {} of {end}", self.commit_lsn);
        assert!(
            self.truncate_lsn <= end,
            "truncate at {} of {end}",
            self.truncate_lsn
        );
        assert!(
            start <= self.commit_lsn.max(self.epoch_start_lsn),
            "WAL before {start} is gone"
        );
        for peer in peers.iter().filter(|peer| peer.is_streaming()) {
            assert!(
                peer.flushed <= peer.next,
                "flushed {} of {}",
                peer.flushed,
                peer.next
            );
            assert!(peer.next <= end, "sent {} of {end}", peer.next);
        }
    }

    /// Whether there is room for more WAL of the local server.
    pub(super) fn wants_wal(&self, peers: &[Peer], quorum: usize) -> bool {
        let (start, end) = (self.window.start(), self.window.end());
        if end - start >= self.limits.wal_bytes_max {
            return false;
        }
        if end - self.commit_lsn.max(start) < self.limits.uncommitted_wal_bytes_soft {
            return true;
        }
        // A flush position moves at the end of a record only. If a quorum has been sent everything,
        // waiting for it would be waiting for ever.
        let sent_all = |peer: &&Peer| peer.is_streaming() && peer.next == end && peer.outbox_bytes == 0;
        peers.iter().filter(sent_all).count() >= quorum
    }

    /// Whether WAL for this safekeeper need not be held back.
    fn has_room(&self, peer: &Peer) -> bool {
        peer.outbox_bytes < self.limits.outbox_bytes_max
    }

    /// Sends the election's outcome to a safekeeper that has answered the vote request.
    ///
    /// # Errors
    /// What it has answered cannot be true.
    pub(super) fn tell(
        &mut self,
        peers: &mut [Peer],
        index: usize,
        out: &mut Vec<Action>,
    ) -> Result<(), DisconnectReason> {
        let peer = &mut peers[index];
        let Stage::Voted(vote) = &peer.stage else {
            unreachable!("the safekeeper has answered the vote request")
        };
        let first = self.history.entries()[0].lsn;
        let common = match is_active(Mutation::StartAtFlush) && vote.flush_lsn.is_valid() {
            true => Some(vote.flush_lsn),
            false => self.history.common_end(&vote.term_history, vote.flush_lsn),
        };
        let start = common.unwrap_or(first.max(self.truncate_lsn));
        if start > self.window.end() {
            return Err(DisconnectReason::Unexpected(
                "WAL of this term that was never sent",
            ));
        }
        peer.agreed = start.min(vote.flush_lsn);
        peer.next = start;
        peer.flushed = Lsn::INVALID;
        peer.commit_persisted = Lsn::INVALID;
        peer.commit_sent = Lsn::INVALID;
        peer.appended_at = None;
        peer.stage = Stage::Streaming;
        let elected = ProposerElected {
            term: self.term,
            start_streaming_at: start,
            term_history: self.history.clone(),
            timeline_start_lsn: self.timeline_start_lsn,
        };
        out.push(Action::Send(SkIndex(index), ProposerMessage::Elected(elected)));
        Ok(())
    }

    /// Takes WAL of the local server and sends it to all who have everything before it.
    pub(super) fn on_wal(&mut self, peers: &mut [Peer], wal: Bytes, now: Time, out: &mut Vec<Action>) {
        let begin = self.window.end();
        self.window.push(wal);
        self.release_wal();
        let uncommitted = self.window.end() - self.commit_lsn;
        let is_ready = |index: usize| peers[index].is_streaming() && peers[index].next == begin;
        self.hold.on_wal(uncommitted, is_ready, now);
        self.pump_all(peers, now, out);
        // Those who had no room for the WAL are told when they have.
        self.untold_since = None;
    }

    /// When something must be sent that is waiting.
    pub(super) fn due(&self) -> Option<Time> {
        self.commit_due().into_iter().chain(self.hold.due()).min()
    }

    /// When safekeepers are to be told the commit LSN though there is no WAL for them.
    fn commit_due(&self) -> Option<Time> {
        self.untold_since.map(|since| since.after(self.commit_pause))
    }

    /// Time has passed: what was held back for long enough is sent by the next [`Leader::pump`].
    pub(super) fn on_tick(&mut self, now: Time) {
        self.hold.on_tick(now);
    }

    /// A safekeeper's connection is gone. The others may have to do without it.
    pub(super) fn on_lost(&mut self, peers: &mut [Peer], index: usize, now: Time, out: &mut Vec<Action>) {
        self.hold.on_lost(index);
        self.pump_all(peers, now, out);
    }

    fn may_tell_commit(&self, now: Time) -> bool {
        self.commit_due().is_none_or(|due| due <= now)
    }

    /// All who have room were just told what may be told.
    pub(super) fn after_telling(&mut self, now: Time) {
        if self.may_tell_commit(now) {
            self.untold_since = None;
        }
    }

    /// Drops WAL that nobody needs from here. See the invariants.
    fn release_wal(&mut self) {
        let end = self.window.end();
        let kept = Lsn(end.0.saturating_sub(self.limits.committed_wal_bytes_kept));
        let everywhere = self.truncate_lsn.min(self.commit_lsn);
        let committed = match is_active(Mutation::ForgetUncommitted) {
            true => end,
            false => self.commit_lsn,
        };
        self.window.release(everywhere.max(committed.min(kept)));
    }

    pub(super) fn pump_all(&self, peers: &mut [Peer], now: Time, out: &mut Vec<Action>) {
        for index in 0..peers.len() {
            self.pump(peers, index, now, out);
        }
    }

    /// Sends a safekeeper what is there for it and fits its outbox: WAL, or else a new commit LSN that has waited for
    /// WAL long enough.
    pub(super) fn pump(&self, peers: &mut [Peer], index: usize, now: Time, out: &mut Vec<Action>) {
        let peer = &mut peers[index];
        if !peer.is_streaming() {
            return;
        }
        let held = self.hold.holds(index);
        while !held
            && self.has_room(peer)
            && self.window.start() <= peer.next
            && peer.next < self.window.end()
        {
            let wal = self.window.at(peer.next, APPEND_WAL_BYTES_MAX);
            self.append(peer, index, wal, now, out);
        }
        // The first request of a connection has no WAL if there is none: its answer counts all the same.
        let owes_first = peer.appended_at.is_none();
        let tells_commit = !held && peer.commit_sent < self.commit_lsn && self.may_tell_commit(now);
        if self.has_room(peer) && (owes_first || tells_commit) {
            self.append(peer, index, Bytes::new(), now, out);
        }
        if peer.next < self.window.start() {
            self.start_fetch(peers, index, now, out);
        }
    }

    fn append(&self, peer: &mut Peer, index: usize, wal: Bytes, now: Time, out: &mut Vec<Action>) {
        let begin_lsn = peer.next;
        peer.next += wal.len() as u64;
        peer.commit_sent = self.commit_lsn;
        peer.appended_at = Some(now);
        let message = ProposerMessage::Append(AppendRequest {
            term: self.term,
            epoch_start_lsn: self.epoch_start_lsn,
            begin_lsn,
            commit_lsn: self.commit_lsn,
            truncate_lsn: self.truncate_lsn,
            proposer_id: self.proposer_id,
            wal,
        });
        peer.outbox_bytes += outbox_bytes(&message);
        out.push(Action::Send(SkIndex(index), message));
    }

    /// Keeps a safekeeper answering, and looks for a donor again if it needs one.
    pub(super) fn heartbeat(
        &self,
        peers: &mut [Peer],
        index: usize,
        now: Time,
        period: Duration,
        out: &mut Vec<Action>,
    ) {
        let peer = &mut peers[index];
        let due = peer.appended_at.is_none_or(|at| at.after(period) <= now);
        if peer.is_streaming() && peer.outbox_bytes == 0 && due {
            self.append(peer, index, Bytes::new(), now, out);
        }
        self.pump(peers, index, now, out);
    }

    /// Looks for the safekeeper that agrees furthest and starts to read from it.
    fn start_fetch(&self, peers: &mut [Peer], index: usize, now: Time, out: &mut Vec<Action>) {
        let peer = &peers[index];
        if peer.fetch.is_some() || now < peer.fetch_at {
            return;
        }
        let begin = peer.next;
        let can_give =
            |(donor, other): &(usize, &Peer)| *donor != index && other.is_streaming() && other.agreed > begin;
        let donors = peers.iter().enumerate().filter(can_give);
        let best = donors.max_by_key(|(donor, other)| match is_active(Mutation::FetchFromLongest) {
            true => (
                true,
                other.vote.as_ref().map_or(Lsn::INVALID, |vote| vote.flush_lsn),
            ),
            false => (peer.bad_donor != Some(*donor), other.agreed),
        });
        let Some((donor, other)) = best else { return };
        let fetch = Fetch {
            receiver: SkIndex(index),
            donor: SkIndex(donor),
            begin,
            end: match is_active(Mutation::FetchFromLongest) {
                true => self.window.start(),
                false => other.agreed.min(self.window.start()),
            },
        };
        assert!(fetch.begin < fetch.end, "an empty fetch {fetch:?}");
        peers[index].fetch = Some(fetch);
        out.push(Action::StartFetch(fetch));
    }

    /// Passes WAL of a donor on to the safekeeper it was fetched for.
    pub(super) fn on_fetched(
        &self,
        peers: &mut [Peer],
        index: usize,
        mut wal: Bytes,
        now: Time,
        out: &mut Vec<Action>,
    ) {
        let peer = &mut peers[index];
        let fetch = peer.fetch.expect("WAL comes from a running fetch");
        assert!(
            fetch.begin <= peer.next && peer.next < fetch.end,
            "{fetch:?} at {}",
            peer.next
        );
        // A donor may send more than was asked for; only so much of it is known to be right.
        let wanted = usize::try_from(fetch.end - peer.next).unwrap_or(usize::MAX);
        wal.truncate(wanted);
        while !wal.is_empty() {
            let part = wal.split_to(wal.len().min(APPEND_WAL_BYTES_MAX));
            self.append(peer, index, part, now, out);
        }
        if peer.next == fetch.end {
            (peer.fetch, peer.bad_donor) = (None, None);
            out.push(Action::StopFetch(SkIndex(index)));
            self.pump(peers, index, now, out);
        }
    }

    /// Takes the answer of a safekeeper, which is not in a higher term.
    ///
    /// # Errors
    /// The answer cannot be true.
    pub(super) fn on_append_response(
        &mut self,
        peers: &mut [Peer],
        index: usize,
        response: &AppendResponse,
        now: Time,
        out: &mut Vec<Action>,
    ) -> Result<(), DisconnectReason> {
        if response.term < self.term {
            return Err(DisconnectReason::TermBelow {
                got: response.term,
                expected: self.term,
            });
        }
        let peer = &mut peers[index];
        if response.flush_lsn > peer.next {
            return Err(DisconnectReason::FlushPastSent {
                flush_lsn: response.flush_lsn,
                sent: peer.next,
            });
        }
        if response.flush_lsn > peer.flushed.max(self.commit_lsn) {
            self.hold.in_time(index);
        }
        peer.flushed = peer.flushed.max(response.flush_lsn);
        peer.agreed = peer.agreed.max(peer.flushed);
        peer.commit_persisted = peer.commit_persisted.max(response.commit_lsn);
        peer.standby = response.hs_feedback;
        let committed_more = self.advance_commit(peers);
        self.advance_truncate(peers);
        if committed_more {
            // The local server first: a client waits for it.
            if self.reports_commit {
                out.push(Action::Commit(self.commit_lsn));
            }
            self.release_wal();
            self.untold_since.get_or_insert(now);
            self.hold.on_commit(self.window.end() - self.commit_lsn, now);
            self.pump_all(peers, now, out);
            self.after_telling(now);
        } else {
            self.pump(peers, index, now, out);
        }
        self.take_feedback(peers, response, out);
        Ok(())
    }

    /// Whether the commit LSN has grown.
    fn advance_commit(&mut self, peers: &[Peer]) -> bool {
        let mut flushed = [Lsn::INVALID; SAFEKEEPERS_MAX];
        for (slot, peer) in flushed.iter_mut().zip(peers) {
            if peer.flushed >= self.epoch_start_lsn || is_active(Mutation::CountStaleFlush) {
                *slot = peer.flushed;
            }
        }
        let flushed = &mut flushed[..peers.len()];
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        let short = usize::from(is_active(Mutation::CommitWithoutQuorum));
        let on_quorum = flushed[self.quorum - 1 - short];
        let grows = on_quorum > self.commit_lsn;
        self.commit_lsn = self.commit_lsn.max(on_quorum);
        let counts = self.commit_lsn >= self.epoch_start_lsn || is_active(Mutation::CountStaleFlush);
        assert!(!grows || counts, "WAL of earlier terms is committed on its own");
        grows
    }

    /// What all safekeepers have need not be the future's: if it is not committed, a compute that was told before that the
    /// timeline is empty takes it for void (`PastTerms::empty_at`).
    fn advance_truncate(&mut self, peers: &[Peer]) {
        let everywhere = peers.iter().map(|peer| peer.flushed).min().unwrap_or_default();
        let everywhere = match is_active(Mutation::TruncateAtCommit) {
            true => self.commit_lsn,
            false => everywhere,
        };
        let committed = match is_active(Mutation::TruncateUncommitted) {
            true => everywhere,
            false => self.commit_lsn,
        };
        self.truncate_lsn = self.truncate_lsn.max(everywhere.min(committed));
    }

    /// Passes on what readers of the WAL report, if it is new.
    fn take_feedback(&mut self, peers: &[Peer], response: &AppendResponse, out: &mut Vec<Action>) {
        if let Some(new) = response.pageserver_feedback {
            let stale = |old: PageserverFeedback| new == old || new.ps_writelsn < old.ps_writelsn;
            if !self.pageserver.is_some_and(stale) {
                self.pageserver = Some(new);
                out.push(Action::PageserverFeedback(new));
            }
        }
        let standbys = peers.iter().map(|peer| peer.standby);
        let standby = standbys.fold(HotStandbyFeedback::NONE, HotStandbyFeedback::merge);
        if standby != self.standby {
            self.standby = standby;
            out.push(Action::HotStandbyFeedback(standby));
        }
    }
}
