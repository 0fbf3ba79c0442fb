//! Death by SIGKILL at every failpoint there is, in a process of its own, with object storage.
//!
//! The child works through a scenario that depends on nothing but its seed, and notes in a journal what was
//! acknowledged. The parent starts from what the child left behind, local and remote, supplies the WAL that
//! safekeepers would still have, and compares with the model; then it throws the local directory away and does the
//! same from object storage alone.
//!
//! The failpoints are read off the source, so that a new one is either passed by the scenario or named in
//! [`ELSEWHERE`] with the test that is about it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pageserver::tenant::BranchSpec;
use pageserver::timeline::gc::Retention;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use remote_storage::GenericRemoteStorage;
use utils::id::{TenantId, TimelineId};
use utils::lsn::{Lsn, RecordLsn};

use super::harness::{Env, PATIENCE, Past, feed, load_with, local_storage, settings};

/// Failpoints the scenario does not come to, and where they are tried.
const ELSEWHERE: &[(&str, &str)] = &[(
    "walreceiver-after-ingest",
    "needs a safekeeper: test_runner/regress/test_durability.py",
)];

/// The passes of each failpoint at which the child is killed, with the number of times that each operation of
/// its object storage fails before it succeeds.
fn deaths() -> &'static [(u32, u32)] {
    // In the middle of the work, and with trouble all the way, only where there is time for it.
    match std::env::var_os("NEON_NIGHTLY") {
        Some(_) => &[(1, 0), (3, 0), (2, 2)],
        None => &[(1, 0)],
    }
}

const TENANT: [u8; 16] = [1; 16];
const MAIN: [u8; 16] = [2; 16];
const BRANCH: [u8; 16] = [3; 16];
const DOOMED: [u8; 16] = [4; 16];
const SEED: u64 = 77;
/// Records that each timeline gets in one step.
const RECORDS_PER_STEP: usize = 60;
const STEPS_BEFORE_BRANCH: usize = 10;
const STEPS_AFTER_BRANCH: usize = 3;

/// What all timelines are given in the end.
fn pasts() -> BTreeMap<TimelineId, Past> {
    let mut rng = SmallRng::seed_from_u64(SEED);
    let mut main = Past::default();
    main.import();
    for _ in 0..STEPS_BEFORE_BRANCH * RECORDS_PER_STEP {
        main.grow(&mut rng);
    }
    let at = main.last().last;
    let mut branch = main.until(at);
    let doomed = main.until(at);
    for _ in 0..STEPS_AFTER_BRANCH * RECORDS_PER_STEP {
        main.grow(&mut rng);
        branch.grow(&mut rng);
    }
    BTreeMap::from([
        (MAIN.into(), main),
        (BRANCH.into(), branch),
        (DOOMED.into(), doomed),
    ])
}

/// The first records of a past, up to those of step `step`.
fn part(past: &Past, step: usize) -> Past {
    let count = (1 + step * RECORDS_PER_STEP).min(past.records.len());
    past.until(past.records[count - 1].0.last)
}

/// The child's side of the test.
struct Child {
    env: Env,
    journal: std::fs::File,
    pasts: BTreeMap<TimelineId, Past>,
}

impl Child {
    fn note(&mut self, what: &str) {
        // Killing a process loses nothing that it has written.
        writeln!(self.journal, "{what}").unwrap();
    }

    async fn step(&mut self, id: TimelineId, step: usize) {
        let timeline = self.env.timeline(id);
        feed(&timeline, &part(&self.pasts[&id], step)).await;
        timeline.flush().await.unwrap();
        timeline.compact().await.unwrap();
        let retention = Retention {
            horizon_bytes: 2_000,
            pitr: Duration::ZERO,
        };
        timeline.gc(retention).await.unwrap();
    }

    async fn create_main(&mut self) {
        let tenant = TenantId::from(TENANT);
        self.env.manager.create_tenant(tenant, settings()).await.unwrap();
        self.note("tenant");
        let main = TimelineId::from(MAIN);
        let unfinished = self.env.tenant().create_timeline(main, 15).await.unwrap();
        feed(unfinished.timeline(), &part(&self.pasts[&main], 0)).await;
        let timeline = unfinished.finish().await.unwrap();
        timeline.wait_uploaded(PATIENCE).await.unwrap();
        self.note("main");
    }

