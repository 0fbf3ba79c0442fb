//! Scripts of messages, and the actions they must lead to.
//!
//! Positions are written `r0`, `r1`, …: boundaries of records of 64 bytes, the first in the middle of a
//! segment; `r1+5` is 5 bytes behind `r1`. Crash tests replay a prefix of the actions on a model disk.

use proptest::prelude::*;
use safekeeper_api::protocol::{TermHistory, TermLsn};
use utils::id::{TenantTimelineId, TimelineId};

use super::*;
use crate::test_wal::{SEGMENT_SIZE, SYSTEM_ID, WalBuilder};

const RECORDS: usize = 200;
const DATA_LEN: usize = 40;
/// Bytes of ten records.
const SAVE_LAG: u64 = 640;

struct Wal {
    builder: WalBuilder,
    boundaries: Vec<Lsn>,
}

impl Wal {
    fn new() -> Self {
        let mut builder = WalBuilder::new(Lsn(SEGMENT_SIZE as u64 + 8192 * 3 + 1024));
        let mut boundaries = vec![builder.start];
        boundaries.extend((0..RECORDS).map(|_| builder.record(DATA_LEN)));
        Wal { builder, boundaries }
    }

    fn lsn(&self, text: &str) -> Lsn {
        let Some(rest) = text.strip_prefix('r') else {
            return Lsn(text.parse().unwrap());
        };
        let (record, more) = rest.split_once('+').unwrap_or((rest, "0"));
        self.boundaries[record.parse::<usize>().unwrap()] + more.parse::<u64>().unwrap()
    }

    fn name(&self, lsn: Lsn) -> String {
        match self.boundaries.binary_search(&lsn) {
            Ok(record) => format!("r{record}"),
            Err(0) => lsn.0.to_string(),
            Err(after) => format!("r{}+{}", after - 1, lsn - self.boundaries[after - 1]),
        }
    }

    fn history(&self, text: &str) -> TermHistory {
        let entry = |part: &str| {
            let (term, lsn) = part.split_once('@').unwrap();
            TermLsn {
                term: Term(term.parse().unwrap()),
                lsn: self.lsn(lsn),
            }
        };
        TermHistory::new(text.split_whitespace().map(entry).collect()).unwrap()
    }

    fn show_history(&self, history: &TermHistory) -> String {
        let entries = history.entries().iter();
        let text: Vec<_> = entries
            .map(|entry| format!("{}@{}", entry.term, self.name(entry.lsn)))
            .collect();
        format!("[{}]", text.join(" "))
    }

    fn show(&self, action: &Action) -> String {
        let name = |lsn| self.name(lsn);
        match action {
            Action::PersistControl(control) => format!(
                "persist term={} {} commit={}",
                control.term,
                self.show_history(&control.term_history),
                name(control.commit_lsn)
            ),
            Action::SavePositions(positions) => format!("save commit={}", name(positions.commit_lsn)),
            Action::WriteWal { begin, bytes } => {
                format!("write {}-{}", name(*begin), name(*begin + bytes.len() as u64))
            }
            Action::FlushWal { up_to } => format!("flush {}", name(*up_to)),
            Action::TruncateWal { to } => format!("truncate {}", name(*to)),
            Action::Reply(AcceptorMessage::Greeting(greeting)) => format!("greet term={}", greeting.term),
            Action::Reply(AcceptorMessage::VoteResponse(vote)) => format!(
                "{} term={} flush={} {}",
                if vote.vote_given { "granted" } else { "refused" },
                vote.term,
                name(vote.flush_lsn),
                self.show_history(&vote.term_history)
            ),
            Action::Reply(AcceptorMessage::AppendResponse(append)) => format!(
                "ack term={} flush={} commit={}",
                append.term,
                name(append.flush_lsn),
                name(append.commit_lsn)
            ),
        }
    }
}

fn fresh_control() -> ControlState {
    let mut control = ControlState::empty(TenantTimelineId::default());
    control.server = ServerInfo {
        pg_version: 150_004,
        system_id: SYSTEM_ID,
        wal_seg_size: SEGMENT_SIZE as u32,
    };
    control
}

