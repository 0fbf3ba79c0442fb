//! Object storage as the truth: whatever becomes of the local disk, every key reads the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pageserver::remote::index::IndexPart;
use pageserver::tenant::disk_usage::DiskUsageConfig;
use pageserver::tenant::{AttachError, CreateTimelineError, DeleteTimelineError, TenantState};
use pageserver::timeline::ReadStore;
use pageserver::timeline::gc::Retention;
use utils::id::TimelineId;

use super::harness::{Env, PATIENCE, all_keys, load_with, local_storage, settings};

/// A server and its object storage, in directories of their own.
struct Site {
    dir: tempfile::TempDir,
    env: Env,
    /// Failpoints are of the process: one site at a time.
    _turn: fail::FailScenario<'static>,
}

impl Site {
    async fn new(seed: u64) -> Site {
        let turn = fail::FailScenario::setup();
        let dir = tempfile::tempdir().unwrap();
        let remote = local_storage(&dir.path().join("remote")).await;
        let env = Env::with_remote(&dir.path().join("local"), seed, Some(remote)).await;
        Site {
            dir,
            env,
            _turn: turn,
        }
    }

    fn local(&self) -> PathBuf {
        self.dir.path().join("local")
    }

    fn remote(&self) -> PathBuf {
        self.dir.path().join("remote")
    }

    fn objects(&self, timeline: TimelineId) -> PathBuf {
        let tenant = self.env.tenant_id;
        self.remote()
            .join(format!("tenants/{tenant}/timelines/{timeline}"))
    }

    /// Two timelines with layers of all kinds.
    async fn fill(&mut self) {
        for round in 0..6 {
            for timeline in self.env.timelines() {
                self.env.write(&timeline, 60).await;
                timeline.flush().await.unwrap();
                timeline.compact().await.unwrap();
            }
            if round == 2 {
                let main = self.env.timeline(self.env.main);
                self.env.branch(&main).await;
            }
        }
    }

    /// A new site with layers of all kinds, all of them in object storage.
    async fn filled(seed: u64) -> Site {
        let mut site = Site::new(seed).await;
        site.fill().await;
        site.env.wait_idle().await;
        site
    }

    /// Starts the server again on what is here.
    async fn load(&mut self) {
        self.env.manager = load_with(&self.local(), self.env.remote.clone()).await;
    }

    /// The timeline that is not the main one.
    fn branch(&self) -> TimelineId {
        let mut ids = self.env.pasts.keys();
        *ids.find(|id| **id != self.env.main).unwrap()
    }

