//! Which faults happen in a run, and how often. Each run has a mix of its own: a fault that is masked
//! by others in one run meets them alone in another.

use utils::lsn::Lsn;

use crate::Violation;
use crate::compute::Life;
use crate::network::{ConnId, Direction};
use crate::rng::Rng;
use crate::safekeeper::Crash;
use crate::world::{Event, Micros, World};

/// Most computes before the faults end.
const COMPUTES_MAX: usize = 16;

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
    /// A safekeeper whose WAL is to be cut off hears of it late.
    late_cut: u64,
    /// A donor is lost in the middle of what is read from it.
    lose_donor: u64,
    /// Whether a crash may take the machine along.
    machine_crashes: bool,
    /// Typical time for which one majority of the safekeepers can be reached, before it is another one's
    /// turn; `None` if all can.
    rotation: Option<Micros>,
    /// How long WAL is held back from those who are not needed for a quorum; 0: not at all.
    pub(crate) hold_delay: Micros,
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
            block_after_vote: [0, 2, 5][rng.index(3)],
            crash_at_action: [0, 0, 1000][rng.index(3)],
            late_cut: [0, 1, 2][rng.index(3)],
            lose_donor: [0, 0, 2, 6][rng.index(4)],
            machine_crashes: !rng.one_in(3),
            rotation: [None, None, Some(200_000), Some(500_000)][rng.index(4)],
            hold_delay: [0, 2_000, 50_000][rng.index(3)],
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

    /// Another majority, and a new compute that reaches nobody else. Some of those who vote for it then
    /// hear no more of it, so that the WAL of each term is on some safekeepers, and no two majorities
    /// have seen the same terms. What computes there were are cut off, or gone.
    pub(crate) fn on_rotation(&mut self) {
        if let Some(period) = self.profile.rotation {
            let next = self.now + self.rng.delay(period);
            self.schedule(next, Event::Rotation);
            // Whoever has most: what it has must not be needed, or not be forgotten.
            let longest = (0..self.safekeepers.len()).max_by_key(|sk| self.safekeepers[*sk].flush_lsn());
            let absent = longest.filter(|_| self.rng.one_in(2));
            self.rotate(next, absent);
        }
    }

    /// Another majority, without `absent` if it can do without, and a new compute for it.
    fn rotate(&mut self, until: Micros, absent: Option<usize>) {
        if self.computes.len() >= COMPUTES_MAX || !self.is_faulty() {
            return;
        }
        let count = self.safekeepers.len();
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.rng.index(last + 1));
        }
        order.sort_by_key(|sk| Some(*sk) == absent);
        let reachable = self.rng.between(count as u64 / 2 + 1, count as u64) as usize;
        for compute in 0..self.computes.len() {
            if self.rng.one_in(2) {
                self.kill_compute(compute);
            }
            for sk in order[..reachable].iter().copied() {
                self.set_blocked(compute, sk, Direction::Up, until);
            }
        }
        let compute = self.computes.len();
        self.trace(format_args!(
            "until {until} compute {compute} reaches {:?}",
            &order[..reachable]
        ));
        for sk in order.split_off(reachable) {
            self.set_blocked(compute, sk, Direction::Up, until);
            self.set_blocked(compute, sk, Direction::Down, until);
        }
        self.start_compute();
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
        // Seldom while only synchronising: a compute that never gets further shows little.
        let rate = match self.computes[compute].life {
            Life::Syncing => self.profile.block_after_vote * 4,
            _ => self.profile.block_after_vote,
        };
        if self.is_faulty() && self.rng.one_in(rate) {
            self.block(compute, sk, Direction::Up);
        }
    }

    /// Before a safekeeper is told that an election is won.
    pub(crate) fn before_elected(&mut self, compute: usize, sk: usize, start: Lsn) {
        let cuts = self.safekeepers[sk].flush_lsn() > start;
        if cuts && self.is_faulty() && self.rng.one_in(self.profile.late_cut) {
            self.block(compute, sk, Direction::Up);
        }
    }

    /// The worst moment for a donor to be lost: the receiver has some of what it lacks.
    pub(crate) fn after_fetched(&mut self, compute: usize, donor: usize) {
        if self.is_faulty() && self.rng.one_in(self.profile.lose_donor) {
            self.block(compute, donor, Direction::Up);
            self.block(compute, donor, Direction::Down);
            if self.profile.rotation.is_some() {
                let at = self.now + self.rng.delay(5_000);
                self.schedule(at, Event::LoseDonor(donor));
            }
        }
    }

    /// The next compute has to do without the donor.
    pub(crate) fn on_lose_donor(&mut self, donor: usize) {
        let until = self.now + self.rng.delay(300_000);
        self.rotate(until, Some(donor));
    }

    fn block(&mut self, compute: usize, sk: usize, direction: Direction) {
        let until = self.now + self.rng.delay(700_000);
        self.trace(format_args!(
            "blocked: compute {compute}, safekeeper {sk}, {direction:?} until {until}"
        ));
        self.set_blocked(compute, sk, direction, until);
    }
}
