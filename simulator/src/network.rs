//! Connections between computes and safekeepers.
//!
//! Each direction of a connection delivers in order, as TCP does. Everything else is free: two
//! connections between the same two ends overtake each other, and a connection that one end has given
//! up may still deliver at the other.

use safekeeper_api::protocol::{AcceptorMessage, ProposerMessage};
use walproposer::{DisconnectReason, Event as ProposerEvent, SkIndex};

use crate::Violation;
use crate::world::{Event, Micros, World};

/// Typical time from one end to the other.
const LATENCY: Micros = 300;

/// Number of a connection, unique in a run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ConnId(pub(crate) usize);

/// One of the two ways between a compute and a safekeeper.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Direction {
    /// Towards the safekeeper.
    Up,
    /// Towards the compute.
    Down,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) compute: usize,
    /// Run of the proposer that made it.
    pub(crate) run: u64,
    pub(crate) sk: usize,
    open_at_compute: bool,
    open_at_sk: bool,
    /// When the last message sent in each direction arrives.
    last: [Micros; 2],
    /// What would arrive after this is lost.
    cut: [Micros; 2],
}

impl World {
    /// The compute asks for a connection.
    pub(crate) fn connect(&mut self, compute: usize, sk: usize) {
        let id = ConnId(self.conns.len());
        let sent = self.arrival(compute, sk, Direction::Up, self.now);
        let answered = self.arrival(compute, sk, Direction::Down, sent);
        self.conns.push(Conn {
            compute,
            run: self.computes[compute].run,
            sk,
            open_at_compute: true,
            open_at_sk: false,
            last: [answered; 2],
            cut: [Micros::MAX; 2],
        });
        self.computes[compute].conns[sk] = Some(id);
        self.schedule(answered, Event::Connected(id));
    }

    /// The connection is there, unless the safekeeper is down.
    pub(crate) fn on_connected(&mut self, id: ConnId) -> Result<(), Violation> {
        let conn = &mut self.conns[id.0];
        if !conn.open_at_compute {
            return Ok(());
        }
        let (compute, sk) = (conn.compute, SkIndex(conn.sk));
        if !self.safekeepers[conn.sk].is_up() {
            return self.on_closed_at_compute(id);
        }
        conn.open_at_sk = true;
        self.step(compute, ProposerEvent::Connected(sk))
    }

    /// When something sent at `at` arrives.
    fn arrival(&mut self, compute: usize, sk: usize, direction: Direction, at: Micros) -> Micros {
        let blocked = self.blocked_until(compute, sk, direction);
        at.max(blocked) + self.rng.delay(LATENCY)
    }

    fn arrival_in_order(&mut self, id: ConnId, direction: Direction) -> Option<Micros> {
        let Conn { compute, sk, .. } = self.conns[id.0];
        let arrival = self.arrival(compute, sk, direction, self.now);
        let conn = &mut self.conns[id.0];
        let way = direction as usize;
        conn.last[way] = conn.last[way].max(arrival);
        (conn.last[way] <= conn.cut[way]).then_some(conn.last[way])
    }

    pub(crate) fn send_up(&mut self, id: ConnId, message: ProposerMessage) {
        let weight = walproposer::Proposer::message_len(&message);
        if let ProposerMessage::Elected(elected) = &message {
            let Conn { compute, sk, .. } = self.conns[id.0];
            self.before_elected(compute, sk, elected.start_streaming_at);
        }
        let Some(arrival) = self.arrival_in_order(id, Direction::Up) else {
            return;
        };
        self.schedule(arrival, Event::ToSafekeeper(id, message));
        if weight > 0 {
            self.schedule(arrival, Event::Drained(id, weight));
        }
    }

    pub(crate) fn send_down(&mut self, id: ConnId, message: AcceptorMessage) {
        if !self.conns[id.0].open_at_sk {
            return;
        }
        if let Some(arrival) = self.arrival_in_order(id, Direction::Down) {
            self.schedule(arrival, Event::ToCompute(id, message));
        }
    }

    /// Whether what has arrived for the safekeeper is still received.
    pub(crate) fn is_open_at_sk(&self, id: ConnId) -> bool {
        self.conns[id.0].open_at_sk
    }

    pub(crate) fn is_open_at_compute(&self, id: ConnId) -> bool {
        self.conns[id.0].open_at_compute
    }

    /// A part of what is under way may still arrive.
    fn cut(&mut self, id: ConnId, direction: Direction) {
        let last = self.conns[id.0].last[direction as usize].max(self.now);
        let cut = self.rng.between(self.now, last);
        let slot = &mut self.conns[id.0].cut[direction as usize];
        *slot = cut.min(*slot);
    }

    pub(crate) fn arrives(&self, id: ConnId, direction: Direction) -> bool {
        self.now <= self.conns[id.0].cut[direction as usize]
    }

    /// The compute gives the connection up. What it has sent may still arrive.
    pub(crate) fn close_at_compute(&mut self, id: ConnId) {
        self.conns[id.0].open_at_compute = false;
        if self.rng.one_in(2) {
            self.cut(id, Direction::Up);
        }
    }

    /// The safekeeper gives the connection up. The compute hears of it, or not.
    pub(crate) fn close_at_sk(&mut self, id: ConnId) {
        self.conns[id.0].open_at_sk = false;
        if self.rng.one_in(2) {
            self.cut(id, Direction::Down);
        }
        if !self.rng.one_in(4) {
            let arrival = self.conns[id.0].last[Direction::Down as usize].max(self.now) + LATENCY;
            self.schedule(arrival, Event::ClosedAtCompute(id));
        }
    }

    /// Something between the two has lost the connection.
    pub(crate) fn reset(&mut self, id: ConnId) {
        self.cut(id, Direction::Up);
        self.close_at_sk(id);
    }

    pub(crate) fn on_closed_at_compute(&mut self, id: ConnId) -> Result<(), Violation> {
        let conn = &mut self.conns[id.0];
        if !conn.open_at_compute {
            return Ok(());
        }
        conn.open_at_compute = false;
        let (compute, sk) = (conn.compute, conn.sk);
        self.computes[compute].conns[sk] = None;
        self.step(compute, ProposerEvent::Disconnected(SkIndex(sk)))
    }

    pub(crate) fn disconnect(&mut self, compute: usize, sk: usize, reason: DisconnectReason) {
        let id = self.computes[compute].conns[sk].take();
        self.trace(format_args!("compute {compute} drops safekeeper {sk}: {reason}"));
        self.close_at_compute(id.expect("the proposer closes connections it has"));
    }

    pub(crate) fn close_all_of_sk(&mut self, sk: usize) {
        for index in 0..self.conns.len() {
            let conn = &self.conns[index];
            if conn.sk == sk && conn.open_at_sk {
                self.close_at_sk(ConnId(index));
            }
        }
    }
}
