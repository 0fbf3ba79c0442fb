//! Which faults happen in a run, and how often. Each run has a mix of its own: a fault that is masked
//! by others in one run meets them alone in another.

use crate::Violation;
use crate::compute::Life;
use crate::network::{ConnId, Direction};
use crate::rng::Rng;
use crate::safekeeper::Crash;
use crate::world::{Event, Micros, World};

/// Most computes before the faults end.
const COMPUTES_MAX: usize = 12;

/// The faults of a run. A rate of `n` means once in `n`; 0 means never.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    /// Typical time between two faults.
    period: Micros,
    /// How long faults go on.
    pub(crate) duration: Micros,
    /// Crash of a safekeeper while WAL is made durable; five times as often with the control file.
    pub(crate) crash_at_io: u64,
    /// A safekeeper hears no more of a proposer it has just voted for.
    block_after_vote: u64,
    /// Crash of a proposer between two of its actions.
    pub(crate) crash_at_action: u64,
    /// Whether a crash may take the machine along.
    machine_crashes: bool,
    kinds: Vec<Fault>,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    CrashSafekeeper,
    CrashAll,
    ResetConnection,
    BlockOneWay,
    BlockBothWays,
    IsolateSafekeeper,
    IsolateCompute,
    CrashProposer,
    KillCompute,
    NewCompute,
    ClockJump,
    BadDisk,
    PeerInfo,
    Trim,
}

impl Profile {
    /// The mix of this run.
    pub(crate) fn draw(rng: &mut Rng) -> Profile {
        let all = [
            Fault::CrashSafekeeper,
            Fault::CrashAll,
            Fault::ResetConnection,
            Fault::BlockOneWay,
            Fault::BlockBothWays,
            Fault::IsolateSafekeeper,
            Fault::IsolateCompute,
            Fault::CrashProposer,
            Fault::KillCompute,
            Fault::ClockJump,
            Fault::BadDisk,
        ];
        let mut kinds: Vec<Fault> = all.into_iter().filter(|_| rng.one_in(2)).collect();
        // Without these nothing would be contended.
        kinds.extend([Fault::NewCompute, Fault::PeerInfo, Fault::PeerInfo, Fault::Trim]);
        Profile {
            period: [40_000, 120_000, 400_000][rng.index(3)],
            duration: rng.between(3_000_000, 10_000_000),
            crash_at_io: [0, 12, 60, 300][rng.index(4)],
            block_after_vote: [0, 3, 10][rng.index(3)],
            crash_at_action: [0, 0, 1000][rng.index(3)],
            machine_crashes: !rng.one_in(3),
            kinds,
        }
    }
}

impl World {
    pub(crate) fn draw_crash(&mut self) -> Crash {
        if self.profile.machine_crashes && self.rng.one_in(2) {
            Crash::Machine
        } else {
            Crash::Process
        }
    }

    /// Something goes wrong, and will again.
    pub(crate) fn on_fault(&mut self) -> Result<(), Violation> {
        if !self.is_faulty() {
            return Ok(());
        }
        let at = self.now + self.rng.delay(self.profile.period);
        self.schedule(at, Event::Fault);
        let fault = self.profile.kinds[self.rng.index(self.profile.kinds.len())];
        let sk = self.rng.index(self.safekeepers.len());
        let compute = self.rng.index(self.computes.len());
        match fault {
            Fault::CrashSafekeeper => {
                let crash = self.draw_crash();
                self.crash_sk(sk, crash)?;
            }
            Fault::CrashAll => {
                for sk in 0..self.safekeepers.len() {
                    let crash = self.draw_crash();
                    self.crash_sk(sk, crash)?;
                }
            }
            Fault::ResetConnection if !self.conns.is_empty() => {
                let recent = self.conns.len().min(20);
                let id = ConnId(self.conns.len() - 1 - self.rng.index(recent));
                self.reset(id);
            }
            Fault::ResetConnection => {}
            Fault::BlockOneWay => {
                let direction = [Direction::Up, Direction::Down][self.rng.index(2)];
                self.block(compute, sk, direction);
            }
            Fault::BlockBothWays => {
                self.block(compute, sk, Direction::Up);
                self.block(compute, sk, Direction::Down);
            }
            Fault::IsolateSafekeeper => {
                for compute in 0..self.computes.len() {
                    self.block(compute, sk, Direction::Up);
                    self.block(compute, sk, Direction::Down);
                }
            }
            Fault::IsolateCompute => self.isolate_compute(compute, sk),
            Fault::CrashProposer if matches!(self.computes[compute].life, Life::Running | Life::Syncing) => {
                self.crash_proposer(compute);
            }
            Fault::KillCompute => self.kill_compute(compute),
            Fault::ClockJump => self.computes[compute].skew += self.rng.delay(500_000),
            Fault::BadDisk => {
                let until = self.now + self.rng.delay(200_000);
                self.trace(format_args!("the disk of safekeeper {sk} is bad until {until}"));
                self.safekeepers[sk].disk_bad_until = until;
            }
            Fault::NewCompute | Fault::CrashProposer => {}
            Fault::PeerInfo => self.gossip(sk),
            Fault::Trim => self.safekeepers[sk].trim(),
        }
        self.start_missing_compute(matches!(fault, Fault::NewCompute));
        Ok(())
    }

    /// A compute reaches one safekeeper only, which gathers WAL that is never committed, while another
    /// compute has the majority.
    fn isolate_compute(&mut self, compute: usize, only: usize) {
        for sk in 0..self.safekeepers.len() {
            if sk != only {
                self.block(compute, sk, Direction::Up);
                self.block(compute, sk, Direction::Down);
            }
        }
        if self.computes.len() < COMPUTES_MAX && self.rng.one_in(2) {
            self.start_compute();
        }
    }

    /// Another compute where there is none, or one more.
    fn start_missing_compute(&mut self, one_more: bool) {
        let alive = self
            .computes
            .iter()
            .filter(|compute| compute.life != Life::Dead)
            .count();
        if self.computes.len() < COMPUTES_MAX && (alive == 0 || (one_more && self.rng.one_in(6))) {
            self.start_compute();
        }
    }

    /// A safekeeper's positions reach another one, late.
    pub(crate) fn gossip(&mut self, sk: usize) {
        let to = self.rng.index(self.safekeepers.len());
        if let Some(info) = self.safekeepers[sk].peer_info()
            && to != sk
        {
            let at = self.now + self.rng.delay(5_000);
            self.schedule(at, Event::PeerInfo(to, info));
        }
    }

    /// The worst moment for the link to fail: the vote counts, its consequences do not arrive.
    pub(crate) fn after_vote(&mut self, compute: usize, sk: usize) {
        if self.is_faulty() && self.rng.one_in(self.profile.block_after_vote) {
            self.block(compute, sk, Direction::Up);
        }
    }

    fn block(&mut self, compute: usize, sk: usize, direction: Direction) {
        let until = self.now + self.rng.delay(700_000);
        self.trace(format_args!(
            "blocked: compute {compute}, safekeeper {sk}, {direction:?} until {until}"
        ));
        self.set_blocked(compute, sk, direction, until);
    }
}
