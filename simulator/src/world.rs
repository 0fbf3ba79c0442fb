//! The event loop: virtual time, and what happens when.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;

use postgres_ffi::v15::BLCKSZ;
use postgres_ffi::v15::wal_page::skip_page_header;
use safekeeper::acceptor::{ControlState, PeerInfo, ServerInfo};
use safekeeper_api::protocol::{AcceptorMessage, ProposerMessage};
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;
use walproposer::{Event as ProposerEvent, SkIndex};

use crate::compute::{Compute, Life};
use crate::faults::Profile;
use crate::network::{Conn, ConnId, Direction};
use crate::oracle::Oracle;
use crate::rng::Rng;
use crate::safekeeper::Safekeeper;
use crate::trace::{Trace, TraceMode};
use crate::wal::{SEGMENT_SIZE, SYSTEM_ID};
use crate::{Report, Violation, violation};

/// Virtual time in microseconds.
pub(crate) type Micros = u64;

pub(crate) const PG_VERSION: u32 = 150_004;

/// How long after the end of the faults WAL is still written.
const CALM_WRITES: Micros = 1_000_000;
/// How long after the end of the faults everything must be committed and everywhere.
const PROGRESS_BOUND: Micros = 30_000_000;
/// How often that is looked at.
const PROGRESS_CHECK: Micros = 250_000;

/// Something that happens at a moment.
#[derive(Debug)]
pub(crate) enum Event {
    Connected(ConnId),
    ToSafekeeper(ConnId, ProposerMessage),
    ToCompute(ConnId, AcceptorMessage),
    ClosedAtCompute(ConnId),
    Drained(ConnId, u64),
    DiskDone {
        sk: usize,
        life: u64,
    },
    Saved {
        sk: usize,
        save: u64,
    },
    CrashSafekeeper {
        sk: usize,
        life: u64,
    },
    RestartSafekeeper(usize),
    PeerInfo(usize, PeerInfo),
    Tick {
        compute: usize,
        run: u64,
    },
    ExtraTick {
        compute: usize,
        run: u64,
    },
    StartRun {
        compute: usize,
        run: u64,
    },
    BaseBackupDone(usize),
    Write(usize),
    FetchStep {
        compute: usize,
        run: u64,
        receiver: SkIndex,
        id: u64,
    },
    Fault,
    Rotation,
    LoseDonor(usize),
    FaultsEnd,
    CheckProgress,
}