    async fn branch(&mut self, id: [u8; 16], name: &str, at: Lsn) {
        let spec = BranchSpec {
            timeline_id: id.into(),
            ancestor_id: MAIN.into(),
            start_lsn: Some(at),
            wait_timeout: Duration::ZERO,
        };
        let timeline = self.env.tenant().branch(spec).await.unwrap();
        timeline.wait_uploaded(PATIENCE).await.unwrap();
        self.note(name);
    }

    /// Everything that has failpoints.
    async fn work(&mut self) {
        self.create_main().await;
        let main = TimelineId::from(MAIN);
        for step in 1..=STEPS_BEFORE_BRANCH {
            self.step(main, step).await;
        }
        let at = self.pasts[&TimelineId::from(DOOMED)].last().last;
        self.branch(BRANCH, "branch", at).await;
        self.branch(DOOMED, "doomed", at).await;
        for step in 1..=STEPS_AFTER_BRANCH {
            for id in [main, BRANCH.into()] {
                self.step(id, STEPS_BEFORE_BRANCH + step).await;
            }
            if step == 2 {
                self.evict_and_read().await;
                self.note("deleting");
                self.env.tenant().delete_timeline(DOOMED.into()).await.unwrap();
                self.note("deleted");
            }
        }
        self.env.wait_idle().await;
        self.note("detaching");
        self.env.manager.detach_tenant(self.env.tenant_id).await.unwrap();
        self.env.manager.attach_tenant(self.env.tenant_id).await.unwrap();
        self.env.wait_active().await;
        self.evict_and_read().await;
        self.env.manager.shutdown().await;
        self.note("end");
    }

    async fn evict_and_read(&mut self) {
        self.env.wait_idle().await;
        for timeline in self.env.timelines() {
            timeline.evict_unused_for(Duration::ZERO).await.unwrap();
            let errors = timeline.scrub().await;
            assert!(errors.is_empty(), "{errors:?}");
        }
    }
}

/// A server without a tenant yet.
async fn env(dir: &Path, pasts: BTreeMap<TimelineId, Past>) -> Env {
    let failures = std::env::var("KILL_TEST_FAILURES").map_or(0, |failures| failures.parse().unwrap());
    let remote = match failures {
        0 => storage(dir).await,
        failures => storage(dir).await.unreliable(failures),
    };
    Env {
        manager: load_with(&dir.join("local"), Some(remote.clone())).await,
        tenant_id: TENANT.into(),
        pasts,
        main: MAIN.into(),
        rng: SmallRng::seed_from_u64(SEED),
        remote: Some(remote),
    }
}

async fn storage(dir: &Path) -> GenericRemoteStorage {
    local_storage(&dir.join("remote")).await
}

/// The other half of the test below, which starts it with an environment that says what to do. Alone it has
/// nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(dir) = std::env::var("KILL_TEST_DIR") else {
        return;
    };
    let dir = PathBuf::from(dir);
    let point = std::env::var("KILL_TEST_POINT").unwrap();
    let pass: u32 = std::env::var("KILL_TEST_PASS").unwrap().parse().unwrap();
    let passed = AtomicU32::new(0);
    fail::cfg_callback(point, move || {
        if passed.fetch_add(1, Ordering::Relaxed) + 1 == pass {
            nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    })
    .unwrap();
    let mut child = Child {
        env: env(&dir, BTreeMap::new()).await,
        journal: std::fs::File::create(dir.join("journal")).unwrap(),
        pasts: pasts(),
    };
    child.work().await;
}

/// All failpoints in the source of this crate.
fn failpoints() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for rest in text.split("fail_point!(").skip(1) {
                let name = rest
                    .trim_start()
                    .strip_prefix('"')
                    .and_then(|rest| rest.split_once('"'));
                let (name, _) = name.unwrap_or_else(|| panic!("a failpoint without a name in {path:?}"));
                found.insert(name.to_owned());
            }
        }
    }
    found
}

/// Runs the child until it dies at the given pass of the failpoint, or to its end.
fn run_child(dir: &Path, point: &str, (pass, failures): (u32, u32)) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--nocapture"])
        .env("KILL_TEST_DIR", dir)
        .env("KILL_TEST_POINT", point)
        .env("KILL_TEST_PASS", pass.to_string())
        .env("KILL_TEST_FAILURES", failures.to_string())
        .output()
        .unwrap();
    let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
    assert!(
        killed || output.status.success(),
        "{point}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    killed
}