/// Values of `key=value` words.
fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words
        .iter()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn run(wal: &Wal, acceptor: &mut Acceptor, command: &str, out: &mut Vec<Action>) -> Result<(), Refusal> {
    let (head, history) = command.split_once('[').unwrap_or((command, "]"));
    let words: Vec<&str> = head.split_whitespace().collect();
    let term = |i: usize| Term(words[i].parse().unwrap());
    let proposer_id = ProposerId([1; 16]);
    let message = match words[0] {
        "flush" => {
            acceptor.finish_batch(ReaderFeedback::default(), out);
            return Ok(());
        }
        "saved" => {
            let saved = Positions {
                commit_lsn: wal.lsn(words[1]),
                ..Positions::default()
            };
            acceptor.positions_saved(saved, out);
            return Ok(());
        }
        "peer" => {
            let info = PeerInfo {
                last_log_term: Some(term(1)),
                commit_lsn: wal.lsn(words[2]),
                ..PeerInfo::default()
            };
            acceptor.on_peer_info(info, out);
            return Ok(());
        }
        "greet" => ProposerMessage::Greeting(ProposerGreeting {
            pg_version: value(&words, "pg").map_or(150_004, |text| text.parse().unwrap()),
            proposer_id,
            system_id: value(&words, "system").map_or(SYSTEM_ID, |text| text.parse().unwrap()),
            timeline_id: value(&words, "timeline")
                .map_or_else(TimelineId::default, |text| text.parse().unwrap()),
            tenant_id: Default::default(),
            pg_timeline: 1,
            wal_seg_size: value(&words, "segment").map_or(SEGMENT_SIZE as u32, |text| text.parse().unwrap()),
        }),
        "vote" => ProposerMessage::VoteRequest(VoteRequest {
            term: term(1),
            proposer_id,
        }),
        "elect" => ProposerMessage::Elected(ProposerElected {
            term: term(1),
            start_streaming_at: wal.lsn(words[2]),
            term_history: wal.history(history.strip_suffix(']').unwrap()),
            timeline_start_lsn: wal.lsn(value(&words, "start").unwrap_or("r0")),
        }),
        "append" => {
            let (begin, end) = words[2].split_once('-').unwrap();
            let (begin, end) = (wal.lsn(begin), wal.lsn(end));
            ProposerMessage::Append(AppendRequest {
                term: term(1),
                epoch_start_lsn: Lsn(0),
                begin_lsn: begin,
                commit_lsn: wal.lsn(value(&words, "commit").unwrap_or("0")),
                truncate_lsn: wal.lsn(value(&words, "truncate").unwrap_or("0")),
                proposer_id,
                wal: wal.builder.slice(begin, end),
            })
        }
        other => panic!("unknown command {other}"),
    };
    acceptor.step(message, out)
}

/// Runs the commands on a new acceptor; what each of them leads to, joined by `;`.
fn outcome(script: &str) -> String {
    let wal = Wal::new();
    let mut acceptor = Acceptor::recover(NodeId(1), fresh_control(), Lsn::INVALID).with_save_lag(SAVE_LAG);
    let mut outcomes = Vec::new();
    for command in script.split(';').map(str::trim) {
        let mut out = Vec::new();
        let result = run(&wal, &mut acceptor, command, &mut out);
        let mut texts: Vec<_> = out.iter().map(|action| wal.show(action)).collect();
        if let Err(refusal) = result {
            texts.push(format!("ERROR {refusal}"));
        }
        outcomes.push(texts.join(", "));
    }
    outcomes.join("; ")
}

#[track_caller]
fn check(script: &str, want: &str) {
    assert_eq!(outcome(script), want, "{script}");
}

/// The outcome of the last command only.
#[track_caller]
fn check_last(script: &str, want: &str) {
    let got = outcome(script);
    assert_eq!(got.rsplit("; ").next().unwrap(), want, "{script}");
}

#[test]
fn votes() {
    check(
        "vote 5; vote 4; vote 5; vote 6",
        "persist term=5 [] commit=0, granted term=5 flush=0 []; \
         refused term=5 flush=0 []; \
         refused term=5 flush=0 []; \
         persist term=6 [] commit=0, granted term=6 flush=0 []",
    );
}

#[test]
fn election_of_the_first_proposer() {
    check(
        "vote 1; elect 1 r0 [1@r0]; append 1 r0-r3; append 1 r3-r5 commit=r4; flush; append 1 r5-r5 commit=r5; flush",
        "persist term=1 [] commit=0, granted term=1 flush=0 []; \
         truncate r0, persist term=1 [1@r0] commit=r0; \
         write r0-r3; write r3-r5; \
         flush r5, ack term=1 flush=r5 commit=r0; \
         ; ack term=1 flush=r5 commit=r0",
    );
}

