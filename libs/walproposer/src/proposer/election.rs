//! Campaign, votes, and what the winner makes of the voters' WAL.
//!
//! The donor is the voter with the highest (epoch, flush LSN). Its WAL holds everything that any
//! earlier proposer can have committed: committed WAL is on a quorum, every quorum shares a voter with
//! this one, and after its vote that safekeeper takes no more WAL of earlier terms.
//!
//! By the same reasoning a quorum without any WAL shows that nothing of earlier terms is committed. A
//! compute that has been told so, and has begun from nothing, may find such WAL on a safekeeper that
//! was away: it counts as none, and is cut off.

use postgres_ffi::v15::wal_page::skip_page_header;
use safekeeper_api::mutation::{Mutation, is_active};
use safekeeper_api::protocol::{
    AppendResponse, ProposerMessage, Term, TermHistory, TermLsn, VoteRequest, VoteResponse,
};
use utils::lsn::Lsn;

use super::{Phase, Proposer};
use crate::config::{Mode, PastTerms};
use crate::event::{Action, DisconnectReason, SkIndex, Stop};
use crate::peer::Stage;
use crate::proposer::leader::Leader;

/// What the votes say about the timeline.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Findings {
    /// End of the WAL that the new term goes on from; 0 if no safekeeper has any.
    pub(super) end: Lsn,
    /// Term of the last record before `end`.
    pub(super) epoch: Term,
    /// History up to `end`.
    pub(super) history: TermHistory,
    /// Everything before this is on all safekeepers.
    pub(super) truncate_lsn: Lsn,
    /// Where the timeline begins; 0 if nobody knows.
    pub(super) timeline_start_lsn: Lsn,
}

/// Puts the votes of a quorum together.
pub(super) fn evaluate<'a>(
    votes: impl Iterator<Item = &'a VoteResponse> + Clone,
    past: &PastTerms,
) -> Findings {
    let epoch = |vote: &VoteResponse| vote.term_history.epoch_at(vote.flush_lsn);
    let is_void = |vote: &VoteResponse| match is_active(Mutation::EmptyForEver) {
        true => past.empty_at > Term::ZERO && !past.elected.contains(&epoch(vote)),
        false => epoch(vote) < past.empty_at,
    };
    let donor = votes.clone().filter(|vote| !is_void(vote)).max_by_key(|vote| {
        match is_active(Mutation::DonorByLength) {
            true => (Term::ZERO, vote.flush_lsn),
            false => (epoch(vote), vote.flush_lsn),
        }
    });
    let end = donor.map_or(Lsn::INVALID, |donor| donor.flush_lsn);
    Findings {
        end,
        epoch: donor.map_or(Term::ZERO, epoch),
        history: donor.map_or_else(TermHistory::default, |donor| donor.term_history.up_to(end)),
        truncate_lsn: votes
            .clone()
            .map(|vote| vote.truncate_lsn)
            .max()
            .unwrap_or_default(),
        timeline_start_lsn: votes
            .map(|vote| vote.timeline_start_lsn)
            .max()
            .unwrap_or_default(),
    }
}

impl Proposer {
    /// Asks for votes once a quorum has greeted.
    pub(super) fn start_campaign(&mut self, out: &mut Vec<Action>) {
        let greeted = self.peers.iter().filter_map(|peer| peer.greeted);
        if greeted.clone().count() < self.config.quorum() {
            return;
        }
        let highest = greeted.max().unwrap_or_default().max(self.past.campaign);
        let reused = Some(highest).filter(|term| is_active(Mutation::ReuseTerm) && *term > Term::ZERO);
        let Some(term) = reused.or(highest.next()) else {
            return self.stop(Stop::Inconsistent("no term is left above the highest"), out);
        };
        assert!(
            term > self.past.campaign || reused.is_some(),
            "a second campaign in term {term}"
        );
        self.past.campaign = term;
        self.phase = Phase::Voting(term);
        out.push(Action::Remember(self.past.clone()));
        for sk in (0..self.peers.len()).map(SkIndex) {
            if matches!(self.peers[sk.0].stage, Stage::Greeted) {
                self.ask_for_vote(sk, term, out);
            }
        }
    }

    pub(super) fn ask_for_vote(&mut self, sk: SkIndex, term: Term, out: &mut Vec<Action>) {
        let peer = &mut self.peers[sk.0];
        assert!(matches!(peer.stage, Stage::Greeted), "{sk} has not greeted");
        peer.stage = Stage::Voting;
        peer.heard_at = self.now;
        let proposer_id = self.config.greeting.proposer_id;
        let request = VoteRequest { term, proposer_id };
        out.push(Action::Send(sk, ProposerMessage::VoteRequest(request)));
    }

    pub(super) fn on_vote(&mut self, sk: SkIndex, vote: VoteResponse, out: &mut Vec<Action>) {
        let own = match &self.phase {
            Phase::Voting(term) => *term,
            Phase::Elected(leader) => leader.term,
            Phase::Greeting | Phase::Stopped => unreachable!("nobody was asked for a vote"),
        };
        if vote.term > own {
            return self.fence(sk, vote.term, own, out);
        }
        if vote.term < own {
            let (got, expected) = (vote.term, own);
            return self.disconnect(sk, DisconnectReason::TermBelow { got, expected }, out);
        }
        let peer = &mut self.peers[sk.0];
        peer.stage = Stage::Voted(vote.clone());
        if vote.vote_given {
            (peer.refused, peer.vote) = (false, Some(vote));
        } else {
            // It may have voted for us before the connection broke: then the vote is in `peer.vote`,
            // or its answer was lost and it counts as a refusal, which is safe.
            peer.refused = peer.vote.is_none();
        }
        match &self.phase {
            Phase::Voting(_) => self.count_votes(own, out),
            _ => self.follow(sk, out),
        }
    }