    /// Loses the local directory, as if the machine were gone, and begins anew elsewhere.
    async fn lose_local(&mut self) {
        for timeline in self.env.timelines() {
            timeline.stop().await;
        }
        std::fs::remove_dir_all(self.local()).unwrap();
        self.env.manager = load_with(&self.local(), self.env.remote.clone()).await;
    }
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn object_storage_has_what_the_timeline_has_and_no_more() {
    let mut site = Site::new(11).await;
    site.fill().await;
    let retention = Retention {
        horizon_bytes: 2_000,
        pitr: Duration::ZERO,
    };
    for timeline in site.env.timelines() {
        timeline.gc(retention).await.unwrap();
    }
    site.env.wait_idle().await;
    for timeline in site.env.timelines() {
        let mut names: BTreeSet<String> = timeline
            .layer_names()
            .into_iter()
            .map(|(name, _)| name.to_string())
            .collect();
        let dir = site.objects(timeline.timeline_id);
        let raw = std::fs::read(dir.join("index_part.json")).unwrap();
        let index = IndexPart::decode(&raw).unwrap();
        let named: BTreeSet<String> = index.layers.keys().map(ToString::to_string).collect();
        assert_eq!(named, names);
        names.insert("index_part.json".to_owned());
        assert_eq!(names_in(&dir), names);
        assert_eq!(index.metadata.disk_consistent_lsn, timeline.disk_consistent_lsn());
        assert_eq!(timeline.remote_consistent_lsn(), timeline.disk_consistent_lsn());
        assert_eq!(
            index.metadata.latest_gc_cutoff_lsn,
            timeline.latest_gc_cutoff_lsn()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_directory_comes_back_with_every_branch() {
    let mut site = Site::new(12).await;
    site.fill().await;
    // More records than have been flushed: safekeepers have them.
    let main = site.env.timeline(site.env.main);
    site.env.write(&main, 20).await;
    drop(main);
    let timelines = site.env.timelines().len();
    site.lose_local().await;
    site.env.attach().await;
    assert_eq!(site.env.timelines().len(), timelines);
    let resident: u64 = site
        .env
        .timelines()
        .iter()
        .map(|timeline| timeline.resident_size())
        .sum();
    assert_eq!(resident, 0, "layers come on demand");
    site.env.check(10).await;
    // And again from where the first attach left off, with a restart between.
    site.env.manager.shutdown().await;
    site.load().await;
    site.env.feed_all().await;
    site.env.check(5).await;
    for timeline in site.env.timelines() {
        timeline.flush().await.unwrap();
        timeline.compact().await.unwrap();
    }
    site.env.check(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_attaches_what_the_first_detached() {
    let mut site = Site::new(13).await;
    site.fill().await;
    let id = site.env.tenant_id;
    let exists = site.env.manager.attach_tenant(id).await;
    assert!(matches!(exists, Err(AttachError::Exists(..))));
    site.env.manager.detach_tenant(id).await.unwrap();
    assert!(site.env.manager.get(id).is_err());
    assert_eq!(names_in(&site.local().join("tenants")), BTreeSet::new());

    let other = site.dir.path().join("other");
    site.env.manager = load_with(&other, site.env.remote.clone()).await;
    site.env.attach().await;
    site.env.check(10).await;
    let timeline = site.env.random_timeline();
    site.env.write(&timeline, 30).await;
    drop(timeline);
    site.env.manager.detach_tenant(id).await.unwrap();

    // Back to the first.
    site.load().await;
    site.env.attach().await;
    site.env.check(10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ignored_tenant_is_left_alone_until_it_is_loaded() {
    let mut site = Site::new(14).await;
    site.fill().await;
    let id = site.env.tenant_id;
    site.env.manager.ignore_tenant(id).await.unwrap();
    assert!(site.env.manager.get(id).is_err());
    let directory_exists = site.env.manager.attach_tenant(id).await;
    assert!(matches!(directory_exists, Err(AttachError::DirectoryExists(_))));
    site.load().await;
    assert!(site.env.manager.list().is_empty(), "also after a restart");
    site.env.manager.load_tenant(id).await.unwrap();
    site.env.wait_active().await;
    site.env.check(5).await;
    site.env.manager = {
        site.env.manager.shutdown().await;
        load_with(&site.local(), site.env.remote.clone()).await
    };
    site.env.check(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_layer_is_downloaded_once_however_many_readers_there_are() {
    let mut site = Site::filled(15).await;
    let timeline = site.env.timeline(site.env.main);
    let evicted = timeline.evict_unused_for(Duration::ZERO).await.unwrap();
    assert!(evicted >= 3, "{evicted}");
    assert_eq!(timeline.resident_size(), 0);
    assert!(timeline.physical_size() > 0);
    let lsn = timeline.last_record().last;
    let reader = |timeline: Arc<_>| async move {
        let timeline: Arc<pageserver::timeline::Timeline> = timeline;
        timeline.get_many(&all_keys(), lsn).await.unwrap();
    };
    let mut readers = tokio::task::JoinSet::new();
    for n in 0..40 {
        let task = readers.spawn(reader(Arc::clone(&timeline)));
        // Every other reader gives up at once, some of them with the download under way.
        if n % 2 == 0 {
            task.abort();
        }
    }
    while let Some(done) = readers.join_next().await {
        assert!(done.is_ok() || done.unwrap_err().is_cancelled());
    }
    site.env.check(3).await;
    let info = timeline.layer_map_info(pageserver::layers::access::ResetStats::Nothing);
    let mut downloads = 0;
    for layer in serde_json::to_value(info).unwrap()["historic_layers"]
        .as_array()
        .unwrap()
    {
        let events = layer["access_stats"]["residence_events_history"]["buffer"]
            .as_array()
            .unwrap();
        let texts: Vec<String> = events
            .iter()
            .map(|event| format!("{} {}", event["status"], event["reason"]).replace('"', ""))
            .collect();
        let came = texts
            .iter()
            .filter(|text| *text == "Resident ResidenceChange")
            .count();
        assert!(came <= 1, "{texts:?}");
        assert_eq!(texts[0], "Resident LayerCreate");
        assert_eq!(texts[1], "Evicted ResidenceChange");
        downloads += came;
    }
    assert!(downloads > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_durable_is_not_evicted() {
    let mut site = Site::new(16).await;
    fail::cfg("before-upload-index", "return").unwrap();
    let timeline = site.env.timeline(site.env.main);
    let before = timeline.remote_consistent_lsn();
    site.env.write(&timeline, 60).await;
    timeline.flush().await.unwrap();
    timeline.evict_unused_for(Duration::ZERO).await.unwrap();
    assert!(
        timeline.resident_size() > 0,
        "the new layer is in no durable index"
    );
    assert_eq!(timeline.remote_consistent_lsn(), before);
    let waited = timeline.wait_uploaded(Duration::from_millis(200)).await;
    assert!(waited.is_err());
    fail::remove("before-upload-index");
    timeline.wait_uploaded(PATIENCE).await.unwrap();
    timeline.evict_unused_for(Duration::ZERO).await.unwrap();
    assert_eq!(timeline.resident_size(), 0);
    site.env.check(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_download_is_an_error_and_the_next_read_tries_again() {
    let mut site = Site::filled(17).await;
    let timeline = site.env.timeline(site.env.main);
    timeline.evict_unused_for(Duration::ZERO).await.unwrap();
    let (objects, aside) = (site.objects(site.env.main), site.dir.path().join("aside"));
    std::fs::rename(&objects, &aside).unwrap();
    let lsn = timeline.last_record().last;
    let error = timeline.get(all_keys()[0], lsn).await.unwrap_err();
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(
        text.contains("cannot download") && text.contains("does not exist"),
        "{text}"
    );
    std::fs::rename(&aside, &objects).unwrap();
    site.env.check(3).await;
    assert_eq!(site.env.tenant().state(), TenantState::Active);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_vanished_is_fetched_again() {
    let mut site = Site::filled(18).await;
    for timeline in site.env.timelines() {
        for (name, _) in timeline.layer_names() {
            std::fs::remove_file(timeline.dir().join(name.to_string())).unwrap();
        }
    }
    site.env.check(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tiny_disk_is_enough() {
    let mut site = Site::filled(19).await;
    let resident = |env: &Env| -> u64 {
        let timelines = env.timelines();
        timelines.iter().map(|timeline| timeline.resident_size()).sum()
    };
    let all = resident(&site.env);
    let config = DiskUsageConfig {
        max_usage_pct: 100,
        min_avail_bytes: 0,
        max_resident_bytes: Some(all / 3),
        min_resident_size: 0,
        period: Duration::from_secs(1),
    };
    let freed = site.env.manager.evict_for_room(&config).await.unwrap();
    assert_eq!(resident(&site.env), all - freed);
    assert!(resident(&site.env) <= all / 3);
    assert_eq!(site.env.manager.evict_for_room(&config).await.unwrap(), 0);
    site.env.check(3).await;
    assert!(resident(&site.env) > all / 3, "reads bring layers back");
    site.env.manager.evict_for_room(&config).await.unwrap();
    site.env.check(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_timeline_leaves_nothing_anywhere() {
    let mut site = Site::new(20).await;
    site.fill().await;
    let ids: Vec<TimelineId> = site
        .env
        .timelines()
        .iter()
        .map(|timeline| timeline.timeline_id)
        .collect();
    let branch = *ids.iter().find(|id| **id != site.env.main).unwrap();
    let refused = site.env.tenant().delete_timeline(site.env.main).await;
    assert!(matches!(refused, Err(DeleteTimelineError::HasBranches)));
    let dir = site.env.timeline(branch).dir().to_owned();
    site.env.tenant().delete_timeline(branch).await.unwrap();
    assert!(!dir.exists());
    assert_eq!(names_in(&site.objects(branch)), BTreeSet::new());
    let again = site.env.tenant().delete_timeline(branch).await;
    assert!(matches!(again, Err(DeleteTimelineError::NotFound)));
    site.env.pasts.remove(&branch);
    site.lose_local().await;
    site.env.attach().await;
    assert_eq!(site.env.timelines().len(), 1);
    site.env.check(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attaching_waits_for_object_storage_and_names_what_is_damaged() {
    let mut site = Site::filled(21).await;
    let id = site.env.tenant_id;
    site.lose_local().await;
    fail::cfg("storage-sync-list-remote-timelines", "return").unwrap();
    site.env.manager.attach_tenant(id).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let state = site.env.manager.get(id).unwrap().state();
    assert_eq!(state, TenantState::Attaching, "what may pass is waited for");
    fail::remove("storage-sync-list-remote-timelines");
    site.env.wait_active().await;
    let config = site.env.tenant().config();
    assert_eq!(*config, Default::default(), "settings are not in object storage");
    site.env.tenant().set_overrides(settings()).await.unwrap();

    site.env.feed_all().await;
    site.env.check(3).await;
    site.env.manager.detach_tenant(id).await.unwrap();
    let index = site.objects(site.env.main).join("index_part.json");
    let mut raw = std::fs::read(&index).unwrap();
    let at = raw.len() / 2;
    raw[at] ^= 1;
    std::fs::write(&index, raw).unwrap();
    site.env.manager.attach_tenant(id).await.unwrap();
    let mut state = site.env.manager.get(id).unwrap().watch_state();
    let broken = state
        .wait_for(|state| matches!(state, TenantState::Broken { .. }))
        .await;
    let TenantState::Broken { reason } = broken.unwrap().clone() else {
        panic!("it was waited for")
    };
    assert!(
        reason.contains("index_part.json") && reason.contains(&site.env.main.to_string()),
        "{reason}"
    );
    site.env.manager.detach_tenant(id).await.unwrap();
    let nobody = utils::id::TenantId::generate();
    site.env.manager.attach_tenant(nobody).await.unwrap();
    let mut state = site.env.manager.get(nobody).unwrap().watch_state();
    let broken = state
        .wait_for(|state| matches!(state, TenantState::Broken { .. }))
        .await;
    assert!(format!("{:?}", *broken.unwrap()).contains("no timelines found on the remote storage"));
}

/// Changes a byte in the middle of a file; returns what it held.
fn damage(path: &Path) -> Vec<u8> {
    let sound = std::fs::read(path).unwrap();
    let mut bad = sound.clone();
    bad[sound.len() / 2] ^= 1;
    std::fs::write(path, bad).unwrap();
    sound
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_timeline_does_not_keep_the_others_from_working() {
    let mut site = Site::filled(23).await;
    let (main, branch) = (site.env.main, site.branch());
    let dir = site.env.timeline(branch).dir().to_owned();

    // The index has what the metadata file said. A byte that no field needs counts, too.
    site.env.manager.shutdown().await;
    damage(&dir.join("metadata"));
    site.load().await;
    assert_eq!(site.env.timelines().len(), 2);
    site.env.check(5).await;

    // Nothing has what the index said: the branch is left out, and what it may read of its ancestor stays.
    site.env.manager.shutdown().await;
    let index = site.objects(branch).join("index_part.json");
    let sound = damage(&index);
    site.load().await;
    assert_eq!(site.env.timelines().len(), 1);
    let ancestor = site.env.timeline(main);
    site.env.write(&ancestor, 50).await;
    for _ in 0..3 {
        ancestor.flush().await.unwrap();
        ancestor.compact().await.unwrap();
    }
    site.env.check(5).await;
    let (cutoff, layers) = (ancestor.latest_gc_cutoff_lsn(), ancestor.layer_names().len());
    let retention = Retention {
        horizon_bytes: 0,
        pitr: Duration::ZERO,
    };
    ancestor.gc(retention).await.unwrap();
    assert_eq!(
        (ancestor.latest_gc_cutoff_lsn(), ancestor.layer_names().len()),
        (cutoff, layers)
    );
    let deleted = site.env.tenant().delete_timeline(main).await;
    assert!(
        matches!(deleted, Err(DeleteTimelineError::HasBranches)),
        "{deleted:?}"
    );
    let created = site.env.tenant().create_timeline(branch, 15).await;
    assert!(matches!(
        created.err(),
        Some(CreateTimelineError::AlreadyExists(_))
    ));
    drop(ancestor);

    // As if nothing had been.
    site.env.wait_idle().await;
    site.env.manager.shutdown().await;
    std::fs::write(&index, &sound).unwrap();
    site.load().await;
    assert_eq!(site.env.timelines().len(), 2);
    site.env.check(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_layers_of_a_branch_are_named_and_its_ancestor_is_as_it_was() {
    let mut site = Site::filled(24).await;
    let (main, branch) = (site.env.main, site.branch());
    let (dir, objects) = (site.env.timeline(branch).dir().to_owned(), site.objects(branch));
    site.env.manager.shutdown().await;
    for name in names_in(&objects)
        .iter()
        .filter(|name| *name != "index_part.json")
    {
        damage(&objects.join(name));
        damage(&dir.join(name));
    }
    site.load().await;
    let damaged = site.env.timeline(branch);
    let (files, last) = (damaged.layer_names().len(), damaged.last_record().last);
    assert!(files > 0);
    assert_eq!(damaged.scrub().await.len(), files);
    let mut unreadable = 0;
    for key in all_keys() {
        match damaged.get(key, last).await {
            Ok(found) => assert_eq!(
                found,
                site.env.pasts[&branch].model.get(key, last).await.unwrap(),
                "{key}"
            ),
            Err(error) => {
                unreadable += usize::from(format!("{error:?}").contains(&dir.display().to_string()))
            }
        }
    }
    assert!(unreadable > 0);
    let sound = site.env.timeline(main);
    let (keys, last) = (all_keys(), sound.last_record().last);
    let want = site.env.pasts[&main].model.get_many(&keys, last).await.unwrap();
    assert_eq!(sound.get_many(&keys, last).await.unwrap(), want);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_files_are_fetched_again() {
    let mut site = Site::filled(25).await;
    for timeline in site.env.timelines() {
        for (name, _) in timeline.layer_names() {
            damage(&timeline.dir().join(name.to_string()));
        }
    }
    site.env.manager.shutdown().await;
    site.load().await;
    // Compaction finds damage, too.
    for timeline in site.env.timelines() {
        timeline.compact().await.unwrap();
    }
    site.env.check(10).await;
}

/// Set where a test has a process to itself.
const ALONE: &str = "LAYERS_TEST_ALONE";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_gives_up_after_ten_attempts() {
    if std::env::var_os(ALONE).is_none() {
        // The failpoint counts the downloads of the whole process, so other tests must not run in it.
        let name = "remote::a_download_gives_up_after_ten_attempts";
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let ended = alone
            .args(["--exact", name, "--nocapture"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && output.contains("1 passed"), "{output}");
        return;
    }
    let mut site = Site::filled(22).await;
    let timeline = site.env.timeline(site.env.main);
    let (key, lsn) = (all_keys()[0], timeline.last_record().last);
    let want = timeline.get(key, lsn).await.unwrap();
    // Nothing that was read is in memory after a restart.
    site.env.manager.shutdown().await;
    site.load().await;
    let timeline = site.env.timeline(site.env.main);
    timeline.evict_unused_for(Duration::ZERO).await.unwrap();
    let point = "remote-storage-download-pre-rename";
    fail::cfg(point, "10*return->off").unwrap();
    let error = timeline.get(key, lsn).await.unwrap_err();
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.contains(point), "{text}");
    assert!(timeline.get(key, lsn).await.unwrap() == want);
    timeline.evict_unused_for(Duration::ZERO).await.unwrap();
    fail::cfg(point, "9*return->off").unwrap();
    site.env.check(1).await;
    assert_eq!(site.env.tenant().state(), TenantState::Active);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_of_every_operation_are_survived() {
    // Nine are as many as a download stands; the pauses between them take minutes.
    let failures = if std::env::var_os("NEON_NIGHTLY").is_some() {
        9
    } else {
        2
    };
    let dir = tempfile::tempdir().unwrap();
    let _turn = fail::FailScenario::setup();
    let remote = local_storage(&dir.path().join("remote"))
        .await
        .unreliable(failures);
    let local = dir.path().join("local");
    let mut env = Env::with_remote(&local, 23, Some(remote)).await;
    let timeline = env.timeline(env.main);
    env.write(&timeline, 60).await;
    timeline.flush().await.unwrap();
    timeline.compact().await.unwrap();
    env.wait_idle().await;
    for timeline in env.timelines() {
        timeline.stop().await;
    }
    std::fs::remove_dir_all(&local).unwrap();
    env.manager = load_with(&local, env.remote.clone()).await;
    env.attach().await;
    env.check(1).await;
    let main = env.main;
    env.tenant().delete_timeline(main).await.unwrap();
    assert!(env.timelines().is_empty());
}
