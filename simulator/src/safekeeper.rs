//! A safekeeper: the acceptor, its disk, and the daemon's way of working around them.
//!
//! As in the daemon, one batch of messages is worked on at a time, what was decided is carried out in
//! order, and after a failure of the disk the acceptor is opened anew from what is certainly durable.
//! Unlike there, time passes and crashes happen between any two actions.

use std::collections::VecDeque;

use safekeeper::acceptor::{Acceptor, Action, ControlState, PeerInfo, Positions, ReaderFeedback, Refusal};
use safekeeper_api::protocol::{AcceptorMessage, ProposerMessage, Term};
use utils::id::NodeId;
use utils::lsn::Lsn;

use crate::disk::Disk;
use crate::network::ConnId;
use crate::world::{Event, Micros, World};
use crate::{Violation, violation};

/// Typical time until something is durable.
const DISK_LATENCY: Micros = 800;
/// Typical time until positions are saved, beside everything else.
const SAVE_LATENCY: Micros = 20_000;
/// Pause until a finished save is told to an acceptor that is busy.
const SAVE_TOLD_PAUSE: Micros = 100;
/// How far positions get ahead of the control file before they are saved, in bytes.
const SAVE_LAG: u64 = 4_000;
/// Append requests taken together.
const BATCH_MAX: usize = 5;

/// How a safekeeper goes down.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Crash {
    /// The process ends: what was written is still there.
    Process,
    /// The machine ends: what was not flushed is lost in part.
    Machine,
}

/// Actions being carried out.
#[derive(Debug)]
struct Job {
    /// Whose messages led to it.
    conn: Option<ConnId>,
    actions: VecDeque<Action>,
    /// The acceptor refused a message: the connection is closed at the end.
    refused: Option<Refusal>,
}

/// See the module's head.
pub(crate) struct Safekeeper {
    node_id: NodeId,
    pub(crate) disk: Disk,
    acceptor: Option<Acceptor>,
    up: bool,
    /// Counts crashes: what was going on before one does not go on after it.
    life: u64,
    /// End of the WAL that is certainly durable; `None` after a start.
    durable_lsn: Option<Lsn>,
    inbox: VecDeque<(ConnId, ProposerMessage)>,
    job: Option<Job>,
    /// Positions being saved, and the number of the attempt.
    saving: Option<(u64, Positions)>,
    saves: u64,
    /// WAL before this was removed.
    pub(crate) trimmed: Lsn,
    /// The highest term and flush LSN that were told to anyone and must hold.
    promised: (Term, Lsn),
    /// The disk fails until then.
    pub(crate) disk_bad_until: Micros,
}