struct Scheduled {
    at: Micros,
    /// Among events of one moment, the one scheduled first comes first.
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Everything there is.
pub(crate) struct World {
    pub(crate) now: Micros,
    pub(crate) rng: Rng,
    pub(crate) profile: Profile,
    pub(crate) safekeepers: Vec<Safekeeper>,
    pub(crate) computes: Vec<Compute>,
    pub(crate) conns: Vec<Conn>,
    pub(crate) oracle: Oracle,
    /// Where the timeline's WAL begins.
    pub(crate) initial_lsn: Lsn,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    events: u64,
    blocked: HashMap<(usize, usize, usize), Micros>,
    /// When the faults end, and the compute that must then get through.
    calm: Option<Calm>,
    trace: Trace,
}

struct Calm {
    since: Micros,
    compute: usize,
    /// Whether an older compute was there when this one started: the two may have stopped each other.
    has_rivals: bool,
}

/// A timeline may begin anywhere; boundaries of pages and segments are the interesting places.
fn draw_start(rng: &mut Rng) -> Lsn {
    let segment = SEGMENT_SIZE as u64;
    let lsn = match rng.below(4) {
        0 => 2 * segment - 8 * rng.between(1, 20),
        1 => 2 * segment + BLCKSZ as u64 * rng.between(1, 5),
        2 => 2 * segment,
        _ => 2 * segment + 8 * rng.below(10_000),
    };
    skip_page_header(Lsn(lsn), SEGMENT_SIZE).align_up()
}

impl World {
    pub(crate) fn new(seed: u64, mode: TraceMode) -> World {
        let mut rng = Rng::new(seed);
        let profile = Profile::draw(&mut rng);
        let count = if rng.one_in(2) { 5 } else { 3 };
        let mut start = draw_start(&mut rng);
        // Not within a page header: no record starts there.
        if start.page_offset(BLCKSZ) < 40 {
            start = skip_page_header(Lsn(start.0 / BLCKSZ as u64 * BLCKSZ as u64), SEGMENT_SIZE);
        }
        let control = ControlState {
            server: ServerInfo {
                pg_version: PG_VERSION,
                system_id: SYSTEM_ID,
                wal_seg_size: SEGMENT_SIZE as u32,
            },
            ..ControlState::empty(TenantTimelineId::default())
        };
        let origin = start.segment_start(SEGMENT_SIZE);
        let mut world = World {
            now: 1,
            rng,
            profile,
            safekeepers: (0..count)
                .map(|index| Safekeeper::new(index, origin, control.clone()))
                .collect(),
            computes: Vec::new(),
            conns: Vec::new(),
            oracle: Oracle::new(count as usize, start),
            initial_lsn: start,
            queue: BinaryHeap::new(),
            scheduled: 0,
            events: 0,
            blocked: HashMap::new(),
            calm: None,
            trace: Trace::new(mode),
        };
        world.trace(format_args!(
            "{count} safekeepers, {start}, {:?}",
            world.profile.clone()
        ));
        world.start_compute();
        world.schedule(world.profile.duration, Event::FaultsEnd);
        world.schedule(1_000, Event::Fault);
        let first_rotation = world.rng.delay(200_000);
        world.schedule(first_rotation, Event::Rotation);
        world
    }

    pub(crate) fn trace(&mut self, line: fmt::Arguments<'_>) {
        self.trace.line(self.now, line);
    }

