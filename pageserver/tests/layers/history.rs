//! Random histories: whatever happens to the layers, every key at every retained LSN reads the same.

use std::time::Duration;

use pageserver::timeline::gc::Retention;
use pageserver::timeline::{ReadError, ReadStore};
use pageserver_api::layer_name::LayerFileName;
use rand::RngExt;

use super::harness::{Env, all_keys, load, load_with, local_storage};

/// Stops everything without writing anything out, as a killed process does, and starts again.
async fn kill_and_restart(env: &mut Env, workdir: &std::path::Path) {
    for timeline in env.timelines() {
        timeline.stop().await;
    }
    restart(env, workdir).await;
}

async fn restart(env: &mut Env, workdir: &std::path::Path) {
    env.manager = load_with(workdir, env.remote.clone()).await;
    env.feed_all().await;
}

/// Something that only a server with object storage can stand.
async fn remote_event(env: &mut Env, workdir: &std::path::Path) {
    match env.rng.random_range(0..10) {
        0..5 => {
            for timeline in env.timelines() {
                timeline.evict_unused_for(Duration::ZERO).await.unwrap();
            }
        }
        5..7 => {
            env.manager.detach_tenant(env.tenant_id).await.unwrap();
            env.attach().await;
        }
        _ => {
            for timeline in env.timelines() {
                timeline.stop().await;
            }
            std::fs::remove_dir_all(workdir).unwrap();
            env.manager = load_with(workdir, env.remote.clone()).await;
            env.attach().await;
            let settings = super::harness::settings();
            env.tenant().set_overrides(settings).await.unwrap();
        }
    }
}

