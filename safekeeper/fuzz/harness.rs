//! An acceptor that is told anything: bytes become messages, sensible, slightly wrong and senseless.
//!
//! Used by the fuzz target and, with inputs from a seed, by a test of the simulator. What must hold
//! * Nothing panics; a message that is refused changes neither term, history nor WAL.
//! * What a reply says is durable before it: the term of a vote, the end of acknowledged WAL.
//! * After a crash between any two messages everything that was said still holds.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use postgres_ffi::v15::encode::{WalIdentity, WalWriter};
use postgres_ffi::v15::record::{Blocks, DecodedRecord, RecordHeader};
use safekeeper::acceptor::{Acceptor, Action, ControlState, PeerInfo, Positions, ReaderFeedback, ServerInfo};
use safekeeper_api::protocol::{
    AcceptorMessage, AppendRequest, ProposerElected, ProposerGreeting, ProposerId, ProposerMessage, Term,
    TermHistory, TermLsn, VoteRequest,
};
use utils::id::{NodeId, TenantTimelineId};
use utils::lsn::Lsn;

const SEGMENT_SIZE: usize = 1 << 20;
const START: Lsn = Lsn(SEGMENT_SIZE as u64 + 8192 * 3 + 1024);
const RECORDS: usize = 200;
/// Longest WAL in a request, in bytes.
const APPEND_LEN_MAX: u64 = u8::MAX as u64 * 9;
const NODE: NodeId = NodeId(1);
/// Short enough for positions to be saved now and then.
const SAVE_LAG: u64 = 1000;

/// Valid WAL, and the ends of its records.
struct Wal {
    bytes: Vec<u8>,
    ends: Vec<Lsn>,
}

static WAL: LazyLock<Wal> = LazyLock::new(|| {
    let identity = WalIdentity {
        system_id: 7,
        segment_size: SEGMENT_SIZE,
    };
    let mut writer = WalWriter::new(identity, START, Lsn::INVALID);
    let (mut bytes, mut ends) = (Vec::new(), vec![START]);
    for number in 0..RECORDS {
        writer.append(DecodedRecord {
            header: RecordHeader {
                total_len: 0,
                xid: 1,
                prev: Lsn::INVALID,
                info: 0,
                rmid: 21,
                crc: 0,
            },
            blocks: Blocks::new(),
            main_data: vec![number as u8; 40 + number % 7 * 100].into(),
            origin_id: 0,
            toplevel_xid: None,
        });
        bytes.extend_from_slice(&writer.take());
        ends.push(START + bytes.len() as u64);
    }
    Wal { bytes, ends }
});

impl Wal {
    /// The WAL from `begin` on; something else where there is none.
    fn at(&self, begin: Lsn, len: usize) -> Bytes {
        let offset = begin.0.saturating_sub(START.0) as usize;
        let end = self.bytes.len().min(offset.saturating_add(len));
        let wal = self.bytes.get(offset..end);
        wal.map_or_else(|| Bytes::from(vec![7; len]), Bytes::copy_from_slice)
    }
}

/// What is left of the input; zeros behind its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }

    fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().expect("eight bytes were taken"))
    }

    /// Mostly the number given, or one beside it, or any.
    fn near(&mut self, number: u64) -> u64 {
        match self.byte() {
            0..160 => number,
            160..190 => number.saturating_add(1),
            190..220 => number.saturating_sub(1),
            220..235 => number.saturating_add(u64::from(self.byte()) * 8),
            235..250 => number.saturating_sub(u64::from(self.byte()) * 8),
            _ => self.long(),
        }
    }
}

/// The acceptor, and what is durable of it.
struct Machine {
    acceptor: Acceptor,
    control: ControlState,
    flushed: Lsn,
    /// What was said: the highest term, and the end of acknowledged WAL.
    term_told: Term,
    flush_told: Lsn,
    /// Positions on their way into the control file.
    saving: Option<Positions>,
}

