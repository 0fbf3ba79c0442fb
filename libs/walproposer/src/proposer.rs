//! The state machine: connections, timeouts, and which part of the protocol a message belongs to.
//!
//! Invariants, asserted on every step
//! * Votes are asked for in one term only, above every term any safekeeper has greeted with, and
//!   remembered ([`Action::Remember`]) before they are asked for.
//! * After [`Action::Stop`] there are no actions: a proposer that was fenced off never acknowledges.
//! * A message in a term above ours stops the run at once, before anything else is made of it.

mod election;
mod hold;
mod leader;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use safekeeper_api::protocol::{AcceptorGreeting, AcceptorMessage, ProposerMessage, SAFEKEEPERS_MAX, Term};
use utils::lsn::Lsn;

use crate::config::{Config, Mode, PastTerms};
use crate::event::{Action, DisconnectReason, Event, SkIndex, Stop, Time};
use crate::peer::{Peer, Stage};
use leader::Leader;

/// One run of the proposer. See the crate's head.
#[derive(Debug)]
pub struct Proposer {
    config: Config,
    past: PastTerms,
    peers: Vec<Peer>,
    phase: Phase,
    now: Time,
}

#[derive(Debug)]
enum Phase {
    /// Waits for a quorum of greetings.
    Greeting,
    /// Has asked for votes in this term.
    Voting(Term),
    /// Has won.
    Elected(Box<Leader>),
    /// The run is over.
    Stopped,
}

impl Proposer {
    /// A proposer that starts at `now`. Asks for connections to all safekeepers.
    pub fn new(config: Config, now: Time, out: &mut Vec<Action>) -> Proposer {
        assert!(
            (1..=SAFEKEEPERS_MAX).contains(&config.safekeepers),
            "{} safekeepers",
            config.safekeepers
        );
        let mut proposer = Proposer {
            past: config.past.clone(),
            peers: (0..config.safekeepers).map(|_| Peer::new(now)).collect(),
            phase: Phase::Greeting,
            now,
            config,
        };
        proposer.on_tick(out);
        proposer
    }

    /// How many bytes a message takes of [`crate::Limits::outbox_bytes_max`]. Only append requests count:
    /// the others are few.
    pub fn message_len(message: &ProposerMessage) -> u64 {
        leader::outbox_bytes(message)
    }

    /// The term this proposer has won.
    pub fn elected_term(&self) -> Option<Term> {
        self.leader().map(|leader| leader.term)
    }

    /// Everything before this is on a quorum; 0 before that is known.
    pub fn commit_lsn(&self) -> Lsn {
        self.leader().map_or(Lsn::INVALID, |leader| leader.commit_lsn)
    }

    /// Where the WAL of this proposer's term begins; `None` before the election is won.
    pub fn epoch_start_lsn(&self) -> Option<Lsn> {
        self.leader().map(|leader| leader.epoch_start_lsn)
    }

    /// End of the WAL received from the local server: where the next [`Event::Wal`] begins.
    pub fn wal_end(&self) -> Option<Lsn> {
        self.leader().map(|leader| leader.window.end())
    }

    /// Whether there is room for more WAL of the local server.
    pub fn wants_wal(&self) -> bool {
        let quorum = self.config.quorum();
        self.leader()
            .is_some_and(|leader| leader.wants_wal(&self.peers, quorum))
    }

    /// Whether there is room for more WAL fetched for this safekeeper.
    pub fn wants_fetched(&self, sk: SkIndex) -> bool {
        let peer = &self.peers[sk.0];
        peer.fetch.is_some() && peer.outbox_bytes < self.config.limits.outbox_bytes_max
    }

    /// When the next [`Event::Tick`] is wanted at the latest, if something waits for one; others come
    /// as often as the timeouts ask for.
    pub fn tick_due(&self) -> Option<Time> {
        self.leader().and_then(Leader::due)
    }

    fn leader(&self) -> Option<&Leader> {
        match &self.phase {
            Phase::Elected(leader) => Some(leader),
            _ => None,
        }
    }