#[test]
fn a_new_term_cuts_off_what_contradicts_it() {
    let before = "vote 1; elect 1 r0 [1@r0]; append 1 r0-r9 commit=r2; flush; ";
    // With the vote given, and without: then the term becomes durable first.
    check_last(
        &format!("{before} vote 3; elect 3 r4 [1@r0 3@r4]"),
        "truncate r4, persist term=3 [1@r0 3@r4] commit=r2",
    );
    check_last(
        &format!("{before} elect 3 r4 [1@r0 3@r4]"),
        "persist term=3 [1@r0] commit=r2, truncate r4, persist term=3 [1@r0 3@r4] commit=r2",
    );
    check_last(
        &format!("{before} elect 3 r4 [1@r0 3@r4]; vote 3"),
        "refused term=3 flush=r4 [1@r0 3@r4]",
    );
    check_last(&format!("{before} vote 5; elect 3 r4 [1@r0 3@r4]"), "");
}

#[test]
fn elections_that_cannot_be_followed() {
    let before = "elect 1 r0 [1@r0]; append 1 r0-r9 commit=r2; flush; ";
    for (elect, why) in [
        (
            "elect 3 r1 [1@r0 3@r1]",
            "term 3 from 0/106440: WAL is committed up to 0/106480",
        ),
        (
            "elect 1 r8 [1@r0]",
            "term 1 from 0/106600: WAL of this term is here up to 0/106640",
        ),
        (
            "elect 3 r10 [1@r0 3@r10]",
            "term 3 from 0/106680: WAL here ends at 0/106640",
        ),
        (
            "elect 3 r9 [1@r0 2@r9]",
            "term 3 from 0/106640: its term history does not end with this term",
        ),
        (
            "elect 3 r9 []",
            "term 3 from 0/106640: its term history does not end with this term",
        ),
        (
            "elect 3 r8+4 [1@r0 3@r8+4]",
            "term 3 from 0/106604: no record can start there",
        ),
    ] {
        check_last(
            &format!("{before}{elect}"),
            &format!("ERROR cannot follow the proposer of {why}"),
        );
    }
    check_last(
        "elect 1 0 [1@0]",
        "ERROR cannot follow the proposer of term 1 from 0/0: no record can start there",
    );
    check_last(
        "elect 1 r1 start=r2 [1@r1]",
        "ERROR cannot follow the proposer of term 1 from 0/106440: no record can start there",
    );
}

#[test]
fn appends_that_do_not_fit() {
    let before = "vote 2; elect 2 r0 [2@r0]; append 2 r0-r9; ";
    for (append, want) in [
        (
            "append 2 r10-r11",
            "ERROR write_wal creates gap in written WAL: write position 0/106640, begin 0/106680",
        ),
        (
            "append 2 r8-r11",
            "ERROR write_wal rewrites WAL written before: write position 0/106640, begin 0/106600",
        ),
        (
            "append 3 r9-r10",
            "ERROR got AppendRequest before ProposerElected in term 3",
        ),
        ("append 1 r9-r10", "ack term=2 flush=0 commit=0"),
        (
            "flush; vote 3; append 3 r9-r10",
            "ERROR got AppendRequest before ProposerElected in term 3",
        ),
        ("flush; vote 3; append 2 r9-r10", "ack term=3 flush=0 commit=0"),
    ] {
        check_last(&format!("{before}{append}"), want);
    }
    check_last(
        "append 0 r0-r1",
        "ERROR got AppendRequest before ProposerElected in term 0",
    );
}

#[test]
fn half_a_record_is_written_and_not_acknowledged() {
    let elected = "elect 1 r0 [1@r0]; ";
    check_last(
        &format!("{elected} append 1 r0-r3+40; flush"),
        "flush r3, ack term=1 flush=r3 commit=r0",
    );
    check_last(
        &format!("{elected} append 1 r0-r3+40; flush; append 1 r3+40-r4; flush"),
        "flush r4, ack term=1 flush=r4 commit=r0",
    );
    // The next proposer starts where the last whole record ended.
    check_last(
        &format!("{elected} append 1 r0-r3+40; vote 2"),
        "flush r3, persist term=2 [1@r0] commit=r0, granted term=2 flush=r3 [1@r0]",
    );
    check_last(
        &format!("{elected} append 1 r0-r3+40; vote 2; elect 2 r3 [1@r0 2@r3]"),
        "truncate r3, persist term=2 [1@r0 2@r3] commit=r0",
    );
}