    fn count_votes(&mut self, term: Term, out: &mut Vec<Action>) {
        let quorum = self.config.quorum();
        let votes = self.peers.iter().filter(|peer| peer.vote.is_some()).count();
        let refusals = self.peers.iter().filter(|peer| peer.refused).count();
        let short = usize::from(is_active(Mutation::ElectedWithoutQuorum));
        if votes >= quorum - short {
            self.win(term, out);
        } else if refusals > self.peers.len() - quorum {
            self.stop(Stop::LostElection(term), out);
        }
    }

    fn win(&mut self, term: Term, out: &mut Vec<Action>) {
        let votes = self.peers.iter().filter_map(|peer| peer.vote.as_ref());
        let mut findings = evaluate(votes, &self.past);
        if let Some(stop) = self.check_findings(&mut findings, term) {
            return self.stop(stop, out);
        }
        if findings.truncate_lsn > findings.end {
            return self.stop(Stop::Inconsistent("WAL that all safekeepers had is missing"), out);
        }
        let entry = TermLsn {
            term,
            lsn: findings.end,
        };
        if findings.history.push(entry).is_err() {
            return self.stop(
                Stop::Inconsistent("the term history is full or out of order"),
                out,
            );
        }
        self.past.add_elected(term);
        out.push(Action::Remember(self.past.clone()));
        self.phase = Phase::Elected(Box::new(Leader::new(&self.config, term, findings)));
        if let Mode::Stream { .. } = self.config.mode {
            let start = self.wal_end().expect("the election is won");
            out.push(Action::StreamFrom(start));
        }
        // Everyone is told before WAL flows, so that all who can be donors are known.
        for sk in (0..self.peers.len()).map(SkIndex) {
            if matches!(self.peers[sk.0].stage, Stage::Voted(_)) {
                self.follow(sk, out);
            }
        }
        self.with_leader(out, |leader, peers, now, out| leader.pump_all(peers, now, out));
        self.finish_sync(out);
    }

    /// Whether the run can go on with what was found; fills in the start of an empty timeline.
    fn check_findings(&self, findings: &mut Findings, term: Term) -> Option<Stop> {
        let Findings { end, epoch, .. } = *findings;
        match self.config.mode {
            // That all safekeepers have the WAL up to `end` would not be enough to say so at once: one
            // that is away may have more, which the next election would find. Only WAL of our term on a
            // quorum makes the end final.
            Mode::Sync => (!end.is_valid()).then_some(Stop::Synced { lsn: end, term }),
            Mode::Stream { start_lsn } if !end.is_valid() => {
                assert!(start_lsn.is_valid(), "the local server's WAL begins somewhere");
                findings.end = start_lsn;
                // The start itself may have got round from a safekeeper that is away.
                findings.truncate_lsn = findings.truncate_lsn.max(start_lsn);
                findings.timeline_start_lsn = start_lsn;
                None
            }
            Mode::Stream { start_lsn } => {
                let segment_size = self.config.greeting.wal_seg_size as usize;
                let same_start = skip_page_header(end, segment_size) == start_lsn || end == start_lsn;
                let own_wal = self.past.elected.contains(&epoch) || is_active(Mutation::IgnoreDivergence);
                let diverged = Stop::Diverged {
                    safekeepers: end,
                    term: epoch,
                    local: start_lsn,
                };
                (!same_start && !own_wal).then_some(diverged)
            }
        }
    }

    /// Tells a safekeeper that has answered the vote request that the election is won.
    fn follow(&mut self, sk: SkIndex, out: &mut Vec<Action>) {
        let Phase::Elected(leader) = &mut self.phase else {
            unreachable!("only an elected proposer is followed")
        };
        self.peers[sk.0].heard_at = self.now;
        if let Err(reason) = leader.tell(&mut self.peers, sk.0, out) {
            return self.disconnect(sk, reason, out);
        }
        self.with_leader(out, |leader, peers, now, out| leader.pump(peers, sk.0, now, out));
    }

    pub(super) fn on_append_response(
        &mut self,
        sk: SkIndex,
        response: AppendResponse,
        out: &mut Vec<Action>,
    ) {
        let Phase::Elected(leader) = &mut self.phase else {
            unreachable!("only an elected proposer streams")
        };
        let own = leader.term;
        if response.term > own {
            return self.fence(sk, response.term, own, out);
        }
        match leader.on_append_response(&mut self.peers, sk.0, &response, self.now, out) {
            Ok(()) => self.finish_sync(out),
            Err(reason) => self.disconnect(sk, reason, out),
        }
    }

    /// When only synchronising: stops once every connected safekeeper, and a quorum at least, has
    /// recorded that all WAL before the new term is committed.
    pub(super) fn finish_sync(&mut self, out: &mut Vec<Action>) {
        let (Mode::Sync, Phase::Elected(leader)) = (&self.config.mode, &self.phase) else {
            return;
        };
        let (end, term) = (leader.epoch_start_lsn, leader.term);
        let connected = |stage: &Stage| !matches!(stage, Stage::Offline { .. } | Stage::Connecting);
        let mut connected = self.peers.iter().filter(|peer| connected(&peer.stage));
        let synced = self
            .peers
            .iter()
            .filter(|peer| peer.commit_persisted >= end)
            .count();
        let all = connected.all(|peer| peer.is_streaming() && peer.commit_persisted >= end);
        if all && synced >= self.config.quorum() {
            self.stop(Stop::Synced { lsn: end, term }, out);
        }
    }
}
