//! Runs the proposer's state machine over real connections, all in one task.
//!
//! Everything that has arrived is given to the state machine first, then what it wants sent is written:
//! under load one write carries many messages, and without load nothing waits.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use pq_proto::replication::ReplicationMessage;
use safekeeper_api::protocol::{AcceptorMessage, ProposerMessage};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval, sleep};
use tracing::{debug, info, warn};
use utils::lsn::Lsn;
use walproposer::{Action, Config, Event, Fetch, Proposer, SkIndex, Stop, Time};

use crate::link::{Link, LinkEvent};
use crate::local::{Local, LocalEvent};
use crate::output::Output;
use crate::past_terms::PastTermsFile;
use crate::polling::Polling;
use crate::settings::Settings;
use crate::slot_wal::HeldWal;

/// Name that makes a safekeeper stream beyond the commit LSN, for recovery.
const RECOVERY_APPLICATION_NAME: &str = "wal_proposer_recovery";

/// Messages taken from one connection before the others get their turn.
const MESSAGES_PER_TURN_MAX: usize = 64;

/// After the request to stop: how long to wait for WAL on its way to become durable.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// How a run has ended.
#[derive(Debug, Eq, PartialEq)]
pub enum Exit {
    /// The state machine has stopped.
    Proposer(Stop),
    /// The local server has shut down in good order.
    ServerEnded,
    /// We were asked to stop.
    Asked,
}

/// The local side of a run that streams.
pub struct Streaming {
    /// The local server.
    pub local: Local,
    /// Where terms are kept.
    pub past: PastTermsFile,
    /// Where the extension is told.
    pub output: Output,
    /// What safekeepers must not remove yet.
    pub held: HeldWal,
}

/// WAL on its way from a donor.
struct FetchLink {
    link: Link,
    fetch: Fetch,
    next: Lsn,
}

/// The connections around one [`Proposer`].
pub struct Driver {
    settings: Settings,
    proposer: Proposer,
    actions: Vec<Action>,
    safekeepers: Vec<Link>,
    /// Whether it has been said that a safekeeper cannot be reached.
    complained: Vec<bool>,
    /// By receiver.
    fetches: Vec<Option<FetchLink>>,
    streaming: Option<Streaming>,
    started: Instant,
    ticks: Interval,
    /// Wakes this task at `wake_at`, between ticks.
    wake: Pin<Box<Sleep>>,
    wake_at: Option<Instant>,
    /// Set once asked to stop: when to stop waiting.
    stop_at: Option<Instant>,
    /// When asked to stop: what the server had sent when it was last asked, if that is not committed yet.
    drain_to: Option<Lsn>,
    polling: Polling,
    exit: Option<Exit>,
}