#[test]
fn commit_follows_what_is_durable_here() {
    let elected = "elect 1 r0 [1@r0]; append 1 r0-r3; flush; vote 2; elect 2 r3 [1@r0 2@r3]; ";
    // Reaching the start of the term is persisted at once, for proposers that only synchronise.
    check_last(
        &format!("{elected} append 2 r3-r3 commit=r3; flush"),
        "persist term=2 [1@r0 2@r3] commit=r3, ack term=2 flush=r3 commit=r3",
    );
    check_last(
        &format!("{elected} append 2 r3-r5 commit=r9; flush"),
        "flush r5, persist term=2 [1@r0 2@r3] commit=r5, ack term=2 flush=r5 commit=r5",
    );
    // From a peer only if its WAL is of the same term.
    check_last(&format!("{elected} peer 1 r3"), "");
    check_last(
        &format!("{elected} peer 2 r7"),
        "persist term=2 [1@r0 2@r3] commit=r3",
    );
}

#[test]
fn positions_are_saved_beside_and_count_once_they_are() {
    let elected = "elect 1 r0 [1@r0]; append 1 r0-r80; flush; append 1 r80-r80 commit=r10; flush; ";
    check_last(elected.trim_end_matches("; "), "ack term=1 flush=r80 commit=r0");
    let saving = format!("{elected} append 1 r80-r80 commit=r20; flush");
    check_last(&saving, "save commit=r20, ack term=1 flush=r80 commit=r0");
    // One at a time, and from what is on disk on.
    let more = "append 1 r80-r80 commit=r40; flush";
    check_last(&format!("{saving}; {more}"), "ack term=1 flush=r80 commit=r0");
    check_last(
        &format!("{saving}; saved r20; append 1 r80-r80 commit=r21; flush"),
        "ack term=1 flush=r80 commit=r20",
    );
    check_last(
        &format!("{saving}; saved r20; {more}"),
        "save commit=r40, ack term=1 flush=r80 commit=r20",
    );
    // What has got ahead during a save comes next, even if nothing else ever happens.
    check_last(&format!("{saving}; {more}; saved r20"), "save commit=r40");
    // What a vote has written in the meantime is further.
    check_last(
        &format!("{saving}; {more}; vote 2; saved r20; elect 2 r80 [1@r0 2@r80]; append 2 r80-r80; flush"),
        "ack term=2 flush=r80 commit=r40",
    );
}

#[test]
fn greetings_that_do_not_fit() {
    let other = "11111111111111111111111111111111";
    for (greeting, want) in [
        ("greet", "greet term=0".to_owned()),
        ("greet pg=150099", "greet term=0".to_owned()),
        ("greet system=0", "greet term=0".to_owned()),
        (
            "greet system=8",
            "persist term=0 [] commit=0, greet term=0".to_owned(),
        ),
        (
            "greet pg=160001",
            "ERROR incompatible server version 160001, expected 150004".to_owned(),
        ),
        (
            "greet segment=2097152",
            "ERROR invalid wal_seg_size, got 2097152, expected 1048576".to_owned(),
        ),
        (
            &format!("greet timeline={other}"),
            format!(
                "ERROR invalid timeline ID, got {other}, expected {}",
                TimelineId::default()
            ),
        ),
    ] {
        check_last(greeting, &want);
    }
}

#[test]
fn malformed_wal_is_refused_and_the_timeline_unharmed() {
    let mut wal = Wal::new();
    let at = (wal.boundaries[5] - wal.builder.start) as usize + 30;
    wal.builder.bytes[at] ^= 1;
    let mut acceptor = Acceptor::recover(NodeId(1), fresh_control(), Lsn::INVALID);
    let mut out = Vec::new();
    run(&wal, &mut acceptor, "elect 1 r0 [1@r0]", &mut out).unwrap();
    run(&wal, &mut acceptor, "append 1 r0-r3", &mut out).unwrap();
    out.clear();
    let refusal = run(&wal, &mut acceptor, "append 1 r3-r9", &mut out).unwrap_err();
    assert!(matches!(refusal, Refusal::Malformed { .. }), "{refusal}");
    assert_eq!(out, []);
    assert_eq!(acceptor.write_lsn(), wal.boundaries[3]);
    // Only another election goes on from here.
    let again = run(&wal, &mut acceptor, "append 1 r3-r4", &mut out).unwrap_err();
    assert_eq!(again, Refusal::AppendBeforeElected(Term(1)));
    run(&wal, &mut acceptor, "elect 2 r3 [1@r0 2@r3]", &mut out).unwrap();
    run(&wal, &mut acceptor, "append 2 r3-r4", &mut out).unwrap();
}

/// What is durable on a model disk, and what was told to the proposer.
#[derive(Clone)]
struct Disk {
    control: ControlState,
    /// End of the WAL written, and of the durable part of it.
    written: Lsn,
    durable: Lsn,
    told_term: Term,
    told_flush: Lsn,
    told_commit: Lsn,
    saving: Option<Positions>,
}

