//! A compute: it makes the safekeepers agree, takes a base backup, and then writes WAL that its
//! proposer streams. The proposer may crash and be started again while the server runs on.

use std::time::Duration;

use bytes::Bytes;
use postgres_ffi::v15::wal_page::skip_page_header;
use safekeeper_api::protocol::{ProposerGreeting, ProposerId, Term};
use utils::lsn::Lsn;
use walproposer::{
    Action, Config, Event as ProposerEvent, Fetch, HoldBack, Limits, Mode, PastTerms, Proposer, SkIndex,
    Stop, Time,
};

use crate::network::{ConnId, Direction};
use crate::wal::{LocalWal, SEGMENT_SIZE, SYSTEM_ID};
use crate::world::{Event, Micros, PG_VERSION, World};
use crate::{Violation, violation};

/// Small enough that the limits are met in a run.
const LIMITS: Limits = Limits {
    uncommitted_wal_bytes_soft: 48 << 10,
    wal_bytes_max: 1 << 20,
    committed_wal_bytes_kept: 8 << 10,
    outbox_bytes_max: 16 << 10,
};
/// Few pieces, so that both ways of sending are met often. The delay is one of the run.
const HOLD_BACK: HoldBack = HoldBack {
    delay: Duration::ZERO,
    after_commit: Duration::from_micros(100),
    uncommitted_bytes_max: 16 << 10,
    compared_pieces: 3,
    preferred_pieces: 40,
};
const RECONNECT_TIMEOUT: Duration = Duration::from_millis(300);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
const TICK: Micros = 75_000;
/// How long a new commit LSN waits for WAL to travel with.
const COMMIT_PAUSE: Duration = Duration::from_millis(1);
/// Elections that are lost before the compute gives up synchronising.
const SYNC_ATTEMPTS_MAX: u32 = 10;
/// Typical time for a base backup, or for a process to start.
const START_LATENCY: Micros = 20_000;
/// Most WAL given to the proposer at once, in bytes.
const WAL_CHUNK_MAX: u64 = 10_000;

/// Most WAL that a donor gives at once: little, so that there is a middle to be interrupted in.
const FETCH_CHUNK_MAX: u64 = 1_000;

/// What a compute is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Life {
    /// Makes the safekeepers agree.
    Syncing,
    /// Takes a base backup at this LSN.
    Starting(Lsn),
    /// Its server runs.
    Running,
    /// It is gone for good.
    Dead,
}

/// WAL being read from a donor.
#[derive(Clone, Copy, Debug)]
struct FetchRun {
    id: u64,
    fetch: Fetch,
    next: Lsn,
    /// How far the donor gives its WAL.
    end: Option<Lsn>,
}

/// See the module's head.
pub(crate) struct Compute {
    pub(crate) life: Life,
    proposer: Option<Proposer>,
    /// Counts the runs of the proposer.
    pub(crate) run: u64,
    past: PastTerms,
    wal: Option<LocalWal>,
    start_lsn: Lsn,
    pub(crate) conns: Vec<Option<ConnId>>,
    fetches: Vec<Option<FetchRun>>,
    fetch_count: u64,
    sync_attempts: u32,
    /// It was fenced off before its election, which takes only a term that another one, gone by now, has asked for.
    pub(crate) fenced_in_campaign: bool,
    /// The tick that its proposer has asked for.
    tick_due: Option<Time>,
    /// What its clock is ahead.
    pub(crate) skew: Micros,
    /// What the server was told is committed.
    pub(crate) acked: Lsn,
}

impl Compute {
    fn new(safekeepers: usize) -> Compute {
        Compute {
            life: Life::Syncing,
            proposer: None,
            run: 0,
            past: PastTerms::default(),
            wal: None,
            start_lsn: Lsn::INVALID,
            conns: vec![None; safekeepers],
            fetches: vec![None; safekeepers],
            fetch_count: 0,
            sync_attempts: 0,
            fenced_in_campaign: false,
            tick_due: None,
            skew: 0,
            acked: Lsn::INVALID,
        }
    }

    /// Whether everything the server has written is acknowledged.
    pub(crate) fn is_drained(&self) -> bool {
        self.wal
            .as_ref()
            .is_some_and(|wal| self.acked >= wal.end() && wal.end() > wal.start())
    }
}

impl World {
    /// A new compute for the timeline.
    pub(crate) fn start_compute(&mut self) {
        let compute = self.computes.len();
        self.trace(format_args!("compute {compute} starts"));
        self.computes.push(Compute::new(self.safekeepers.len()));
        self.start_run(compute);
    }

