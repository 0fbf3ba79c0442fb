use std::time::Duration;

use safekeeper_api::protocol::{
    AppendRequest, AppendResponse, HotStandbyFeedback, ProposerElected, ProposerGreeting, ProposerId,
    TermHistory, TermLsn, VoteResponse,
};
use utils::id::{NodeId, TenantId, TimelineId};

use super::*;
use crate::config::{HoldBack, Limits};
use crate::event::Fetch;

const RECONNECT: Duration = Duration::from_secs(1);
const CONNECT: Duration = Duration::from_secs(5);
const LIMITS: Limits = Limits::PRODUCTION;
const NO_HOLD: HoldBack = HoldBack {
    delay: Duration::ZERO,
    ..HoldBack::PRODUCTION
};
const START: Lsn = Lsn(0x100_0100);

/// A proposer, and what it has asked for since the test looked last.
struct Run {
    proposer: Proposer,
    now: Time,
    out: Vec<Action>,
}

fn config(mode: Mode, safekeepers: usize) -> Config {
    Config {
        mode,
        greeting: ProposerGreeting {
            pg_version: 150_004,
            proposer_id: ProposerId([7; 16]),
            system_id: 1,
            timeline_id: TimelineId::from([1; 16]),
            tenant_id: TenantId::from([2; 16]),
            pg_timeline: 1,
            wal_seg_size: 16 << 20,
        },
        safekeepers,
        reconnect_timeout: RECONNECT,
        connect_timeout: CONNECT,
        commit_pause: Duration::ZERO,
        hold_back: NO_HOLD,
        limits: LIMITS,
        past: PastTerms::default(),
    }
}

/// The past of a server that was elected in these terms, of which it heard nothing but that.
fn elected_in(terms: &[u64]) -> PastTerms {
    let elected: Vec<Term> = terms.iter().copied().map(Term).collect();
    PastTerms {
        campaign: *elected.last().unwrap(),
        elected,
        empty_at: Term::ZERO,
    }
}

fn stream() -> Mode {
    Mode::Stream { start_lsn: START }
}

fn history(entries: &[(u64, Lsn)]) -> TermHistory {
    let entry = |(term, lsn): &(u64, Lsn)| TermLsn {
        term: Term(*term),
        lsn: *lsn,
    };
    TermHistory::new(entries.iter().map(entry).collect()).unwrap()
}

/// The vote of a safekeeper with WAL up to `flush`, written in the terms given.
fn vote(term: u64, flush: Lsn, entries: &[(u64, Lsn)]) -> VoteResponse {
    VoteResponse {
        term: Term(term),
        vote_given: true,
        flush_lsn: flush,
        truncate_lsn: Lsn::INVALID,
        term_history: history(entries),
        timeline_start_lsn: entries.first().map_or(Lsn::INVALID, |entry| entry.1),
    }
}

fn response(term: u64, flush: Lsn, commit: Lsn) -> AcceptorMessage {
    AcceptorMessage::AppendResponse(AppendResponse {
        term: Term(term),
        flush_lsn: flush,
        commit_lsn: commit,
        hs_feedback: HotStandbyFeedback::NONE,
        pageserver_feedback: None,
    })
}

impl Run {
    fn new(config: Config) -> Run {
        let mut out = Vec::new();
        let now = Time(1_000_000);
        let proposer = Proposer::new(config, now, &mut out);
        Run { proposer, now, out }
    }

    fn step(&mut self, event: Event) -> &mut Run {
        self.proposer.step(self.now, event, &mut self.out);
        self
    }

    fn pass(&mut self, duration: Duration) -> &mut Run {
        self.now = self.now.after(duration);
        self.step(Event::Tick)
    }

    fn greet(&mut self, sk: usize, term: u64) -> &mut Run {
        self.step(Event::Connected(SkIndex(sk)));
        let greeting = AcceptorGreeting {
            term: Term(term),
            node_id: NodeId(sk as u64),
        };
        self.step(Event::Message(SkIndex(sk), AcceptorMessage::Greeting(greeting)))
    }

    fn vote(&mut self, sk: usize, vote: VoteResponse) -> &mut Run {
        self.step(Event::Message(SkIndex(sk), AcceptorMessage::VoteResponse(vote)))
    }