impl Safekeeper {
    pub(crate) fn new(node: u64, origin: Lsn, control: ControlState) -> Safekeeper {
        Safekeeper {
            node_id: NodeId(node),
            disk: Disk::new(origin, control),
            acceptor: None,
            up: true,
            life: 0,
            durable_lsn: None,
            inbox: VecDeque::new(),
            job: None,
            saving: None,
            saves: 0,
            trimmed: Lsn::INVALID,
            promised: (Term::ZERO, Lsn::INVALID),
            disk_bad_until: 0,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up
    }

    /// The acceptor while it is open and has nothing left to do.
    pub(crate) fn idle(&self) -> Option<&Acceptor> {
        self.acceptor.as_ref().filter(|_| self.up && self.job.is_none())
    }

    /// End of the WAL a donor gives.
    pub(crate) fn flush_lsn(&self) -> Lsn {
        self.durable_lsn.unwrap_or_default()
    }

    /// Opens what the disk holds, as the daemon does when a timeline is first used.
    fn open(&mut self) -> Result<(), Violation> {
        let found = self.disk.find_end();
        let flush_lsn = match self.durable_lsn {
            _ if !found.is_valid() => found,
            // Found after a start: it may be in the page cache only, and must not be promised yet.
            None => {
                self.disk.flush();
                found
            }
            Some(durable) if found < durable => {
                return violation!("WAL was durable up to {durable}, but ends at {found}");
            }
            Some(durable) => durable.max(self.disk.control.known_end()),
        };
        let (term, promised) = self.promised;
        if self.disk.control.term < term {
            return violation!("{} has forgotten term {term}", self.node_id);
        }
        let known_end = self.disk.control.known_end();
        if self.trimmed > known_end {
            let trimmed = self.trimmed;
            return violation!("WAL is removed up to {trimmed}, its end is looked for from {known_end} on");
        }
        if flush_lsn < promised {
            return violation!("{} promised {promised}, and has {flush_lsn}", self.node_id);
        }
        self.durable_lsn = Some(flush_lsn);
        let acceptor = Acceptor::recover(self.node_id, self.disk.control.clone(), flush_lsn);
        self.acceptor = Some(acceptor.with_save_lag(SAVE_LAG));
        Ok(())
    }

    /// What it would publish to its peers.
    pub(crate) fn peer_info(&self) -> Option<PeerInfo> {
        let acceptor = self.idle()?;
        Some(PeerInfo {
            last_log_term: Some(acceptor.epoch()),
            commit_lsn: acceptor.positions().commit_lsn,
            peer_horizon_lsn: acceptor.positions().peer_horizon_lsn,
            ..PeerInfo::default()
        })
    }

    /// Removes WAL that everyone has, as far as what the acceptor takes for persisted allows it.
    pub(crate) fn trim(&mut self) {
        let Some(control) = self.idle().map(Acceptor::control) else {
            return;
        };
        self.trimmed = self.trimmed.max(control.peer_horizon_lsn.min(control.commit_lsn));
    }

    /// Takes the next messages of one connection; what the acceptor decides.
    fn decide(
        &mut self,
        first: ProposerMessage,
        more: usize,
    ) -> Result<(Vec<Action>, Option<Refusal>), Violation> {
        if self.acceptor.is_none() {
            self.open()?;
        }
        let acceptor = self.acceptor.as_mut().expect("it was opened");
        let mut messages = vec![first];
        messages.extend(self.inbox.drain(..more).map(|(_, message)| message));
        let (mut actions, mut refused) = (Vec::new(), None);
        for message in messages {
            if !matches!(message, ProposerMessage::Append(_)) {
                acceptor.finish_batch(ReaderFeedback::default(), &mut actions);
            }
            refused = acceptor.step(message, &mut actions).err();
            if refused.is_some() {
                break;
            }
        }
        acceptor.finish_batch(ReaderFeedback::default(), &mut actions);
        Ok((actions, refused))
    }
}

impl World {
    pub(crate) fn on_message_to_sk(&mut self, id: ConnId, message: ProposerMessage) -> Result<(), Violation> {
        let sk = self.conns[id.0].sk;
        self.trace(format_args!("safekeeper {sk} receives {message:?} on {}", id.0));
        self.safekeepers[sk].inbox.push_back((id, message));
        self.work(sk)
    }

    /// Starts on the next batch if nothing is being done.
    fn work(&mut self, sk: usize) -> Result<(), Violation> {
        while self.safekeepers[sk].job.is_none() {
            let Some((conn, first)) = self.safekeepers[sk].inbox.pop_front() else {
                return Ok(());
            };
            if !self.is_open_at_sk(conn) {
                continue;
            }
            let same = self.safekeepers[sk]
                .inbox
                .iter()
                .take_while(|(other, _)| *other == conn)
                .count();
            let more = self.rng.index(same.min(BATCH_MAX) + 1);
            let (actions, refused) = self.safekeepers[sk].decide(first, more)?;
            self.start_job(sk, Some(conn), actions, refused)?;
        }
        Ok(())
    }