impl Driver {
    /// A run with the given configuration. `streaming` is absent when only synchronising.
    ///
    /// # Errors
    /// The first term cannot be kept.
    pub fn new(settings: Settings, config: Config, streaming: Option<Streaming>) -> Result<Driver> {
        let count = settings.safekeepers.len();
        let shortest = settings.reconnect_timeout.min(settings.connect_timeout);
        let mut ticks = interval((shortest / 4).max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut actions = Vec::new();
        let proposer = Proposer::new(config, Time(0), &mut actions);
        let mut driver = Driver {
            polling: Polling::new(settings.poll_time),
            settings,
            proposer,
            actions,
            safekeepers: (0..count).map(|_| Link::Closed).collect(),
            complained: vec![false; count],
            fetches: (0..count).map(|_| None).collect(),
            streaming,
            started: Instant::now(),
            ticks,
            wake: Box::pin(sleep(Duration::ZERO)),
            wake_at: None,
            stop_at: None,
            drain_to: None,
            exit: None,
        };
        driver.act()?;
        Ok(driver)
    }

    /// Runs until the end; `asked_to_stop` becomes ready when it should come soon.
    ///
    /// # Errors
    /// A failure after which the program should be started again.
    pub async fn run(mut self, asked_to_stop: impl Future<Output = ()>) -> Result<Exit> {
        let mut asked_to_stop = std::pin::pin!(asked_to_stop);
        let mut asked = false;
        poll_fn(|context| {
            if !asked && asked_to_stop.as_mut().poll(context).is_ready() {
                asked = true;
                self.start_to_stop();
            }
            self.poll(context)
        })
        .await
    }

    fn start_to_stop(&mut self) {
        self.stop_at = Some(Instant::now() + DRAIN_TIMEOUT);
        match &mut self.streaming {
            Some(streaming) if streaming.local.is_streaming() => streaming.local.ask_for_keepalive(),
            _ => self.exit = Some(Exit::Asked),
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Exit>> {
        loop {
            match self.turn(context) {
                Err(error) => return Poll::Ready(Err(error)),
                Ok(progress) => {
                    if let Some(exit) = self.exit.take() {
                        return Poll::Ready(Ok(exit));
                    }
                    if !progress {
                        if self.polling.look_again() {
                            // Sockets are looked at, without waiting, before it is this task's turn again.
                            context.waker().wake_by_ref();
                        }
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// One look at everything. Whether anything was there.
    fn turn(&mut self, context: &mut Context<'_>) -> Result<bool> {
        let mut progress = false;
        while self.ticks.poll_tick(context).is_ready() {
            progress = true;
            self.step(Event::Tick)?;
            if let Some(streaming) = &mut self.streaming {
                streaming.held.refresh()?;
                streaming.local.answer();
            }
            if self.stop_at.is_some_and(|at| at <= Instant::now()) {
                info!("stopping although the last WAL is not on a quorum");
                self.exit = Some(Exit::Asked);
            }
        }
        progress |= self.poll_local(context)?;
        for index in 0..self.safekeepers.len() {
            progress |= self.poll_safekeeper(index, context)?;
            progress |= self.poll_fetch(index, context)?;
        }
        // The local server first: a client waits for it.
        if let Some(streaming) = &mut self.streaming {
            while let Poll::Ready(flushed) = streaming.local.poll_flush(context) {
                flushed?;
            }
        }
        for index in 0..self.safekeepers.len() {
            progress |= self.flush(index, context)?;
        }
        Ok(progress | self.poll_due(context)?)
    }

    /// Whether there is no WAL but what is on a quorum.
    fn is_all_committed(&self) -> bool {
        self.proposer.wal_end() == Some(self.proposer.commit_lsn())
    }

    /// When the proposer wants the next tick at the latest, if it waits for one: to tell a commit.
    fn tick_due(&self) -> Option<Instant> {
        let due = self.proposer.tick_due()?;
        Some(self.started + Duration::from_micros(due.0))
    }

    /// Does what is to be done between two ticks once its time has come.
    fn poll_due(&mut self, context: &mut Context<'_>) -> Result<bool> {
        let tick = self.tick_due();
        let output = self
            .streaming
            .as_ref()
            .and_then(|streaming| streaming.output.due());
        let Some(due) = tick.into_iter().chain(output).min() else {
            return Ok(false);
        };
        // To set a timer costs more than to be woken too early now and then: one that is set already stays.
        if self.wake_at.is_none_or(|at| due < at) {
            self.wake_at = Some(due);
            self.wake.as_mut().reset(due);
        }
        // While awake anyway, this goes by the clock: timers may be a millisecond late.
        let early = Instant::now() < due;
        if early && self.wake.as_mut().poll(context).is_pending() {
            return Ok(false);
        }
        self.wake_at = None;
        if early {
            return Ok(true);
        }
        if let Some(streaming) = &mut self.streaming {
            streaming.output.pass_on();
        }
        self.step(Event::Tick)?;
        Ok(true)
    }

    fn poll_local(&mut self, context: &mut Context<'_>) -> Result<bool> {
        let mut progress = false;
        for _ in 0..MESSAGES_PER_TURN_MAX {
            let Some(streaming) = &mut self.streaming else {
                break;
            };
            // Without room for WAL nothing is read: the server keeps it.
            if streaming.local.is_streaming() && !self.proposer.wants_wal() {
                break;
            }
            let Poll::Ready(event) = streaming.local.poll_event(context) else {
                break;
            };
            progress = true;
            match event? {
                LocalEvent::Streaming(lsn) => {
                    info!("the local server streams from {lsn}");
                    streaming.output.streaming(lsn);
                }
                LocalEvent::Wal(wal) => {
                    self.polling.on_wal(self.is_all_committed(), Instant::now());
                    self.step(Event::Wal(wal))?;
                }
                LocalEvent::Keepalive(sent) => self.check_drained(sent)?,
                LocalEvent::Ended => {
                    self.tell_last_commit()?;
                    self.exit = Some(Exit::ServerEnded);
                    break;
                }
            }
        }
        Ok(progress)
    }

    /// When asked to stop: whether all WAL the server had is on a quorum.
    fn check_drained(&mut self, sent: Lsn) -> Result<()> {
        if self.stop_at.is_none() {
            return Ok(());
        }
        if self.proposer.commit_lsn() >= sent {
            self.tell_last_commit()?;
            self.exit = Some(Exit::Asked);
        } else {
            self.drain_to = Some(sent);
        }
        Ok(())
    }

    /// Has the safekeepers told of the last commit, which may be waiting for WAL to travel with: there will be none, and
    /// until another compute starts nobody else would tell them. It goes out before this turn ends.
    fn tell_last_commit(&mut self) -> Result<()> {
        // One tick may send what is held back, another tell the commit.
        while let Some(due) = self.tick_due() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            self.step(Event::Tick)?;
        }
        Ok(())
    }

    /// When asked to stop, and what the server had is committed: it may have more by now.
    fn drain_further(&mut self, committed: Lsn) {
        if self.drain_to.is_some_and(|sent| sent <= committed)
            && let Some(streaming) = &mut self.streaming
        {
            self.drain_to = None;
            streaming.local.ask_for_keepalive();
        }
    }

    fn poll_safekeeper(&mut self, index: usize, context: &mut Context<'_>) -> Result<bool> {
        let sk = SkIndex(index);
        let mut progress = false;
        for _ in 0..MESSAGES_PER_TURN_MAX {
            let Poll::Ready(event) = self.safekeepers[index].poll_event(context) else {
                break;
            };
            progress = true;
            match event {
                LinkEvent::Connected => {
                    info!("connected to {}", self.name(sk));
                    self.complained[index] = false;
                    self.step(Event::Connected(sk))?;
                }
                LinkEvent::Data(data) => match AcceptorMessage::decode(data) {
                    Ok(message) => self.step(Event::Message(sk, message))?,
                    Err(error) => self.lost(sk, &error)?,
                },
                LinkEvent::Ended => self.lost(sk, &"it has ended the stream")?,
                LinkEvent::Failed(error) => self.lost(sk, &error)?,
            }
        }
        Ok(progress)
    }

    fn poll_fetch(&mut self, index: usize, context: &mut Context<'_>) -> Result<bool> {
        let receiver = SkIndex(index);
        let mut progress = false;
        while self.proposer.wants_fetched(receiver) {
            let fetch = self.fetches[index].as_mut().expect("a fetch that is wanted runs");
            let Poll::Ready(event) = fetch.link.poll_event(context) else {
                break;
            };
            progress = true;
            match event {
                LinkEvent::Connected => {}
                LinkEvent::Data(data) => match fetch.on_data(data) {
                    Ok(Some(wal)) => self.step(Event::Fetched(receiver, wal))?,
                    Ok(None) => {}
                    Err(error) => self.fetch_failed(receiver, &error)?,
                },
                LinkEvent::Ended => self.fetch_failed(receiver, &"it has no more")?,
                LinkEvent::Failed(error) => self.fetch_failed(receiver, &error)?,
            }
        }
        Ok(progress)
    }

    fn fetch_failed(&mut self, receiver: SkIndex, why: &dyn std::fmt::Display) -> Result<()> {
        if let Some(failed) = self.fetches[receiver.0].take() {
            info!(
                "reading WAL from {} for {} ended at {}: {why}",
                self.name(failed.fetch.donor),
                self.name(receiver),
                failed.next
            );
        }
        self.step(Event::FetchEnded(receiver))
    }

    fn flush(&mut self, index: usize, context: &mut Context<'_>) -> Result<bool> {
        let sk = SkIndex(index);
        match self.safekeepers[index].poll_flush(context) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(0)) => {}
            Poll::Ready(Ok(weight)) => self.step(Event::Drained(sk, weight))?,
            Poll::Ready(Err(error)) => self.lost(sk, &error)?,
        }
        Ok(true)
    }

    /// A connection is gone, or of no more use.
    fn lost(&mut self, sk: SkIndex, why: &dyn std::fmt::Display) -> Result<()> {
        self.safekeepers[sk.0] = Link::Closed;
        self.complain(sk, why);
        self.step(Event::Disconnected(sk))
    }

    /// Says once, until it is back, that a safekeeper is away.
    fn complain(&mut self, sk: SkIndex, why: &dyn std::fmt::Display) {
        if std::mem::replace(&mut self.complained[sk.0], true) {
            debug!("{}: {why}", self.name(sk));
        } else {
            warn!("no connection to {}: {why}", self.name(sk));
        }
    }

    fn name(&self, sk: SkIndex) -> String {
        let (host, port) = &self.settings.safekeepers[sk.0];
        format!("safekeeper {host}:{port}")
    }

    fn step(&mut self, event: Event) -> Result<()> {
        let micros = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.proposer.step(Time(micros), event, &mut self.actions);
        self.act()
    }

    /// Carries out what the state machine wants, in its order.
    fn act(&mut self) -> Result<()> {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            self.carry_out(action)?;
        }
        assert!(self.actions.is_empty(), "carrying out actions makes no events");
        self.actions = actions;
        Ok(())
    }

    fn carry_out(&mut self, action: Action) -> Result<()> {
        match action {
            Action::Connect(sk) => {
                let config = self.settings.safekeeper(sk.0);
                let connecting = async move { config.connect().await?.copy_both("START_WAL_PUSH").await };
                self.safekeepers[sk.0] = Link::Connecting(Box::pin(connecting));
            }
            Action::Disconnect(sk, reason) => {
                self.safekeepers[sk.0] = Link::Closed;
                self.complain(sk, &reason);
            }
            Action::Send(sk, mut message) => {
                if let ProposerMessage::Append(append) = &mut message {
                    // Who only synchronises does not know the slots, and lets nothing be removed.
                    append.truncate_lsn = match &self.streaming {
                        Some(streaming) => streaming.held.limit(append.truncate_lsn),
                        None => Lsn::INVALID,
                    };
                }
                let weight = Proposer::message_len(&message);
                self.safekeepers[sk.0].put(weight, |out| message.encode(out));
            }
            Action::StartFetch(fetch) => self.start_fetch(fetch),
            Action::StopFetch(receiver) => self.fetches[receiver.0] = None,
            Action::Stop(stop) => self.exit = Some(Exit::Proposer(stop)),
            local => {
                if let Action::Commit(lsn) = local {
                    if self.is_all_committed() {
                        self.polling.on_all_committed(Instant::now());
                    }
                    self.drain_further(lsn);
                }
                if let Some(streaming) = &mut self.streaming {
                    streaming.carry_out(local)?;
                }
            }
        }
        Ok(())
    }

    fn start_fetch(&mut self, fetch: Fetch) {
        info!(
            "{} needs WAL from {} to {}: reading it from {}",
            self.name(fetch.receiver),
            fetch.begin,
            fetch.end,
            self.name(fetch.donor)
        );
        let mut config = self.settings.safekeeper(fetch.donor.0);
        config.application_name = Some(RECOVERY_APPLICATION_NAME.to_owned());
        config.connect_timeout = Some(self.settings.connect_timeout);
        let command = format!("START_REPLICATION PHYSICAL {} TIMELINE 1", fetch.begin);
        let connecting = async move { config.connect().await?.copy_both(&command).await };
        self.fetches[fetch.receiver.0] = Some(FetchLink {
            link: Link::Connecting(Box::pin(connecting)),
            fetch,
            next: fetch.begin,
        });
    }
}

impl FetchLink {
    /// WAL in a message of the donor, `None` in a message without.
    fn on_data(&mut self, data: Bytes) -> Result<Option<Bytes>> {
        match ReplicationMessage::parse(data).context("message of a donor")? {
            ReplicationMessage::Keepalive { .. } => Ok(None),
            ReplicationMessage::XLogData { start, wal, .. } => {
                anyhow::ensure!(start == self.next, "WAL from {start} instead of {}", self.next);
                self.next += wal.len() as u64;
                Ok((!wal.is_empty()).then_some(wal))
            }
        }
    }
}

impl Streaming {
    /// Carries out what concerns the local server.
    fn carry_out(&mut self, action: Action) -> Result<()> {
        match action {
            Action::Remember(past) => self.past.store(&past)?,
            Action::StreamFrom(lsn) => {
                info!("elected; WAL goes on from {lsn}");
                self.local.stream_from(lsn);
            }
            Action::Commit(lsn) => self.local.committed(lsn),
            Action::PageserverFeedback(feedback) => self.output.feedback(feedback),
            Action::HotStandbyFeedback(feedback) => self.local.hot_standby_feedback(feedback),
            other => unreachable!("{other:?} does not concern the local server"),
        }
        Ok(())
    }
}