    fn answer(&mut self, sk: usize, term: u64, flush: Lsn, commit: Lsn) -> &mut Run {
        self.step(Event::Message(SkIndex(sk), response(term, flush, commit)))
    }

    fn wal(&mut self, bytes: usize) -> &mut Run {
        self.step(Event::Wal(vec![1; bytes].into()))
    }

    fn drain(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.out)
    }

    /// The append requests to `sk` since the last look, as (begin, length, commit LSN).
    fn appends(&mut self, sk: usize) -> Vec<(Lsn, usize, Lsn)> {
        let append = |action: &Action| match action {
            Action::Send(to, ProposerMessage::Append(append)) if to.0 == sk => {
                Some((append.begin_lsn, append.wal.len(), append.commit_lsn))
            }
            _ => None,
        };
        let appends = self.out.iter().filter_map(append).collect();
        self.out
            .retain(|action| !matches!(action, Action::Send(to, ProposerMessage::Append(_)) if to.0 == sk));
        appends
    }

    fn elected(&self, sk: usize) -> Option<&ProposerElected> {
        self.out.iter().find_map(|action| match action {
            Action::Send(to, ProposerMessage::Elected(elected)) if to.0 == sk => Some(elected),
            _ => None,
        })
    }

    fn stopped(&self) -> Option<&Stop> {
        self.out.iter().find_map(|action| match action {
            Action::Stop(stop) => Some(stop),
            _ => None,
        })
    }

    fn commits(&self) -> Vec<Lsn> {
        let commit = |action: &Action| match action {
            Action::Commit(lsn) => Some(*lsn),
            _ => None,
        };
        self.out.iter().filter_map(commit).collect()
    }
}

/// Safekeepers 0 and 1 of three elect an empty timeline's first proposer, in term 1.
fn bootstrapped() -> Run {
    let mut run = Run::new(config(stream(), 3));
    run.greet(0, 0).greet(1, 0);
    run.vote(0, vote(1, Lsn(0), &[])).vote(1, vote(1, Lsn(0), &[]));
    assert_eq!(run.proposer.elected_term(), Some(Term(1)));
    run
}

#[test]
fn bootstrap_starts_at_the_base_backup() {
    let mut run = bootstrapped();
    let elected = run.elected(0).unwrap().clone();
    assert_eq!(elected.start_streaming_at, START);
    assert_eq!(elected.timeline_start_lsn, START);
    assert_eq!(elected.term_history, history(&[(1, START)]));
    assert!(run.out.contains(&Action::StreamFrom(START)));
    assert_eq!(run.appends(0), [(START, 0, Lsn(0))]);
    // The third comes late and is told the same.
    run.drain();
    run.greet(2, 0).vote(2, vote(1, Lsn(0), &[]));
    assert_eq!(run.elected(2), Some(&elected));
}

#[test]
fn terms_are_remembered_before_votes_are_asked_for() {
    let mut run = Run::new(config(stream(), 3));
    run.greet(0, 4);
    assert!(!run.out.iter().any(|action| matches!(action, Action::Remember(_))));
    run.drain();
    run.greet(2, 6);
    let campaign = PastTerms {
        campaign: Term(7),
        elected: vec![],
        empty_at: Term::ZERO,
    };
    // The greeting to safekeeper 2, then this, then the two requests.
    assert_eq!(run.out[1], Action::Remember(campaign));
    let asked = |action: &Action| match action {
        Action::Send(sk, ProposerMessage::VoteRequest(request)) => Some((sk.0, request.term)),
        _ => None,
    };
    let requests: Vec<_> = run.out[2..].iter().filter_map(asked).collect();
    assert_eq!(requests, [(0, Term(7)), (2, Term(7))]);
}

#[test]
fn commit_is_what_a_quorum_has_flushed() {
    let mut run = bootstrapped();
    run.answer(0, 1, START, START);
    assert_eq!(run.commits(), []);
    run.answer(1, 1, START, START);
    assert_eq!(run.commits(), [START]);
    run.drain();

    run.wal(100);
    assert_eq!(run.appends(0), [(START, 100, START)]);
    assert_eq!(run.appends(1), [(START, 100, START)]);
    run.answer(0, 1, START + 96, START);
    assert_eq!(run.commits(), []);
    run.answer(1, 1, START + 40, START);
    assert_eq!(run.commits(), [START + 40]);
    // Everybody hears of it at once.
    assert_eq!(run.appends(0), [(START + 100, 0, START + 40)]);
    assert_eq!(run.appends(1), [(START + 100, 0, START + 40)]);
}