    fn start_job(
        &mut self,
        sk: usize,
        conn: Option<ConnId>,
        actions: Vec<Action>,
        refused: Option<Refusal>,
    ) -> Result<(), Violation> {
        self.safekeepers[sk].job = Some(Job {
            conn,
            actions: actions.into(),
            refused,
        });
        self.carry_on(sk)
    }

    /// Carries out actions up to the next one that takes time.
    fn carry_on(&mut self, sk: usize) -> Result<(), Violation> {
        loop {
            let safekeeper = &mut self.safekeepers[sk];
            let job = safekeeper.job.as_mut().expect("a job is under way");
            match job.actions.front() {
                None => return self.finish_job(sk),
                Some(Action::PersistControl(_) | Action::FlushWal { .. }) => return self.start_io(sk),
                Some(Action::TruncateWal { to }) => {
                    // From now on what is behind may be gone.
                    safekeeper.durable_lsn = safekeeper.durable_lsn.map(|durable| durable.min(*to));
                    safekeeper.promised.1 = safekeeper.promised.1.min(*to);
                    return self.start_io(sk);
                }
                Some(Action::WriteWal { .. } | Action::SavePositions(_) | Action::Reply(_)) => {}
            }
            let conn = job.conn;
            match job.actions.pop_front() {
                Some(Action::WriteWal { begin, bytes }) => {
                    if safekeeper.disk_bad_until > self.now {
                        return self.disk_failed(sk);
                    }
                    safekeeper.disk.write(begin, &bytes);
                }
                Some(Action::SavePositions(positions)) => self.start_save(sk, positions),
                Some(Action::Reply(message)) => {
                    let conn = conn.expect("only a proposer gets replies");
                    self.reply(sk, conn, message)?;
                }
                other => unreachable!("{other:?} takes time"),
            }
        }
    }

    fn start_io(&mut self, sk: usize) -> Result<(), Violation> {
        let latency = self.rng.delay(DISK_LATENCY);
        let safekeeper = &self.safekeepers[sk];
        let life = safekeeper.life;
        let front = safekeeper.job.as_ref().and_then(|job| job.actions.front());
        let rate = match front {
            Some(Action::FlushWal { .. }) => self.profile.crash_at_io,
            _ => self.profile.crash_at_io.div_ceil(5),
        };
        self.schedule(self.now + latency, Event::DiskDone { sk, life });
        if self.rng.one_in(rate) {
            // Before, in the middle of, or right after what is being written.
            let at = self.now + self.rng.below(latency + latency / 2 + 1);
            self.schedule(at, Event::CrashSafekeeper { sk, life });
        }
        Ok(())
    }

    fn reply(&mut self, sk: usize, id: ConnId, message: AcceptorMessage) -> Result<(), Violation> {
        let run = (self.conns[id.0].compute, self.conns[id.0].run);
        let safekeeper = &mut self.safekeepers[sk];
        let flush_lsn = safekeeper
            .acceptor
            .as_ref()
            .map_or(Lsn::INVALID, Acceptor::flush_lsn);
        let (term, flushed) = match &message {
            AcceptorMessage::Greeting(greeting) => (greeting.term, Lsn::INVALID),
            AcceptorMessage::VoteResponse(vote) => {
                if vote.vote_given {
                    self.oracle.on_vote(sk, vote.term, run)?;
                }
                // An empty timeline's start is reported as a flush LSN too.
                (vote.term, vote.flush_lsn.min(flush_lsn))
            }
            AcceptorMessage::AppendResponse(response) => {
                let persisted = safekeeper.disk.control.commit_lsn;
                if response.commit_lsn > persisted {
                    let told = response.commit_lsn;
                    return violation!("safekeeper {sk} tells commit LSN {told}, its disk has {persisted}");
                }
                (response.term, response.flush_lsn)
            }
        };
        safekeeper.promised.0 = safekeeper.promised.0.max(term);
        safekeeper.promised.1 = safekeeper.promised.1.max(flushed);
        self.trace(format_args!("safekeeper {sk} says {message:?} on {}", id.0));
        let voted = matches!(&message, AcceptorMessage::VoteResponse(vote) if vote.vote_given);
        self.send_down(id, message);
        if voted {
            self.after_vote(run.0, sk);
        }
        Ok(())
    }