    pub(crate) fn schedule(&mut self, at: Micros, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled {
            at: at.max(self.now),
            order: self.scheduled,
            event,
        }));
    }

    /// Whether faults still happen.
    pub(crate) fn is_faulty(&self) -> bool {
        self.calm.is_none()
    }

    /// Whether servers write WAL.
    pub(crate) fn writes(&self) -> bool {
        self.calm
            .as_ref()
            .is_none_or(|calm| self.now < calm.since + CALM_WRITES)
    }

    pub(crate) fn blocked_until(&self, compute: usize, sk: usize, direction: Direction) -> Micros {
        let until = self.blocked.get(&(compute, sk, direction as usize));
        until.copied().unwrap_or_default()
    }

    pub(crate) fn set_blocked(&mut self, compute: usize, sk: usize, direction: Direction, until: Micros) {
        self.blocked.insert((compute, sk, direction as usize), until);
    }

    /// Lets everything happen, until the cluster has shown progress after the faults.
    pub(crate) fn run(&mut self) -> Result<(), Violation> {
        while let Some(Reverse(next)) = self.queue.pop() {
            self.now = next.at;
            self.events += 1;
            if self.happen(next.event)? {
                return Ok(());
            }
        }
        violation!("nothing happens any more")
    }

    /// Whether the run is over.
    fn happen(&mut self, event: Event) -> Result<bool, Violation> {
        match event {
            Event::Connected(id) => self.on_connected(id)?,
            Event::ToSafekeeper(id, message) => {
                if self.arrives(id, Direction::Up) && self.is_open_at_sk(id) {
                    self.on_message_to_sk(id, message)?;
                }
            }
            Event::ToCompute(id, message) => {
                if self.arrives(id, Direction::Down) && self.is_open_at_compute(id) {
                    self.on_message_to_compute(id, message)?;
                }
            }
            Event::ClosedAtCompute(id) => self.on_closed_at_compute(id)?,
            Event::Drained(id, bytes) => {
                if self.is_open_at_compute(id) {
                    let (compute, sk) = (self.conns[id.0].compute, SkIndex(self.conns[id.0].sk));
                    self.step(compute, ProposerEvent::Drained(sk, bytes))?;
                }
            }
            Event::DiskDone { sk, life } => self.on_disk_done(sk, life)?,
            Event::Saved { sk, save } => self.on_saved(sk, save)?,
            Event::CrashSafekeeper { sk, life } => self.on_crash_at_io(sk, life)?,
            Event::RestartSafekeeper(sk) => self.restart_sk(sk),
            Event::PeerInfo(sk, info) => self.on_peer_info(sk, info)?,
            Event::Tick { compute, run } => self.on_tick(compute, run)?,
            Event::ExtraTick { compute, run } => self.on_extra_tick(compute, run)?,
            Event::StartRun { compute, run } => {
                if self.computes[compute].run == run {
                    self.start_run(compute);
                }
            }
            Event::BaseBackupDone(compute) => self.on_base_backup(compute),
            Event::Write(compute) => self.on_write(compute)?,
            Event::FetchStep {
                compute,
                run,
                receiver,
                id,
            } => self.on_fetch_step(compute, run, receiver, id)?,
            Event::Fault => self.on_fault()?,
            Event::Rotation => self.on_rotation(),
            Event::LoseDonor(donor) => self.on_lose_donor(donor),
            Event::FaultsEnd => self.end_faults(),
            Event::CheckProgress => return self.check_progress(),
        }
        Ok(false)
    }

    /// From now on everything works, and a new compute must get through.
    fn end_faults(&mut self) {
        self.trace(format_args!("the faults end"));
        self.blocked.clear();
        for sk in 0..self.safekeepers.len() {
            self.restart_sk(sk);
            self.safekeepers[sk].disk_bad_until = 0;
        }
        // Those that have not got anywhere could keep it from being elected.
        for compute in 0..self.computes.len() {
            if self.computes[compute].life != Life::Running {
                self.kill_compute(compute);
            }
        }
        self.start_last_compute(self.now);
        self.schedule(self.now + CALM_WRITES, Event::CheckProgress);
    }

    fn start_last_compute(&mut self, since: Micros) {
        self.calm = Some(Calm {
            since,
            compute: self.computes.len(),
            has_rivals: self.computes.iter().any(|compute| compute.life != Life::Dead),
        });
        self.start_compute();
    }

    /// Whether all is committed, and everywhere. It must be so in time.
    fn check_progress(&mut self) -> Result<bool, Violation> {
        let calm = self.calm.as_ref().expect("the faults have ended");
        let compute = &self.computes[calm.compute];
        let end = compute.acked;
        let everywhere = self.safekeepers.iter().all(|safekeeper| {
            let acceptor = safekeeper.idle();
            acceptor
                .is_some_and(|acceptor| acceptor.flush_lsn() >= end && acceptor.positions().commit_lsn >= end)
        });
        if compute.is_drained() && everywhere {
            return Ok(true);
        }
        let (life, since) = (compute.life, calm.since);
        // Whoever started it starts another, which takes a higher term. In the end that must do.
        let may_be_stopped = calm.has_rivals || compute.fenced_in_campaign;
        if self.now > since + PROGRESS_BOUND {
            return violation!("no progress: compute {life:?}, committed {end}, everywhere: {everywhere}");
        }
        if life == Life::Dead && !may_be_stopped {
            return violation!("the last compute has stopped, and no other was there");
        }
        if life == Life::Dead {
            self.start_last_compute(since);
        }
        self.schedule(self.now + PROGRESS_CHECK, Event::CheckProgress);
        Ok(false)
    }

    pub(crate) fn report(&self, violation: Option<Violation>) -> Report {
        Report {
            violation,
            trace_digest: self.trace.digest(),
            events: self.events,
            elections: self.oracle.elections(),
            committed_bytes: self.oracle.committed_end() - self.initial_lsn,
        }
    }
}