#[test]
fn a_new_commit_lsn_waits_for_wal_but_not_for_long() {
    let pause = Duration::from_millis(1);
    let mut run = Run::new(Config {
        commit_pause: pause,
        ..config(stream(), 3)
    });
    run.greet(0, 0).greet(1, 0);
    run.vote(0, vote(1, Lsn(0), &[])).vote(1, vote(1, Lsn(0), &[]));
    run.answer(0, 1, START, START).answer(1, 1, START, START);
    run.pass(pause).wal(100);
    run.drain();
    assert_eq!(run.proposer.tick_due(), None);

    // The local server is told at once, the safekeepers with the next WAL.
    run.answer(0, 1, START + 100, START)
        .answer(1, 1, START + 100, START);
    assert_eq!(run.commits(), [START + 100]);
    assert_eq!(run.proposer.tick_due(), Some(run.now.after(pause)));
    assert_eq!(run.appends(0), []);
    run.wal(50);
    assert_eq!(run.appends(0), [(START + 100, 50, START + 100)]);
    assert_eq!(run.appends(1), [(START + 100, 50, START + 100)]);
    assert_eq!(run.proposer.tick_due(), None);

    // Without WAL they are told when the pause is over, counted from the first commit of which they do not know.
    run.answer(0, 1, START + 150, START)
        .answer(1, 1, START + 120, START);
    let due = run.now.after(pause);
    run.pass(pause / 2).answer(1, 1, START + 150, START);
    assert_eq!((run.appends(0), run.appends(1)), (vec![], vec![]));
    assert_eq!(run.proposer.tick_due(), Some(due));
    run.pass(pause / 2);
    assert_eq!(run.appends(0), [(START + 150, 0, START + 150)]);
    assert_eq!(run.appends(1), [(START + 150, 0, START + 150)]);
    assert_eq!(run.proposer.tick_due(), None);
}

#[test]
fn what_was_flushed_in_earlier_terms_does_not_count() {
    let old = START + 1000;
    let mut run = Run::new(Config {
        past: elected_in(&[3]),
        ..config(stream(), 3)
    });
    run.greet(0, 3).greet(1, 3);
    // Safekeeper 0 has more; the new term starts at its end.
    run.vote(0, vote(4, old, &[(3, START)]));
    run.vote(1, vote(4, START + 500, &[(3, START)]));
    assert_eq!(run.proposer.epoch_start_lsn(), Some(old));
    assert_eq!(run.elected(0).unwrap().start_streaming_at, old);
    assert_eq!(run.elected(1).unwrap().start_streaming_at, START + 500);

    run.answer(0, 4, old, START);
    run.answer(1, 4, START + 500, START);
    assert_eq!(run.commits(), [], "safekeeper 1 is below the start of the epoch");
    // It is fed from the other one.
    let fetch = Fetch {
        receiver: SkIndex(1),
        donor: SkIndex(0),
        begin: START + 500,
        end: old,
    };
    assert!(run.out.contains(&Action::StartFetch(fetch)));
    assert!(run.proposer.wants_fetched(SkIndex(1)));
    run.drain();
    run.step(Event::Fetched(SkIndex(1), vec![0; 300].into()));
    run.step(Event::Fetched(SkIndex(1), vec![0; 300].into()));
    assert_eq!(
        run.appends(1),
        [(START + 500, 300, Lsn(0)), (START + 800, 200, Lsn(0))]
    );
    assert!(run.out.contains(&Action::StopFetch(SkIndex(1))));
    run.answer(1, 4, old, START);
    assert_eq!(run.commits(), [old]);
}