    fn finish_job(&mut self, sk: usize) -> Result<(), Violation> {
        self.look_at_disk(sk)?;
        let safekeeper = &mut self.safekeepers[sk];
        let job = safekeeper.job.take().expect("a job is under way");
        if let Some(acceptor) = &safekeeper.acceptor {
            self.oracle.on_positions(sk, acceptor.positions())?;
        }
        if let (Some(conn), Some(refusal)) = (job.conn, job.refused) {
            self.trace(format_args!("safekeeper {sk} closes {}: {refusal:?}", conn.0));
            self.close_at_sk(conn);
        }
        self.work(sk)
    }

    /// The action that took time is done, or has failed.
    pub(crate) fn on_disk_done(&mut self, sk: usize, life: u64) -> Result<(), Violation> {
        let safekeeper = &mut self.safekeepers[sk];
        if safekeeper.life != life || safekeeper.job.is_none() {
            return Ok(());
        }
        if safekeeper.disk_bad_until > self.now {
            return self.disk_failed(sk);
        }
        let job = safekeeper.job.as_mut().expect("checked above");
        match job.actions.pop_front() {
            Some(Action::PersistControl(control)) => {
                self.oracle.on_control(sk, &safekeeper.disk.control, &control)?;
                safekeeper.disk.control = *control;
            }
            Some(Action::FlushWal { up_to }) => {
                safekeeper.disk.flush();
                safekeeper.durable_lsn = Some(up_to);
            }
            Some(Action::TruncateWal { to }) => {
                safekeeper.disk.truncate(to);
                safekeeper.durable_lsn = Some(to);
            }
            other => unreachable!("{other:?} takes no time"),
        }
        self.look_at_disk(sk)?;
        self.carry_on(sk)
    }

    /// Positions are on their way to the disk, and nothing waits for them.
    fn start_save(&mut self, sk: usize, positions: Positions) {
        let latency = self.rng.delay(SAVE_LATENCY);
        let safekeeper = &mut self.safekeepers[sk];
        safekeeper.saves += 1;
        let save = safekeeper.saves;
        safekeeper.saving = Some((save, positions));
        self.schedule(self.now + latency, Event::Saved { sk, save });
    }

    /// The file is written, or could not be; the acceptor hears of it as soon as it is idle.
    pub(crate) fn on_saved(&mut self, sk: usize, save: u64) -> Result<(), Violation> {
        let safekeeper = &self.safekeepers[sk];
        if safekeeper.saving.is_none_or(|(running, _)| running != save) {
            return Ok(());
        }
        let failed = safekeeper.disk_bad_until > self.now;
        if !failed {
            self.save(sk)?;
        }
        let safekeeper = &mut self.safekeepers[sk];
        if safekeeper.job.is_some() {
            self.schedule(self.now + SAVE_TOLD_PAUSE, Event::Saved { sk, save });
            return Ok(());
        }
        let (_, positions) = safekeeper.saving.take().expect("checked above");
        if failed {
            self.trace(format_args!("safekeeper {sk}: the disk fails beside"));
            self.safekeepers[sk].acceptor = None;
        } else if let Some(acceptor) = &mut safekeeper.acceptor {
            let mut actions = Vec::new();
            acceptor.positions_saved(positions, &mut actions);
            if !actions.is_empty() {
                return self.start_job(sk, None, actions, None);
            }
        }
        Ok(())
    }

    /// The positions being saved reach the control file as it is now.
    fn save(&mut self, sk: usize) -> Result<(), Violation> {
        let safekeeper = &mut self.safekeepers[sk];
        if let Some((_, positions)) = safekeeper.saving {
            let mut control = safekeeper.disk.control.clone();
            control.raise_positions(positions);
            self.oracle.on_control(sk, &safekeeper.disk.control, &control)?;
            safekeeper.disk.control = control;
        }
        Ok(())
    }