/// What of the tenant must be there, and what may not be.
struct Expected {
    timelines: BTreeSet<TimelineId>,
    maybe: BTreeSet<TimelineId>,
}

fn expected(journal: &str) -> Expected {
    let noted: BTreeSet<&str> = journal.lines().collect();
    let doomed = TimelineId::from(DOOMED);
    let created = [("main", MAIN), ("branch", BRANCH), ("doomed", DOOMED)];
    let mut timelines: BTreeSet<TimelineId> = created
        .iter()
        .filter(|(name, _)| noted.contains(name))
        .map(|(_, id)| TimelineId::from(*id))
        .collect();
    let next = created.iter().find(|(name, _)| !noted.contains(name));
    let mut maybe: BTreeSet<TimelineId> = next.map(|(_, id)| TimelineId::from(*id)).into_iter().collect();
    if noted.contains("deleting") {
        timelines.remove(&doomed);
    }
    if noted.contains("deleting") && !noted.contains("deleted") {
        maybe.insert(doomed);
    }
    Expected { timelines, maybe }
}

/// Compares what there is with the model.
async fn check(env: &mut Env, expected: &Expected, what: &str) {
    env.wait_active().await;
    let there: BTreeSet<TimelineId> = env
        .timelines()
        .iter()
        .map(|timeline| timeline.timeline_id)
        .collect();
    assert!(there.is_superset(&expected.timelines), "{what}: only {there:?}");
    for id in there.difference(&expected.timelines) {
        assert!(expected.maybe.contains(id), "{what}: {id} is there");
    }
    env.feed_all().await;
    env.check(2).await;
    for timeline in env.timelines() {
        timeline.flush().await.unwrap();
        timeline.compact().await.unwrap();
        assert!(timeline.scrub().await.is_empty(), "{what}");
    }
    env.check(1).await;
    env.wait_idle().await;
}

/// Starts from what the child left behind.
async fn recover(dir: &Path, what: &str) {
    let journal = std::fs::read_to_string(dir.join("journal")).unwrap();
    let expected = expected(&journal);
    let mut env = env(dir, pasts()).await;
    let is_here = env.manager.get(env.tenant_id).is_ok();
    if !is_here && expected.timelines.is_empty() {
        return;
    }
    if !is_here {
        assert!(journal.contains("detaching"), "{what}: the tenant is gone");
        env.manager.attach_tenant(env.tenant_id).await.unwrap();
    }
    check(&mut env, &expected, what).await;
    let there = env.timelines().len();
    for timeline in env.timelines() {
        timeline.stop().await;
    }
    if there == 0 {
        return;
    }
    // From object storage alone.
    std::fs::remove_dir_all(dir.join("local")).unwrap();
    env.manager = load_with(&dir.join("local"), env.remote.clone()).await;
    env.manager.attach_tenant(env.tenant_id).await.unwrap();
    check(&mut env, &expected, &format!("{what}, attached")).await;
    assert_eq!(env.timelines().len(), there, "{what}");
    env.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn death_at_any_failpoint_loses_nothing() {
    let elsewhere: BTreeMap<&str, &str> = ELSEWHERE.iter().copied().collect();
    let found = failpoints();
    for name in elsewhere.keys() {
        assert!(found.contains(*name), "{name} is not in the source any more");
    }
    let only = std::env::var("KILL_TEST_ONLY").ok();
    for point in found.iter().filter(|name| !elsewhere.contains_key(name.as_str())) {
        if only.as_ref().is_some_and(|only| only != point) {
            continue;
        }
        for death in deaths() {
            let (pass, failures) = death;
            let dir = tempfile::tempdir().unwrap();
            let killed = run_child(dir.path(), point, *death);
            assert!(killed || *pass > 1, "{point} was never passed");
            let what = format!("{point}, pass {pass}, {failures} failures");
            println!("{what}: {}", if killed { "killed" } else { "not that often" });
            if killed {
                recover(dir.path(), &what).await;
            }
        }
    }
}

/// The last record of what a timeline is given is not lost sight of by the helpers above.
#[test]
fn the_scenario_is_the_same_every_time() {
    let ends = || -> Vec<RecordLsn> { pasts().values().map(Past::last).collect() };
    assert_eq!(ends(), ends());
    let (pasts, main) = (pasts(), TimelineId::from(MAIN));
    let whole = part(&pasts[&main], STEPS_BEFORE_BRANCH + STEPS_AFTER_BRANCH);
    assert_eq!(whole.last(), pasts[&main].last());
}