#[test]
fn wal_may_go_where_all_have_it_and_it_is_committed() {
    let old = START + 1000;
    let mut run = Run::new(Config {
        past: elected_in(&[3]),
        ..config(stream(), 3)
    });
    run.greet(0, 3).greet(1, 3).greet(2, 3);
    run.vote(0, vote(4, old, &[(3, START)]));
    for sk in [1, 2] {
        run.vote(sk, vote(4, START + 500, &[(3, START)]));
    }
    for sk in [1, 2] {
        run.step(Event::Fetched(SkIndex(sk), vec![0; 500].into()));
    }
    // What the next WAL says may go.
    let told = |run: &mut Run| {
        run.drain();
        run.wal(10);
        run.out.iter().find_map(|action| match action {
            Action::Send(SkIndex(0), ProposerMessage::Append(append)) => Some(append.truncate_lsn),
            _ => None,
        })
    };
    run.answer(0, 4, old, Lsn(0));
    run.answer(1, 4, START + 700, Lsn(0));
    run.answer(2, 4, START + 700, Lsn(0));
    assert_eq!(
        told(&mut run),
        Some(Lsn(0)),
        "all have 700 bytes of an earlier term"
    );
    run.answer(1, 4, old, Lsn(0));
    assert_eq!(run.proposer.commit_lsn(), old);
    assert_eq!(told(&mut run), Some(START + 700), "the rest is not everywhere");
    run.answer(2, 4, old, Lsn(0));
    assert_eq!(told(&mut run), Some(old));
}

#[test]
fn diverged_wal_is_cut_off() {
    let mut run = Run::new(Config {
        past: elected_in(&[3, 5]),
        ..config(stream(), 3)
    });
    run.greet(0, 5).greet(1, 4);
    // A long tail of an older term loses against a newer term.
    run.vote(0, vote(6, START + 90, &[(3, START), (5, START + 80)]));
    run.vote(1, vote(6, START + 900, &[(3, START), (4, START + 50)]));
    assert_eq!(run.elected(0).unwrap().start_streaming_at, START + 90);
    assert_eq!(run.elected(1).unwrap().start_streaming_at, START + 50);
    assert_eq!(
        run.elected(1).unwrap().term_history,
        history(&[(3, START), (5, START + 80), (6, START + 90)])
    );
}

#[test]
fn a_higher_term_fences() {
    let fenced = |newer, own| Stop::Fenced {
        by: SkIndex(2),
        newer: Term(newer),
        own: Term(own),
    };
    let mut run = bootstrapped();
    run.greet(2, 2);
    assert_eq!(run.stopped(), Some(&fenced(2, 1)));

    let mut run = bootstrapped();
    run.greet(2, 0).vote(2, vote(3, Lsn(0), &[]));
    assert_eq!(run.stopped(), Some(&fenced(3, 1)));

    let mut run = bootstrapped();
    run.greet(2, 0).vote(2, vote(1, Lsn(0), &[]));
    run.wal(10).answer(2, 4, Lsn(0), Lsn(0));
    assert_eq!(run.stopped(), Some(&fenced(4, 1)));
    run.drain();
    run.answer(0, 1, START + 10, START)
        .answer(1, 1, START + 10, START);
    run.pass(RECONNECT * 10);
    assert_eq!(run.out, [], "nothing is acknowledged after that");

    // A run for the same data directory knows which terms were its own.
    let past = elected_in(&[5]);
    let mut run = Run::new(Config {
        past,
        ..config(stream(), 3)
    });
    run.greet(2, 6);
    assert_eq!(run.stopped(), Some(&fenced(6, 5)));
}

#[test]
fn a_base_backup_that_is_too_old_is_refused() {
    let mut run = Run::new(config(stream(), 1));
    run.greet(0, 3).vote(0, vote(4, START + 8, &[(3, START)]));
    let want = Stop::Diverged {
        safekeepers: START + 8,
        term: Term(3),
        local: START,
    };
    assert_eq!(run.stopped(), Some(&want));

    // On a page boundary the server's first record is behind the page header.
    let page = Lsn(0x100_2000);
    let mode = Mode::Stream { start_lsn: page + 24 };
    let mut run = Run::new(config(mode, 1));
    run.greet(0, 3).vote(0, vote(4, page, &[(3, START)]));
    assert_eq!(run.stopped(), None);
    assert!(run.out.contains(&Action::StreamFrom(page)));
}

