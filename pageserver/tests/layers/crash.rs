//! Death at every durable step: the directory as it is when a failpoint is passed is started from, and
//! must hold everything that was durable then; the rest comes again from the WAL.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pageserver::timeline::gc::Retention;

use super::harness::{Env, feed, load};

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            // A temporary file may be gone by now, as after a crash a moment later.
            let _ = std::fs::copy(entry.path(), target);
        }
    }
}

/// Every step at which a copy is taken.
const STEPS: &[&str] = &[
    "flush-frozen-before-sync",
    "checkpoint-after-sync",
    "checkpoint-before-saving-metadata",
    "checkpoint-after-saving-metadata",
    "delta-layer-writer-fail-before-finish",
    "image-layer-writer-fail-before-finish",
    "compaction-before-sync",
    "compaction-after-sync",
    "image-creation-before-sync",
    "image-creation-after-sync",
    "before-timeline-gc",
    "after-timeline-gc-removed-layers",
];

async fn work(env: &mut Env) {
    for round in 0..14 {
        for timeline in env.timelines() {
            env.write(&timeline, 60).await;
            timeline.flush().await.unwrap();
            timeline.compact().await.unwrap();
            let retention = Retention {
                horizon_bytes: 2_000,
                pitr: Duration::ZERO,
            };
            timeline.gc(retention).await.unwrap();
        }
        if round == 9 {
            let main = env.timeline(env.main);
            env.branch(&main).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_from_any_step_loses_nothing() {
    let scenario = fail::FailScenario::setup();
    let dir = tempfile::tempdir().unwrap();
    let workdir = dir.path().join("live");
    let copies = dir.path().join("copies");
    let mut env = Env::new(&workdir, 3).await;
    let taken = Arc::new(AtomicUsize::new(0));
    for step in STEPS {
        let (live, copies, taken) = (workdir.clone(), copies.clone(), Arc::clone(&taken));
        let counter = AtomicUsize::new(0);
        fail::cfg_callback(*step, move || {
            // The first passes and every third after that: enough of each kind, in bearable time.
            let pass = counter.fetch_add(1, Ordering::Relaxed);
            if pass < 2 || pass.is_multiple_of(3) {
                let number = taken.fetch_add(1, Ordering::Relaxed);
                copy_dir(&live, &copies.join(format!("{number}-{step}")));
            }
        })
        .unwrap();
    }
    work(&mut env).await;
    scenario.teardown();
    env.check(5).await;

    let mut names: Vec<PathBuf> = std::fs::read_dir(&copies)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    for step in STEPS {
        let passed = names.iter().any(|path| path.to_string_lossy().ends_with(step));
        assert!(passed, "{step} was never passed");
    }
    for copy in names {
        println!("{}", copy.display());
        env.manager = load(&copy).await;
        for timeline in env.timelines() {
            feed(&timeline, &env.pasts[&timeline.timeline_id]).await;
        }
        env.check(2).await;
        for timeline in env.timelines() {
            timeline.compact().await.unwrap();
        }
        env.check(2).await;
        let left = |path: &Path| path.to_string_lossy().ends_with(".___temp");
        for timeline in env.timelines() {
            let entries = std::fs::read_dir(timeline.dir()).unwrap();
            assert!(!entries.map(|entry| entry.unwrap().path()).any(|path| left(&path)));
            timeline.stop().await;
        }
    }
}

#[tokio::test]
async fn a_failing_step_leaves_no_temporary_file_and_is_tried_again() {
    let scenario = fail::FailScenario::setup();
    let dir = tempfile::tempdir().unwrap();
    let mut env = Env::new(dir.path(), 4).await;
    let timeline = env.timeline(env.main);
    for step in [
        "delta-layer-writer-fail-before-finish",
        "checkpoint-before-saving-metadata",
    ] {
        env.write(&timeline, 20).await;
        fail::cfg(step, "return(asked for)").unwrap();
        let error = timeline.flush().await.unwrap_err();
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.contains(step) || text.contains("asked for"), "{text}");
        env.check(2).await;
        // The background task tries, too, so that now and then there is one for a moment.
        let is_clean = || {
            let entries = std::fs::read_dir(timeline.dir()).unwrap();
            let mut names = entries.map(|entry| entry.unwrap().file_name());
            !names.any(|name| name.to_string_lossy().ends_with("temp"))
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !is_clean() {
            assert!(std::time::Instant::now() < deadline, "temporary files stay");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        fail::remove(step);
        timeline.flush().await.unwrap();
        assert_eq!(timeline.disk_consistent_lsn(), timeline.last_record().last);
        env.check(2).await;
    }
    scenario.teardown();
}