impl Machine {
    fn new() -> Machine {
        let mut control = ControlState::empty(TenantTimelineId::default());
        control.server = ServerInfo {
            pg_version: 150_004,
            system_id: 7,
            wal_seg_size: SEGMENT_SIZE as u32,
        };
        Machine {
            acceptor: Acceptor::recover(NODE, control.clone(), Lsn::INVALID).with_save_lag(SAVE_LAG),
            control,
            flushed: Lsn::INVALID,
            term_told: Term::ZERO,
            flush_told: Lsn::INVALID,
            saving: None,
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::PersistControl(control) => {
                    assert!(control.term >= self.control.term, "the term goes back");
                    assert!(
                        control.commit_lsn >= self.control.commit_lsn,
                        "the commit LSN goes back"
                    );
                    self.control = *control;
                }
                Action::SavePositions(positions) => {
                    assert_eq!(self.saving.replace(positions), None, "two saves at once");
                }
                Action::WriteWal { .. } => {}
                Action::FlushWal { up_to } => self.flushed = up_to,
                Action::TruncateWal { to } => {
                    assert!(to >= self.control.commit_lsn, "committed WAL is cut off");
                    self.flushed = to;
                    self.flush_told = self.flush_told.min(to);
                }
                Action::Reply(AcceptorMessage::Greeting(greeting)) => self.told(greeting.term, Lsn::INVALID),
                Action::Reply(AcceptorMessage::VoteResponse(vote)) => self.told(vote.term, Lsn::INVALID),
                Action::Reply(AcceptorMessage::AppendResponse(response)) => {
                    assert!(response.commit_lsn <= self.control.commit_lsn);
                    self.told(response.term, response.flush_lsn);
                }
            }
        }
    }

    fn finish_save(&mut self) {
        if let Some(positions) = self.saving.take() {
            self.control.raise_positions(positions);
            let mut out = Vec::new();
            self.acceptor.positions_saved(positions, &mut out);
            self.carry_out(out);
        }
    }

    fn told(&mut self, term: Term, flush: Lsn) {
        assert!(term <= self.control.term, "{term} is told and not durable");
        assert!(flush <= self.flushed, "{flush} is told and not durable");
        self.term_told = self.term_told.max(term);
        self.flush_told = self.flush_told.max(flush);
    }

    fn restart(&mut self) {
        assert!(self.control.term >= self.term_told && self.flushed >= self.flush_told);
        self.saving = None;
        self.acceptor = Acceptor::recover(NODE, self.control.clone(), self.flushed).with_save_lag(SAVE_LAG);
    }

    fn finish_batch(&mut self) {
        let mut actions = Vec::new();
        self.acceptor
            .finish_batch(ReaderFeedback::default(), &mut actions);
        self.carry_out(actions);
    }

    fn receive(&mut self, message: ProposerMessage) {
        if !matches!(message, ProposerMessage::Append(_)) {
            self.finish_batch();
        }
        let before = (self.acceptor.term(), self.acceptor.control().term_history.clone());
        let write_lsn = self.acceptor.write_lsn();
        let mut actions = Vec::new();
        let result = self.acceptor.step(message, &mut actions);
        self.carry_out(actions);
        if result.is_err() {
            let after = (self.acceptor.term(), self.acceptor.control().term_history.clone());
            assert_eq!(before, after, "a refused message changes something");
            assert_eq!(
                write_lsn,
                self.acceptor.write_lsn(),
                "a refused message writes WAL"
            );
        }
    }

    fn message(&self, kind: u8, input: &mut Input<'_>) -> ProposerMessage {
        let acceptor = &self.acceptor;
        let term = Term(input.near(acceptor.term().0));
        match kind {
            0 => ProposerMessage::Greeting(ProposerGreeting {
                pg_version: input.near(150_004) as u32,
                proposer_id: ProposerId([input.byte(); 16]),
                system_id: input.near(7),
                timeline_id: [u8::from(input.byte() > 250); 16].into(),
                tenant_id: [u8::from(input.byte() > 250); 16].into(),
                pg_timeline: 1,
                wal_seg_size: input.near(SEGMENT_SIZE as u64) as u32,
            }),
            1 => ProposerMessage::VoteRequest(VoteRequest {
                term: Term(input.near(acceptor.term().0.saturating_add(1))),
                proposer_id: ProposerId([1; 16]),
            }),
            2 => self.elected(term, input),
            _ => {
                // A request names its end, which the decoder wants behind the start: it is below 2^64.
                let begin_lsn = input.near(acceptor.write_lsn().max(START).0);
                let begin_lsn = Lsn(begin_lsn.min(u64::MAX - APPEND_LEN_MAX));
                let wal = WAL.at(begin_lsn, usize::from(input.byte()) * 9);
                ProposerMessage::Append(AppendRequest {
                    term,
                    epoch_start_lsn: acceptor.control().epoch_start_lsn(),
                    begin_lsn,
                    commit_lsn: Lsn(input.near(begin_lsn.0)),
                    truncate_lsn: Lsn(input.near(0)),
                    proposer_id: ProposerId([1; 16]),
                    wal,
                })
            }
        }
    }

    fn elected(&self, term: Term, input: &mut Input<'_>) -> ProposerMessage {
        let end = self.acceptor.flush_lsn().max(START);
        let known = WAL.ends[usize::from(input.byte()) % WAL.ends.len()];
        let start = Lsn(input.near(end.min(known).max(self.control.commit_lsn).max(START).0));
        let mut history = match input.byte() {
            0..200 => self.acceptor.control().term_history.up_to(start),
            _ => TermHistory::default(),
        };
        // One that does not fit is left out: the message is then refused for that.
        let _ = history.push(TermLsn { term, lsn: start });
        ProposerMessage::Elected(ProposerElected {
            term,
            start_streaming_at: start,
            term_history: history,
            timeline_start_lsn: Lsn(input.near(START.0)),
        })
    }

    /// A message as it comes from the network, with damage.
    fn decoded(&self, input: &mut Input<'_>) -> Option<ProposerMessage> {
        let mut raw = BytesMut::new();
        match input.byte() {
            0..100 => raw.extend_from_slice(&input.take(90)),
            kind => self.message(kind % 4, input).encode(&mut raw),
        }
        for _ in 0..input.byte() % 3 {
            let (at, value) = (usize::from(input.byte()), input.byte());
            let len = raw.len();
            raw[at % len] = value;
        }
        ProposerMessage::decode(raw.freeze()).ok()
    }
}

/// Tells an acceptor what the bytes say; panics where something does not hold.
pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let mut machine = Machine::new();
    while !input.0.is_empty() {
        match input.byte() % 16 {
            kind @ 0..10 => {
                let message = machine.message(kind, &mut input);
                machine.receive(message);
            }
            10 => machine.finish_batch(),
            11 => machine.finish_save(),
            12 => {
                machine.finish_batch();
                let (mut actions, commit) = (Vec::new(), input.near(machine.acceptor.flush_lsn().0));
                let info = PeerInfo {
                    last_log_term: Some(Term(input.near(machine.acceptor.epoch().0))),
                    commit_lsn: Lsn(commit),
                    ..PeerInfo::default()
                };
                machine.acceptor.on_peer_info(info, &mut actions);
                machine.carry_out(actions);
            }
            13 => machine.restart(),
            _ => {
                if let Some(message) = machine.decoded(&mut input) {
                    machine.receive(message);
                }
            }
        }
    }
    machine.finish_batch();
    machine.restart();
}
