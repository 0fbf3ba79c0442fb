use super::*;

const LIMITS: Limits = Limits {
    lagging_wal_timeout: Duration::from_secs(3),
    max_lsn_wal_lag: 1000,
};

/// A selection and its clock, in milliseconds.
struct Model {
    selection: Selection,
    start: Instant,
    now: u64,
    progress: Option<Progress>,
}

impl Model {
    fn new() -> Self {
        Model {
            selection: Selection::default(),
            start: Instant::now(),
            now: 0,
            progress: None,
        }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn heard(&mut self, node: u64, commit_lsn: u64) {
        let info = SkTimelineInfo {
            commit_lsn: Lsn(commit_lsn),
            safekeeper_connstr: Some(format!("sk{node}:1")),
            ..Default::default()
        };
        self.selection.heard(NodeId(node), &info, self.at(self.now));
    }

    /// Connects, with WAL received up to `received` just now and silence since then.
    fn connected(&mut self, node: u64, received: u64) {
        self.selection.connecting(NodeId(node));
        self.received(received);
    }

    fn received(&mut self, lsn: u64) {
        self.progress = Some(Progress {
            received: Lsn(lsn),
            wal_at: self.at(self.now),
            silent_since: Some(self.at(self.now)),
        });
    }

    fn keepalive(&mut self) {
        let now = self.at(self.now);
        self.progress.as_mut().unwrap().silent_since = Some(now);
    }

    fn ended(&mut self, worked: Worked) {
        self.selection.ended(self.at(self.now), worked);
        self.progress = None;
    }

    /// The decision as text: `wait`, `wait 100` (milliseconds on the clock), `connect 2`, `disconnect`.
    fn check(&mut self, expected: &str) {
        let decision = self.selection.decide(self.at(self.now), LIMITS, self.progress);
        let text = match decision {
            Decision::Wait(None) => "wait".to_owned(),
            Decision::Wait(Some(at)) => format!("wait {}", (at - self.start).as_millis()),
            Decision::Connect { node, .. } => format!("connect {node}"),
            Decision::Disconnect { .. } => "disconnect".to_owned(),
        };
        assert_eq!(text, expected, "at {}", self.now);
    }
}

#[test]
fn the_most_advanced_one_is_chosen() {
    let mut model = Model::new();
    model.check("wait");
    model.heard(1, 100);
    model.heard(2, 300);
    model.heard(3, 200);
    model.check("connect 2");
}

#[test]
fn failures_make_a_pause_that_grows() {
    let mut model = Model::new();
    let mut pauses = Vec::new();
    for _ in 0..15 {
        model.heard(1, 100);
        model.check("connect 1");
        model.connected(1, 0);
        model.ended(Worked::No);
        let Decision::Wait(Some(at)) = model.selection.decide(model.at(model.now), LIMITS, None) else {
            panic!("no pause");
        };
        let pause = (at - model.at(model.now)).as_millis() as u64;
        pauses.push(pause);
        model.now += pause + 1;
    }
    assert_eq!(pauses[..4], [100, 150, 225, 337]);
    assert_eq!(pauses[14], 15_000);
    model.heard(1, 100);
    model.connected(1, 0);
    model.ended(Worked::Yes);
    model.check(&format!("wait {}", model.now + 100));
}

#[test]
fn after_a_failure_the_next_best_has_its_turn() {
    let mut model = Model::new();
    model.heard(1, 100);
    model.heard(2, 300);
    model.connected(2, 0);
    model.ended(Worked::No);
    model.check("connect 1");
}

#[test]
fn silence_and_stuck_streams_make_it_switch() {
    let mut model = Model::new();
    model.heard(1, 100);
    model.heard(2, 100);
    model.connected(2, 100);
    model.check("wait 3000");
    model.now = 2000;
    model.keepalive();
    model.heard(1, 150);
    model.check("wait 3000");
    model.now = 3000;
    model.check("connect 1");
    model.now = 3500;
    model.received(150);
    model.check("wait 6500");
    model.now = 6500;
    model.heard(2, 150);
    model.heard(1, 150);
    model.check("connect 1");
}

#[test]
fn a_lone_silent_safekeeper_is_left_and_tried_again() {
    let mut model = Model::new();
    model.heard(1, 100);
    model.connected(1, 100);
    model.now = 3000;
    model.check("disconnect");
    model.ended(Worked::Yes);
    model.heard(1, 100);
    model.check("wait 3100");
    model.now = 3100;
    model.check("connect 1");
}

#[test]
fn one_far_ahead_is_preferred_at_once() {
    let mut model = Model::new();
    model.heard(1, 100);
    model.connected(1, 100);
    model.heard(2, 1099);
    model.check("wait 3000");
    model.heard(2, 1100);
    model.check("connect 2");
}

#[test]
fn while_it_sends_what_we_lack_nobody_else_is_better() {
    let mut model = Model::new();
    model.heard(1, 50_000);
    model.heard(2, 50_900);
    model.connected(1, 100);
    model.check("wait 3000");
    model.now = 2900;
    model.received(20_000);
    model.check("wait 5900");
    model.heard(2, 51_000);
    model.check("connect 2");
}

#[test]
fn safekeepers_not_heard_of_are_forgotten() {
    let mut model = Model::new();
    model.heard(1, 100);
    model.now = 10_000;
    model.check("wait");
}