    /// One event in, actions out. `now` may stand still but is taken not to go back.
    pub fn step(&mut self, now: Time, event: Event, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Stopped) {
            return;
        }
        self.now = self.now.max(now);
        let commit_before = self.commit_lsn();
        match event {
            Event::Connected(sk) => self.on_connected(sk, out),
            Event::Disconnected(sk) => self.on_disconnected(sk, out),
            Event::Message(sk, message) => self.on_message(sk, message, out),
            Event::Drained(sk, bytes) => self.on_drained(sk, bytes, out),
            Event::Wal(wal) => self.on_wal(wal, out),
            Event::Fetched(sk, wal) => self.with_leader(out, |leader, peers, now, out| {
                leader.on_fetched(peers, sk.0, wal, now, out);
            }),
            Event::FetchEnded(sk) => self.on_fetch_ended(sk),
            Event::Tick => self.on_tick(out),
        }
        if let Phase::Elected(leader) = &self.phase {
            assert!(
                leader.commit_lsn >= commit_before,
                "the commit LSN went back from {commit_before}"
            );
            leader.check(&self.peers);
        }
    }

    /// Runs `act` if the election is won.
    fn with_leader<F>(&mut self, out: &mut Vec<Action>, act: F)
    where
        F: FnOnce(&mut Leader, &mut [Peer], Time, &mut Vec<Action>),
    {
        if let Phase::Elected(leader) = &mut self.phase {
            act(leader, &mut self.peers, self.now, out);
        }
    }

    fn on_connected(&mut self, sk: SkIndex, out: &mut Vec<Action>) {
        let peer = &mut self.peers[sk.0];
        assert!(
            matches!(peer.stage, Stage::Connecting),
            "connected to {sk} unasked"
        );
        peer.stage = Stage::Greeting;
        peer.heard_at = self.now;
        let greeting = self.config.greeting.clone();
        out.push(Action::Send(sk, ProposerMessage::Greeting(greeting)));
    }

    fn on_disconnected(&mut self, sk: SkIndex, out: &mut Vec<Action>) {
        self.go_offline(sk, out);
        self.finish_sync(out);
    }

    /// Forgets the connection. One that has lasted is made again at once, one that has not later.
    fn go_offline(&mut self, sk: SkIndex, out: &mut Vec<Action>) {
        let peer = &mut self.peers[sk.0];
        assert!(peer.is_online(), "the connection to {sk} ended twice");
        if peer.fetch.take().is_some() {
            out.push(Action::StopFetch(sk));
        }
        peer.outbox_bytes = 0;
        peer.stage = Stage::Offline {
            retry_at: self.now.max(peer.asked_at.after(self.config.reconnect_timeout)),
        };
        self.with_leader(out, |leader, peers, now, out| {
            leader.on_lost(peers, sk.0, now, out)
        });
    }

    fn disconnect(&mut self, sk: SkIndex, reason: DisconnectReason, out: &mut Vec<Action>) {
        out.push(Action::Disconnect(sk, reason));
        self.go_offline(sk, out);
        self.finish_sync(out);
    }

    fn on_message(&mut self, sk: SkIndex, message: AcceptorMessage, out: &mut Vec<Action>) {
        let peer = &mut self.peers[sk.0];
        assert!(peer.is_online(), "a message from {sk} without a connection");
        peer.heard_at = self.now;
        match (&peer.stage, message) {
            (Stage::Greeting, AcceptorMessage::Greeting(greeting)) => self.on_greeting(sk, greeting, out),
            (Stage::Voting, AcceptorMessage::VoteResponse(vote)) => self.on_vote(sk, vote, out),
            (Stage::Streaming, AcceptorMessage::AppendResponse(response)) => {
                self.on_append_response(sk, response, out);
            }
            (_, message) => {
                let name = match message {
                    AcceptorMessage::Greeting(_) => "greeting",
                    AcceptorMessage::VoteResponse(_) => "vote response",
                    AcceptorMessage::AppendResponse(_) => "append response",
                };
                self.disconnect(sk, DisconnectReason::Unexpected(name), out);
            }
        }
    }

    fn on_greeting(&mut self, sk: SkIndex, greeting: AcceptorGreeting, out: &mut Vec<Action>) {
        let own = match &self.phase {
            Phase::Voting(term) => *term,
            Phase::Elected(leader) => leader.term,
            // An earlier run for the same data directory asked for votes in this term. Whoever has
            // a higher one came after it, and must not be driven out by a compute it has replaced.
            _ => self.past.campaign,
        };
        if own > Term::ZERO && greeting.term > own {
            return self.fence(sk, greeting.term, own, out);
        }
        let peer = &mut self.peers[sk.0];
        peer.stage = Stage::Greeted;
        peer.greeted = Some(greeting.term);
        match &self.phase {
            Phase::Greeting => self.start_campaign(out),
            _ => self.ask_for_vote(sk, own, out),
        }
    }

    fn on_drained(&mut self, sk: SkIndex, bytes: u64, out: &mut Vec<Action>) {
        let peer = &mut self.peers[sk.0];
        peer.outbox_bytes = peer
            .outbox_bytes
            .checked_sub(bytes)
            .expect("no more leaves the outbox than was put in");
        self.with_leader(out, |leader, peers, now, out| leader.pump(peers, sk.0, now, out));
    }

    fn on_wal(&mut self, wal: Bytes, out: &mut Vec<Action>) {
        assert!(
            matches!(self.config.mode, Mode::Stream { .. }),
            "WAL while only synchronising"
        );
        assert!(self.leader().is_some(), "WAL before the election is won");
        self.with_leader(out, |leader, peers, now, out| leader.on_wal(peers, wal, now, out));
    }

    fn on_fetch_ended(&mut self, sk: SkIndex) {
        let peer = &mut self.peers[sk.0];
        let fetch = peer.fetch.take().expect("only a running fetch ends");
        peer.bad_donor = Some(fetch.donor.0);
        peer.fetch_at = self.now.after(self.config.reconnect_timeout);
    }

    fn on_tick(&mut self, out: &mut Vec<Action>) {
        for sk in (0..self.peers.len()).map(SkIndex) {
            let peer = &mut self.peers[sk.0];
            match peer.stage {
                Stage::Offline { retry_at } if retry_at <= self.now => {
                    peer.stage = Stage::Connecting;
                    (peer.asked_at, peer.heard_at) = (self.now, self.now);
                    out.push(Action::Connect(sk));
                }
                _ if peer.owes_answer() && peer.heard_at.after(self.config.connect_timeout) <= self.now => {
                    let silence = self.config.connect_timeout;
                    self.disconnect(sk, DisconnectReason::Timeout(silence), out);
                }
                _ => {}
            }
        }
        let period = self.config.reconnect_timeout;
        self.with_leader(out, |leader, peers, now, out| {
            leader.on_tick(now);
            for index in 0..peers.len() {
                leader.heartbeat(peers, index, now, period, out);
            }
            leader.after_telling(now);
        });
    }

    fn fence(&mut self, by: SkIndex, newer: Term, own: Term, out: &mut Vec<Action>) {
        assert!(newer > own, "fenced by term {newer}, not above {own}");
        self.stop(Stop::Fenced { by, newer, own }, out);
    }

    fn stop(&mut self, stop: Stop, out: &mut Vec<Action>) {
        self.phase = Phase::Stopped;
        out.push(Action::Stop(stop));
    }
}