    /// Starts the compute's proposer.
    pub(crate) fn start_run(&mut self, compute: usize) {
        let safekeepers = self.safekeepers.len();
        let this = &mut self.computes[compute];
        let mode = match this.life {
            Life::Syncing => Mode::Sync,
            Life::Running => Mode::Stream {
                start_lsn: this.start_lsn,
            },
            Life::Starting(_) | Life::Dead => return,
        };
        assert!(this.proposer.is_none(), "two proposers of one compute");
        this.run += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(compute as u64).to_le_bytes());
        id[8..].copy_from_slice(&this.run.to_le_bytes());
        let config = Config {
            mode,
            greeting: ProposerGreeting {
                pg_version: PG_VERSION,
                proposer_id: ProposerId(id),
                system_id: SYSTEM_ID,
                timeline_id: Default::default(),
                tenant_id: Default::default(),
                pg_timeline: 1,
                wal_seg_size: SEGMENT_SIZE as u32,
            },
            safekeepers,
            reconnect_timeout: RECONNECT_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            commit_pause: match mode {
                Mode::Stream { .. } => COMMIT_PAUSE,
                Mode::Sync => Duration::ZERO,
            },
            hold_back: HoldBack {
                delay: Duration::from_micros(self.profile.hold_delay),
                ..HOLD_BACK
            },
            limits: LIMITS,
            past: this.past.clone(),
        };
        let mut actions = Vec::new();
        let proposer = Proposer::new(config, Time(self.now + this.skew), &mut actions);
        this.proposer = Some(proposer);
        let run = this.run;
        self.trace(format_args!("compute {compute} starts run {run}, {mode:?}"));
        for action in actions {
            match action {
                Action::Connect(sk) => self.connect(compute, sk.0),
                other => unreachable!("a new proposer only connects, not {other:?}"),
            }
        }
        self.schedule(self.now + TICK, Event::Tick { compute, run });
    }

    /// Ends the compute's proposer, in good order or not.
    pub(crate) fn end_run(&mut self, compute: usize) {
        for sk in 0..self.safekeepers.len() {
            if let Some(id) = self.computes[compute].conns[sk].take() {
                self.close_at_compute(id);
            }
        }
        let this = &mut self.computes[compute];
        this.proposer = None;
        this.fetches.fill(None);
    }

    /// The proposer crashes; whoever started it starts it again.
    pub(crate) fn crash_proposer(&mut self, compute: usize) {
        self.trace(format_args!("the proposer of compute {compute} crashes"));
        self.end_run(compute);
        self.restart_later(compute);
    }

    fn restart_later(&mut self, compute: usize) {
        let at = self.now + self.rng.delay(START_LATENCY * 3);
        let run = self.computes[compute].run;
        self.schedule(at, Event::StartRun { compute, run });
    }

    /// The compute is gone with everything it had.
    pub(crate) fn kill_compute(&mut self, compute: usize) {
        self.trace(format_args!("compute {compute} is gone"));
        self.end_run(compute);
        self.computes[compute].life = Life::Dead;
    }

    /// Gives the proposer an event and does what it wants.
    pub(crate) fn step(&mut self, compute: usize, event: ProposerEvent) -> Result<(), Violation> {
        let this = &mut self.computes[compute];
        let Some(proposer) = &mut this.proposer else {
            return Ok(());
        };
        let mut actions = Vec::new();
        proposer.step(Time(self.now + this.skew), event, &mut actions);
        let disks: Vec<_> = self
            .safekeepers
            .iter()
            .map(|safekeeper| &safekeeper.disk)
            .collect();
        let wal = this.wal.as_ref().filter(|_| this.life == Life::Running);
        let run = (compute, this.run);
        self.oracle.on_proposer(run, proposer, wal, &disks)?;
        let due = proposer.tick_due();
        self.schedule_extra_tick(compute, due);
        for action in actions {
            if self.rng.one_in(self.profile.crash_at_action) && self.is_faulty() {
                self.crash_proposer(compute);
                return Ok(());
            }
            if let Action::Stop(stop) = action {
                return self.on_stop(compute, stop);
            }
            self.carry_out(compute, action)?;
        }
        Ok(())
    }

    /// Schedules the tick that the proposer asks for, unless it has asked for the same before.
    fn schedule_extra_tick(&mut self, compute: usize, due: Option<Time>) {
        let this = &mut self.computes[compute];
        if std::mem::replace(&mut this.tick_due, due) == due {
            return;
        }
        if let Some(due) = due {
            let (at, run) = (due.0.saturating_sub(this.skew).max(self.now), this.run);
            self.schedule(at, Event::ExtraTick { compute, run });
        }
    }

    fn carry_out(&mut self, compute: usize, action: Action) -> Result<(), Violation> {
        match action {
            Action::Connect(sk) => self.connect(compute, sk.0),
            Action::Disconnect(sk, reason) => self.disconnect(compute, sk.0, reason),
            Action::Send(sk, message) => {
                let id = self.computes[compute].conns[sk.0].expect("messages go to open connections");
                self.send_up(id, message);
            }
            Action::Remember(past) => self.computes[compute].past = past,
            Action::StreamFrom(lsn) => {
                let this = &self.computes[compute];
                let wal = this.wal.as_ref().expect("a running server has WAL");
                if lsn > wal.end() {
                    return violation!("compute {compute} is to stream from {lsn}, past its WAL's end");
                }
                self.trace(format_args!("compute {compute} streams from {lsn}"));
            }
            Action::StartFetch(fetch) => self.start_fetch(compute, fetch),
            Action::StopFetch(sk) => self.computes[compute].fetches[sk.0] = None,
            Action::Commit(lsn) => {
                self.trace(format_args!("compute {compute} is told that {lsn} is committed"));
                self.computes[compute].acked = lsn;
            }
            Action::PageserverFeedback(_) | Action::HotStandbyFeedback(_) => {}
            Action::Stop(_) => unreachable!("step() has taken it"),
        }
        Ok(())
    }

    fn on_stop(&mut self, compute: usize, stop: Stop) -> Result<(), Violation> {
        self.trace(format_args!("compute {compute} stops: {stop}"));
        let proposer = self.computes[compute].proposer.as_ref();
        let elected = proposer.is_some_and(|proposer| proposer.elected_term().is_some());
        self.end_run(compute);
        let life = self.computes[compute].life;
        match (life, stop) {
            (Life::Syncing, Stop::Synced { lsn, term }) => {
                self.oracle.on_synced(term, lsn)?;
                let this = &mut self.computes[compute];
                this.life = Life::Starting(lsn);
                // As with the daemon, the server's proposer knows nothing else of the runs before.
                this.past = PastTerms {
                    empty_at: if lsn.is_valid() { Term::ZERO } else { term },
                    ..PastTerms::default()
                };
                let at = self.now + self.rng.delay(START_LATENCY);
                self.schedule(at, Event::BaseBackupDone(compute));
            }
            (Life::Syncing, _) => {
                let this = &mut self.computes[compute];
                this.past = PastTerms::default();
                this.sync_attempts += 1;
                if this.sync_attempts >= SYNC_ATTEMPTS_MAX {
                    this.life = Life::Dead;
                } else {
                    self.restart_later(compute);
                }
            }
            (_, Stop::LostElection(_)) => self.restart_later(compute),
            (_, Stop::Fenced { .. }) => {
                let this = &mut self.computes[compute];
                (this.life, this.fenced_in_campaign) = (Life::Dead, !elected);
            }
            (_, Stop::Diverged { .. }) => self.computes[compute].life = Life::Dead,
            (_, stop) => return violation!("compute {compute}: {stop}"),
        }
        Ok(())
    }

    /// The server starts from its base backup.
    pub(crate) fn on_base_backup(&mut self, compute: usize) {
        let Life::Starting(synced) = self.computes[compute].life else {
            return;
        };
        let this = &mut self.computes[compute];
        this.start_lsn = skip_page_header(synced, SEGMENT_SIZE);
        let mut begin = synced;
        let mut previous = Lsn::INVALID;
        if synced.is_valid() {
            previous = self.oracle.last_record_start(synced);
        } else {
            (this.start_lsn, begin) = (self.initial_lsn, self.initial_lsn);
        }
        let mut wal = LocalWal::new(compute as u64, begin, previous);
        wal.write_record(&mut self.rng);
        this.wal = Some(wal);
        this.life = Life::Running;
        self.start_run(compute);
        self.schedule(self.now, Event::Write(compute));
    }

    /// The server writes some WAL, and will again.
    pub(crate) fn on_write(&mut self, compute: usize) -> Result<(), Violation> {
        let writes = self.writes();
        let this = &mut self.computes[compute];
        if this.life != Life::Running {
            return Ok(());
        }
        if writes {
            let wal = this.wal.as_mut().expect("a running server has WAL");
            for _ in 0..self.rng.between(1, 4) {
                wal.write_record(&mut self.rng);
            }
            let at = self.now + self.rng.delay(30_000);
            self.schedule(at, Event::Write(compute));
        }
        self.deliver_wal(compute)
    }

    /// Gives the proposer WAL while it wants some.
    pub(crate) fn deliver_wal(&mut self, compute: usize) -> Result<(), Violation> {
        loop {
            let this = &self.computes[compute];
            let (Some(proposer), Some(wal)) = (&this.proposer, &this.wal) else {
                return Ok(());
            };
            let Some(next) = proposer.wal_end().filter(|next| *next < wal.end()) else {
                return Ok(());
            };
            if this.life != Life::Running || !proposer.wants_wal() {
                return Ok(());
            }
            if next < wal.start() {
                return violation!("compute {compute} is to stream {next}, before its WAL's start");
            }
            let len = self.rng.between(1, WAL_CHUNK_MAX);
            self.step(
                compute,
                ProposerEvent::Wal(self.computes[compute].chunk(next, len)),
            )?;
        }
    }

    pub(crate) fn on_tick(&mut self, compute: usize, run: u64) -> Result<(), Violation> {
        if self.computes[compute].run != run || self.computes[compute].proposer.is_none() {
            return Ok(());
        }
        self.schedule(self.now + TICK, Event::Tick { compute, run });
        self.on_extra_tick(compute, run)
    }

    /// A tick that the proposer has asked for.
    pub(crate) fn on_extra_tick(&mut self, compute: usize, run: u64) -> Result<(), Violation> {
        if self.computes[compute].run != run {
            return Ok(());
        }
        self.step(compute, ProposerEvent::Tick)?;
        self.deliver_wal(compute)
    }

    pub(crate) fn on_message_to_compute(
        &mut self,
        id: ConnId,
        message: safekeeper_api::protocol::AcceptorMessage,
    ) -> Result<(), Violation> {
        let conn = &self.conns[id.0];
        let (compute, sk) = (conn.compute, SkIndex(conn.sk));
        self.step(compute, ProposerEvent::Message(sk, message))?;
        self.deliver_wal(compute)
    }

    fn start_fetch(&mut self, compute: usize, fetch: Fetch) {
        self.trace(format_args!("compute {compute}: {fetch:?}"));
        let this = &mut self.computes[compute];
        this.fetch_count += 1;
        let id = this.fetch_count;
        this.fetches[fetch.receiver.0] = Some(FetchRun {
            id,
            fetch,
            next: fetch.begin,
            end: None,
        });
        self.schedule_fetch(compute, fetch.receiver, id);
    }

    fn schedule_fetch(&mut self, compute: usize, receiver: SkIndex, id: u64) {
        let at = self.now + self.rng.delay(500);
        let run = self.computes[compute].run;
        let event = Event::FetchStep {
            compute,
            run,
            receiver,
            id,
        };
        self.schedule(at, event);
    }

    /// The next piece of WAL from a donor.
    pub(crate) fn on_fetch_step(
        &mut self,
        compute: usize,
        run: u64,
        receiver: SkIndex,
        id: u64,
    ) -> Result<(), Violation> {
        let this = &self.computes[compute];
        let current = this.fetches[receiver.0].filter(|fetch| fetch.id == id && this.run == run);
        let (Some(mut fetch), Some(proposer)) = (current, &this.proposer) else {
            return Ok(());
        };
        let donor = &self.safekeepers[fetch.fetch.donor.0];
        let end = *fetch.end.get_or_insert(donor.flush_lsn());
        let blocked = self.blocked_until(compute, fetch.fetch.donor.0, Direction::Down) > self.now;
        if blocked || !donor.is_up() || donor.trimmed > fetch.next || fetch.next >= end.min(donor.flush_lsn())
        {
            self.computes[compute].fetches[receiver.0] = None;
            return self.step(compute, ProposerEvent::FetchEnded(receiver));
        }
        if proposer.wants_fetched(receiver) {
            let piece_end = end
                .min(donor.flush_lsn())
                .min(fetch.next + self.rng.between(1, FETCH_CHUNK_MAX));
            let piece = self.safekeepers[fetch.fetch.donor.0]
                .disk
                .read(fetch.next, piece_end);
            fetch.next = piece_end;
            self.computes[compute].fetches[receiver.0] = Some(fetch);
            self.step(compute, ProposerEvent::Fetched(receiver, piece))?;
            self.after_fetched(compute, fetch.fetch.donor.0);
        }
        self.schedule_fetch(compute, receiver, id);
        Ok(())
    }
}

impl Compute {
    fn chunk(&self, begin: Lsn, bytes_max: u64) -> Bytes {
        let wal = self.wal.as_ref().expect("the caller has seen it");
        wal.chunk(begin, bytes_max)
    }
}