#[test]
fn split_votes_lose_the_election() {
    let refusal = |term| VoteResponse {
        vote_given: false,
        ..vote(term, Lsn(0), &[])
    };
    let mut run = Run::new(config(stream(), 3));
    run.greet(0, 0).greet(1, 0).vote(0, refusal(1));
    assert_eq!(run.stopped(), None, "two others are enough");
    run.vote(1, refusal(1));
    assert_eq!(run.stopped(), Some(&Stop::LostElection(Term(1))));

    // Whoever has voted and comes back says no because it has voted.
    let mut run = Run::new(config(stream(), 3));
    run.greet(0, 0).greet(1, 0).vote(0, vote(1, Lsn(0), &[]));
    run.step(Event::Disconnected(SkIndex(0))).pass(RECONNECT);
    run.greet(0, 1).vote(0, refusal(1)).vote(1, vote(1, Lsn(0), &[]));
    assert_eq!(run.proposer.elected_term(), Some(Term(1)));
    assert!(run.elected(0).is_some());
}

fn synced(lsn: Lsn, term: u64) -> Stop {
    let term = Term(term);
    Stop::Synced { lsn, term }
}

#[test]
fn who_begins_from_nothing_has_the_rest_cut_off() {
    let end = START + 64;
    let new = |empty_at| {
        let mut config = config(stream(), 3);
        config.past.empty_at = Term(empty_at);
        Run::new(config)
    };
    // The majority was empty in term 2, so WAL of term 1 is not committed.
    let mut run = new(2);
    run.greet(0, 2).greet(1, 1);
    run.vote(0, vote(3, Lsn(0), &[]))
        .vote(1, vote(3, end, &[(1, START)]));
    assert_eq!(run.stopped(), None);
    assert_eq!(run.proposer.epoch_start_lsn(), Some(START));
    let elected = run.elected(1).unwrap();
    assert_eq!(elected.start_streaming_at, START);
    assert_eq!(elected.term_history, history(&[(3, START)]));

    // WAL of term 2 or later may be.
    for empty_at in [0, 1] {
        let mut run = new(empty_at);
        run.greet(0, 2).greet(1, 1);
        run.vote(0, vote(3, Lsn(0), &[]))
            .vote(1, vote(3, end, &[(1, START)]));
        assert!(matches!(run.stopped(), Some(Stop::Diverged { .. })), "{empty_at}");
    }
}

#[test]
fn sync_says_where_the_wal_ends() {
    let end = START + 64;
    let mut run = Run::new(config(Mode::Sync, 3));
    run.greet(0, 0).greet(1, 0);
    run.vote(0, vote(1, Lsn(0), &[])).vote(1, vote(1, Lsn(0), &[]));
    assert_eq!(run.stopped(), Some(&synced(Lsn(0), 1)), "an empty timeline");

    let mut run = Run::new(config(Mode::Sync, 3));
    run.greet(0, 1).greet(1, 1).greet(2, 1);
    for sk in 0..3 {
        run.vote(sk, vote(2, end, &[(1, START)]));
    }
    run.answer(0, 2, end, START).answer(1, 2, end, START);
    assert_eq!(run.appends(0), [(end, 0, Lsn(0)), (end, 0, end)]);
    run.answer(0, 2, end, end).answer(1, 2, end, end);
    assert_eq!(run.stopped(), None, "the third is connected");
    run.step(Event::Disconnected(SkIndex(2)));
    assert_eq!(run.stopped(), Some(&synced(end, 2)));
    assert_eq!(run.commits(), [], "there is no local server");
}

#[test]
fn silence_breaks_a_connection_and_heartbeats_keep_it() {
    let mut run = bootstrapped();
    run.drain();
    for _ in 0..10 {
        run.pass(RECONNECT);
        run.step(Event::Drained(SkIndex(0), AppendRequest::HEADER_LEN as u64));
        run.answer(0, 1, START, Lsn(0));
    }
    let dropped = |sk| Action::Disconnect(SkIndex(sk), DisconnectReason::Timeout(CONNECT));
    assert!(!run.out.contains(&dropped(0)));
    assert!(run.out.contains(&dropped(1)));
    assert!(run.out.contains(&dropped(2)), "never connected");
    assert_eq!(
        run.appends(0).len(),
        9,
        "the first heartbeat found the outbox full"
    );
    assert!(
        run.out.contains(&Action::Connect(SkIndex(1))),
        "and is made again"
    );
}