impl Disk {
    fn apply(&mut self, action: &Action) {
        match action {
            Action::PersistControl(control) => {
                assert!(control.term >= self.control.term && control.commit_lsn >= self.control.commit_lsn);
                self.control = (**control).clone();
            }
            Action::SavePositions(positions) => {
                assert!(
                    positions.commit_lsn <= self.durable,
                    "a commit LSN behind the durable WAL"
                );
                assert_eq!(self.saving.replace(*positions), None, "two saves at once");
            }
            Action::WriteWal { begin, bytes } => {
                assert_eq!(*begin, self.written);
                self.written += bytes.len() as u64;
            }
            Action::FlushWal { .. } => self.durable = self.written,
            Action::TruncateWal { to } => {
                assert!(*to >= self.control.commit_lsn, "committed WAL cut off");
                (self.written, self.durable) = (*to, *to);
                self.told_flush = self.told_flush.min(*to);
            }
            Action::Reply(AcceptorMessage::Greeting(_)) => {}
            Action::Reply(AcceptorMessage::VoteResponse(vote)) => {
                assert_eq!(vote.term, self.control.term, "a vote is told once it is durable");
                assert!(vote.flush_lsn <= self.durable.max(self.control.timeline_start_lsn));
                self.told_term = vote.term;
            }
            Action::Reply(AcceptorMessage::AppendResponse(ack)) => {
                assert_eq!(ack.term, self.control.term);
                assert!(
                    ack.flush_lsn <= self.durable,
                    "acknowledged before it was durable"
                );
                assert!(ack.commit_lsn <= self.control.commit_lsn);
                (self.told_flush, self.told_commit) = (ack.flush_lsn, self.told_commit.max(ack.commit_lsn));
            }
        }
    }
}

proptest! {
    /// Random messages of proposers, a crash before a random action, recovery, and on: whatever was
    /// told is still so.
    #[test]
    fn what_was_told_survives_a_crash_between_any_two_actions(
        commands in prop::collection::vec((0u8..7, 1u64..6, 0usize..12, 0usize..6, any::<bool>()), 1..40),
        crash_at in prop::collection::vec(0usize..60, 0..4),
    ) {
        let wal = Wal::new();
        let mut acceptor = Acceptor::recover(NodeId(1), fresh_control(), Lsn::INVALID).with_save_lag(64);
        let mut disk = Disk {
            control: fresh_control(),
            written: Lsn(0),
            durable: Lsn(0),
            told_term: Term(0),
            told_flush: Lsn(0),
            told_commit: Lsn(0),
            saving: None,
        };
        let mut carried_out = 0;
        for (kind, term, record, len, partial) in commands {
            let mut out = Vec::new();
            let history = format!("[{}]", (1..=term).map(|term| format!("{term}@r0")).collect::<Vec<_>>().join(" "));
            let begin = wal.name(acceptor.write_lsn());
            let begin = if begin.starts_with('r') { begin } else { "r0".to_owned() };
            let next: usize = begin[1..].split('+').next().unwrap().parse().unwrap();
            let end = format!("r{}{}", next + 1 + len, if partial { "+24" } else { "" });
            let command = match kind {
                0 => format!("vote {term}"),
                1 => format!("elect {term} r{record} {history}"),
                2 | 3 => format!("append {} {begin}-{end} commit=r{record}", acceptor.term()),
                4 => "flush".to_owned(),
                _ => format!("peer {term} r{record}"),
            };
            if kind < 6 {
                let _refused = run(&wal, &mut acceptor, &command, &mut out);
            } else if let Some(saved) = disk.saving.take() {
                disk.control.raise_positions(saved);
                acceptor.positions_saved(saved, &mut out);
            }
            for action in &out {
                carried_out += 1;
                if crash_at.contains(&carried_out) {
                    // Records that were not durable may be lost or not; here they are.
                    let end = wal.boundaries.iter().rev().find(|end| **end <= disk.durable);
                    let end = end.copied().unwrap_or_default().max(disk.control.known_end());
                    prop_assert!(disk.control.term >= disk.told_term);
                    prop_assert!(end >= disk.told_flush);
                    prop_assert!(disk.control.commit_lsn >= disk.told_commit);
                    (disk.written, disk.durable) = (end, end);
                    disk.saving = None;
                    acceptor = Acceptor::recover(NodeId(1), disk.control.clone(), end).with_save_lag(64);
                    break;
                }
                disk.apply(action);
            }
        }
    }
}