async fn random_history(seed: u64, remote: Option<&std::path::Path>) {
    let _turn = fail::FailScenario::setup();
    let dir = tempfile::tempdir().unwrap();
    let remote = match remote {
        Some(dir) => Some(local_storage(dir).await),
        None => None,
    };
    let mut env = Env::with_remote(dir.path(), seed, remote).await;
    for _ in 0..120 {
        let timeline = env.random_timeline();
        match env.rng.random_range(0..100) {
            0..40 => {
                let records = env.rng.random_range(1..120);
                env.write(&timeline, records).await;
            }
            40..60 => timeline.flush().await.unwrap(),
            60..68 => timeline.freeze(),
            68..80 => timeline.compact().await.unwrap(),
            80..84 if env.pasts.len() < 5 => env.branch(&timeline).await,
            84..88 => {
                let horizon_bytes = env.rng.random_range(1000..200_000);
                let pitr = Duration::ZERO;
                timeline.gc(Retention { horizon_bytes, pitr }).await.unwrap();
            }
            88..91 => kill_and_restart(&mut env, dir.path()).await,
            91..93 => {
                env.manager.shutdown().await;
                restart(&mut env, dir.path()).await;
            }
            93..96 if env.remote.is_some() => remote_event(&mut env, dir.path()).await,
            _ => env.check(1).await,
        }
    }
    env.check(10).await;
    for timeline in env.timelines() {
        timeline.flush().await.unwrap();
        timeline.compact().await.unwrap();
    }
    env.check(10).await;
    kill_and_restart(&mut env, dir.path()).await;
    env.check(10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_version_survives_whatever_happens_to_the_layers() {
    for seed in 0..6 {
        println!("seed {seed}");
        random_history(seed, None).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_version_survives_whatever_happens_to_the_local_disk() {
    for seed in 10..14 {
        println!("seed {seed}");
        let remote = tempfile::tempdir().unwrap();
        random_history(seed, Some(remote.path())).await;
    }
}

#[tokio::test]
async fn compaction_makes_small_layers_and_images_and_gc_removes_the_rest() {
    let _turn = fail::FailScenario::setup();
    let dir = tempfile::tempdir().unwrap();
    let mut env = Env::new(dir.path(), 1).await;
    let timeline = env.timeline(env.main);
    let counts = |timeline: &pageserver::timeline::Timeline| {
        let names = timeline.layer_names();
        let l0 = names.iter().filter(|(name, _)| name.is_l0()).count();
        let images = names.iter().filter(|(name, _)| !name.is_delta()).count();
        (l0, names.len() - l0 - images, images)
    };
    assert_eq!(counts(&timeline), (0, 0, 1));
    for _ in 0..9 {
        env.write(&timeline, 300).await;
        timeline.flush().await.unwrap();
        timeline.compact().await.unwrap();
    }
    let (l0, l1, images) = counts(&timeline);
    assert!(l0 < 3 && l1 >= 3 && images >= 2, "{l0} {l1} {images}");
    env.check(30).await;

    let old = timeline.latest_gc_cutoff_lsn();
    let retention = Retention {
        horizon_bytes: 0,
        pitr: Duration::ZERO,
    };
    let outcome = timeline.gc(retention).await.unwrap();
    assert!(outcome.removed > 0, "{outcome:?}");
    env.check(5).await;
    let on_disk = std::fs::read_dir(timeline.dir()).unwrap().count();
    assert_eq!(on_disk, timeline.layer_names().len() + 1, "layers and metadata");
    let error = timeline.get(all_keys()[0], old).await.unwrap_err();
    assert!(matches!(error, ReadError::Collected { .. }), "{error}");
    env.branch(&timeline).await;
    kill_and_restart(&mut env, dir.path()).await;
    assert!(env.timeline(env.main).latest_gc_cutoff_lsn() > old);
    env.check(5).await;
}

/// Any changed bit of any layer file is found by a scrub, which names the file, and never leads to a wrong value.
#[tokio::test]
async fn damage_is_found_and_named() {
    let _turn = fail::FailScenario::setup();
    let dir = tempfile::tempdir().unwrap();
    let mut env = Env::new(dir.path(), 2).await;
    let timeline = env.timeline(env.main);
    for _ in 0..4 {
        env.write(&timeline, 100).await;
        timeline.flush().await.unwrap();
    }
    env.manager.shutdown().await;
    let names = timeline.layer_names();
    for (name, len) in names {
        let path = timeline.dir().join(name.to_string());
        let sound = std::fs::read(&path).unwrap();
        for _ in 0..12 {
            let at = env.rng.random_range(0..len as usize);
            let mut bad = sound.clone();
            bad[at] ^= 1 << env.rng.random_range(0..8);
            std::fs::write(&path, bad).unwrap();
            let manager = load(dir.path()).await;
            let damaged = manager
                .get_active(env.tenant_id)
                .unwrap()
                .get_timeline(env.main)
                .unwrap();
            let errors = damaged.scrub().await;
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert!(
                texts.len() == 1 && texts[0].contains(&name.to_string()),
                "byte {at} of {name}: {texts:?}"
            );
            // What is read in spite of the damage is right.
            let (keys, past) = (all_keys(), &env.pasts[&env.main]);
            let last = damaged.last_record().last;
            for key in keys {
                if let Ok(found) = damaged.get(key, last).await {
                    assert!(
                        found == past.model.get(key, last).await.unwrap(),
                        "{key} after byte {at} of {name}"
                    );
                }
            }
            for timeline in manager.list().iter().flat_map(|tenant| tenant.timelines()) {
                timeline.stop().await;
            }
        }
        std::fs::write(&path, sound).unwrap();
    }
}

#[tokio::test]
async fn one_bad_layer_does_not_keep_the_others_from_being_compacted() {
    let _turn = fail::FailScenario::setup();
    let dir = tempfile::tempdir().unwrap();
    let mut env = Env::new(dir.path(), 5).await;
    let timeline = env.timeline(env.main);
    for _ in 0..6 {
        env.write(&timeline, 100).await;
        timeline.flush().await.unwrap();
    }
    let l0 = |timeline: &pageserver::timeline::Timeline| {
        let names = timeline.layer_names().into_iter().map(|(name, _)| name);
        let mut l0: Vec<_> = names.filter(|name| name.is_l0()).collect();
        l0.sort_by_key(|name| name.lsn_range().start);
        l0
    };
    let before = l0(&timeline);
    assert_eq!(before.len(), 6);
    let path = timeline.dir().join(before[1].to_string());
    let sound = std::fs::read(&path).unwrap();
    let mut bad = sound.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&path, bad).unwrap();
    let error = timeline.compact().await.unwrap_err();
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.contains(&before[1].to_string()), "{text}");
    assert_eq!(
        l0(&timeline),
        before[..2],
        "the run behind the bad layer was merged"
    );
    std::fs::write(&path, sound).unwrap();
    env.check(5).await;
}

/// A crash may leave any of the level 0 layers that a compaction had replaced, not only all or none.
#[tokio::test]
async fn leftovers_of_a_compaction_do_not_hide_what_it_made() {
    let _turn = fail::FailScenario::setup();
    const MERGED: u32 = 3;
    for left in 1..(1_u32 << MERGED) {
        let dir = tempfile::tempdir().unwrap();
        let mut env = Env::new(dir.path(), u64::from(left)).await;
        let timeline = env.timeline(env.main);
        for _ in 0..MERGED {
            env.write(&timeline, 60).await;
            timeline.flush().await.unwrap();
        }
        let names = timeline.layer_names().into_iter().map(|(name, _)| name);
        let mut replaced: Vec<_> = names.filter(|name| name.is_l0()).collect();
        replaced.sort_by_key(|name| name.lsn_range().start);
        assert_eq!(replaced.len(), MERGED as usize);
        let path = |name: &LayerFileName| timeline.dir().join(name.to_string());
        let contents: Vec<_> = replaced
            .iter()
            .map(|name| std::fs::read(path(name)).unwrap())
            .collect();
        timeline.compact().await.unwrap();
        assert!(
            !path(&replaced[0]).exists(),
            "level 0 was compacted and nobody reads it"
        );
        timeline.stop().await;
        for (at, (name, content)) in replaced.iter().zip(&contents).enumerate() {
            if left & (1 << at) != 0 {
                std::fs::write(path(name), content).unwrap();
            }
        }
        restart(&mut env, dir.path()).await;
        let timeline = env.timeline(env.main);
        env.write(&timeline, 60).await;
        timeline.flush().await.unwrap();
        // Each run of adjoining layers is merged on its own.
        for _ in 0..MERGED {
            timeline.compact().await.unwrap();
        }
        env.check(20).await;
        let l0 = timeline
            .layer_names()
            .into_iter()
            .filter(|(name, _)| name.is_l0())
            .count();
        assert!(l0 <= 2, "{l0} layers of level 0 stay, the newest among them");
    }
}