#[test]
fn answers_that_cannot_be_true_break_the_connection() {
    let mut run = bootstrapped();
    run.answer(0, 1, START + 1, Lsn(0));
    let reason = DisconnectReason::FlushPastSent {
        flush_lsn: START + 1,
        sent: START,
    };
    assert!(run.out.contains(&Action::Disconnect(SkIndex(0), reason)));

    let mut run = bootstrapped();
    run.answer(0, 0, START, Lsn(0));
    assert!(matches!(
        run.out.last(),
        Some(Action::Disconnect(SkIndex(0), DisconnectReason::TermBelow { .. }))
    ));

    let mut run = bootstrapped();
    run.vote(0, vote(1, Lsn(0), &[]));
    assert!(matches!(
        run.out.last(),
        Some(Action::Disconnect(_, DisconnectReason::Unexpected(_)))
    ));
}

#[test]
fn memory_is_bounded() {
    let piece = 1 << 20;
    let mut run = bootstrapped();
    let mut taken = 0;
    while run.proposer.wants_wal() {
        run.wal(piece);
        taken += piece as u64;
    }
    assert_eq!(taken, LIMITS.uncommitted_wal_bytes_soft);
    let sent = |run: &mut Run, sk| {
        let lengths = run
            .appends(sk)
            .into_iter()
            .map(|(_, len, _)| len + AppendRequest::HEADER_LEN);
        lengths.sum::<usize>() as u64
    };
    let in_outbox = sent(&mut run, 0);
    assert!(
        in_outbox < LIMITS.outbox_bytes_max + (1 << 20),
        "{in_outbox} in the outbox"
    );

    // Once a quorum has been sent everything, the rest of a long record may be what is missing.
    for sk in 0..2 {
        let mut waiting = if sk == 0 { in_outbox } else { sent(&mut run, 1) };
        while waiting > 0 {
            run.step(Event::Drained(SkIndex(sk), waiting));
            waiting = sent(&mut run, sk);
        }
    }
    assert!(run.proposer.wants_wal());
    // Committed WAL goes, but not what a safekeeper that was away for a moment would miss.
    let end = run.proposer.wal_end().unwrap();
    run.answer(0, 1, end, START).answer(1, 1, end, START);
    for _ in 0..20 {
        run.wal(piece);
    }
    let window = &run.proposer.leader().unwrap().window;
    let kept = window.end() - window.start();
    assert!(kept >= LIMITS.committed_wal_bytes_kept, "{kept} bytes kept");
    assert!(
        kept < LIMITS.committed_wal_bytes_kept + (8 << 20),
        "{kept} bytes kept"
    );
}

/// Three safekeepers that have everything up to `START`, in term 1, and a proposer that prefers those who are sooner in
/// two pieces.
fn holding() -> Run {
    let hold_back = HoldBack {
        delay: HOLD,
        after_commit: AFTER_COMMIT,
        uncommitted_bytes_max: 1000,
        compared_pieces: 2,
        preferred_pieces: 5,
    };
    let mut run = Run::new(Config {
        hold_back,
        commit_pause: 2 * HOLD,
        ..config(stream(), 3)
    });
    run.greet(0, 0).greet(1, 0).greet(2, 0);
    for sk in 0..3 {
        run.vote(sk, vote(1, Lsn(0), &[]));
    }
    for sk in 0..3 {
        run.answer(sk, 1, START, START);
    }
    run
}

const HOLD: Duration = Duration::from_millis(1);
const AFTER_COMMIT: Duration = Duration::from_micros(100);

/// Gives the proposer two pieces, which go to everyone; `first` and `second` have them before the commit. Where it ends.
fn compare(run: &mut Run, begin: Lsn, [first, second, third]: [usize; 3]) -> Lsn {
    for end in [begin + 10, begin + 20] {
        run.drain();
        run.wal(10);
        for sk in [first, second, third] {
            assert_eq!(run.appends(sk).len(), 1, "safekeeper {sk} is compared at {end}");
        }
        for sk in [first, second, third] {
            run.answer(sk, 1, end, START);
        }
        assert_eq!(run.commits(), [end]);
    }
    run.pass(2 * HOLD).drain();
    begin + 20
}