    fn look_at_disk(&mut self, sk: usize) -> Result<(), Violation> {
        let disk = &mut self.safekeepers[sk].disk;
        let changed = disk.take_changed();
        self.oracle.on_disk(sk, disk, changed)
    }

    /// An action has failed: the acceptor's state is ahead of the disk and must go.
    fn disk_failed(&mut self, sk: usize) -> Result<(), Violation> {
        self.trace(format_args!("safekeeper {sk}: the disk fails"));
        self.interrupt(sk)?;
        let safekeeper = &mut self.safekeepers[sk];
        safekeeper.acceptor = None;
        if let Some(conn) = safekeeper.job.take().and_then(|job| job.conn) {
            self.close_at_sk(conn);
        }
        self.work(sk)
    }

    /// What is being written is written in part.
    fn interrupt(&mut self, sk: usize) -> Result<(), Violation> {
        let safekeeper = &mut self.safekeepers[sk];
        let action = safekeeper.job.as_mut().and_then(|job| job.actions.pop_front());
        match action {
            Some(Action::PersistControl(control)) if self.rng.one_in(2) => {
                self.oracle.on_control(sk, &safekeeper.disk.control, &control)?;
                safekeeper.disk.control = *control;
            }
            Some(Action::FlushWal { .. }) if self.rng.one_in(2) => safekeeper.disk.flush(),
            Some(Action::TruncateWal { to }) => safekeeper.disk.truncate_in_part(to, &mut self.rng),
            _ => {}
        }
        // A save under way is finished first or not begun.
        if self.rng.one_in(2) {
            self.save(sk)?;
        }
        self.safekeepers[sk].saving = None;
        self.look_at_disk(sk)
    }

    /// The safekeeper goes down.
    pub(crate) fn crash_sk(&mut self, sk: usize, crash: Crash) -> Result<(), Violation> {
        if !self.safekeepers[sk].up {
            return Ok(());
        }
        self.trace(format_args!("safekeeper {sk} crashes: {crash:?}"));
        self.interrupt(sk)?;
        let safekeeper = &mut self.safekeepers[sk];
        if crash == Crash::Machine {
            safekeeper.disk.power_failure(&mut self.rng);
        }
        (safekeeper.up, safekeeper.acceptor, safekeeper.job) = (false, None, None);
        safekeeper.durable_lsn = None;
        safekeeper.life += 1;
        safekeeper.inbox.clear();
        self.look_at_disk(sk)?;
        self.close_all_of_sk(sk);
        let down = self.rng.delay(300_000);
        self.schedule(self.now + down, Event::RestartSafekeeper(sk));
        Ok(())
    }

    pub(crate) fn on_crash_at_io(&mut self, sk: usize, life: u64) -> Result<(), Violation> {
        if self.safekeepers[sk].life != life || !self.is_faulty() {
            return Ok(());
        }
        let crash = self.draw_crash();
        self.crash_sk(sk, crash)
    }

    pub(crate) fn restart_sk(&mut self, sk: usize) {
        if !self.safekeepers[sk].up {
            self.trace(format_args!("safekeeper {sk} is back"));
            self.safekeepers[sk].up = true;
        }
    }

    /// What a peer has published arrives, if there is time to look at it.
    pub(crate) fn on_peer_info(&mut self, sk: usize, info: PeerInfo) -> Result<(), Violation> {
        let safekeeper = &mut self.safekeepers[sk];
        if !safekeeper.up || safekeeper.job.is_some() {
            return Ok(());
        }
        if safekeeper.acceptor.is_none() {
            safekeeper.open()?;
        }
        let mut actions = Vec::new();
        let acceptor = safekeeper.acceptor.as_mut().expect("it was opened");
        acceptor.on_peer_info(info, &mut actions);
        self.start_job(sk, None, actions, None)
    }
}