#[test]
fn a_quorum_gets_wal_first_and_the_rest_in_time() {
    let mut run = holding();
    let begin = compare(&mut run, START, [2, 0, 1]);
    run.wal(30).wal(40);
    for sk in [0, 2] {
        let sent: Vec<_> = run.appends(sk).iter().map(|(at, len, _)| (*at, *len)).collect();
        assert_eq!(sent, [(begin, 30), (begin + 30, 40)]);
    }
    assert_eq!(run.appends(1), []);
    assert_eq!(run.proposer.tick_due(), Some(run.now.after(HOLD)));
    run.answer(0, 1, begin + 70, begin)
        .answer(2, 1, begin + 70, begin);
    assert_eq!(run.commits(), [begin + 70]);
    run.pass(HOLD / 4);
    assert_eq!(run.appends(1), []);
    run.pass(HOLD / 4);
    let commit = begin + 70;
    assert_eq!(run.appends(1), [(begin, 30, commit), (begin + 30, 40, commit)]);
    // There was progress, so the same two are preferred, until it is time to compare again.
    for piece in 0..3 {
        run.drain();
        run.wal(10);
        assert_eq!(run.appends(1).len(), 0, "piece {piece}");
    }
    run.drain();
    run.wal(10);
    assert_eq!(run.appends(1).len(), 4, "all there is");
    assert_eq!(run.proposer.tick_due(), None);
}

#[test]
fn what_is_held_back_goes_out_between_two_commits() {
    let mut run = holding();
    let begin = compare(&mut run, START, [0, 1, 2]);
    let since = run.now;
    run.wal(10)
        .answer(0, 1, begin + 10, begin)
        .answer(1, 1, begin + 10, begin);
    assert_eq!(run.commits(), [begin + 10]);
    run.pass(HOLD / 4);
    assert_eq!(run.proposer.tick_due(), Some(since.after(HOLD / 2)));
    run.wal(10);
    assert_eq!(
        run.proposer.tick_due(),
        Some(since.after(HOLD)),
        "a commit is under way"
    );
    run.pass(HOLD / 2).answer(0, 1, begin + 20, begin);
    assert_eq!(run.appends(2), []);
    run.answer(1, 1, begin + 20, begin);
    assert_eq!(run.commits(), [begin + 10, begin + 20]);
    assert_eq!(run.appends(2), [], "the commit is being told");
    assert_eq!(run.proposer.tick_due(), Some(run.now.after(AFTER_COMMIT)));
    run.pass(AFTER_COMMIT);
    assert_eq!(run.appends(2).len(), 2);
}

#[test]
fn everyone_gets_wal_when_the_preferred_hang_or_are_lost() {
    let mut run = holding();
    let begin = compare(&mut run, START, [0, 1, 2]);
    run.wal(10).answer(0, 1, begin + 10, begin);
    assert_eq!(run.appends(2), []);
    run.pass(HOLD);
    assert_eq!(run.appends(2).len(), 1, "safekeeper 1 hangs");
    run.answer(2, 1, begin + 10, begin);
    assert_eq!(run.commits(), [begin + 10]);
    run.pass(2 * HOLD);
    let begin = compare(&mut run, begin + 10, [0, 2, 1]);
    run.wal(10);
    assert_eq!(
        (run.appends(1).len(), run.appends(2).len()),
        (0, 1),
        "another one is preferred"
    );
    run.step(Event::Disconnected(SkIndex(2)));
    assert_eq!(run.appends(1), [(begin, 10, begin)], "at once");
}

#[test]
fn nothing_is_held_back_when_much_is_under_way() {
    let mut run = holding();
    let begin = compare(&mut run, START, [0, 1, 2]);
    run.wal(10);
    assert_eq!(run.appends(2), []);
    run.wal(1000);
    assert_eq!(run.appends(2).len(), 2);
    assert_eq!(run.proposer.tick_due(), None);
    run.answer(0, 1, begin + 1010, begin)
        .answer(1, 1, begin + 1010, begin);
    run.drain();
    run.wal(10);
    assert_eq!(
        (run.appends(1).len(), run.appends(2).len()),
        (1, 0),
        "held back again"
    );
}
