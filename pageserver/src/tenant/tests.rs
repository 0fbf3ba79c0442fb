//! Tenants and timelines through their public interface, on a real directory.

use std::sync::Arc;
use std::time::Duration;

use pageserver_api::key::Key;
use pageserver_api::tenant_config::{TenantConfig, TenantConfigOverrides};
use pageserver_api::value::Value;
use utils::id::{TenantId, TimelineId};
use utils::lsn::{Lsn, RecordLsn};

use super::*;
use crate::context::{StoreContext, StoreLimits};
use crate::timeline::{ReadError, ReadStore, WriteBatch};

const START: RecordLsn = RecordLsn {
    last: Lsn(0x100),
    prev: Lsn(0x80),
};
const NO_WAIT: Duration = Duration::ZERO;

struct NoListener;

impl TimelineListener for NoListener {
    fn timeline_active(&self, _timeline: &Arc<Timeline>) {}
}

fn manager(workdir: &Path) -> TenantManager {
    TenantManager::new(TenantManagerConfig {
        workdir: workdir.to_owned(),
        default_tenant_config: TenantConfig::default(),
        context: StoreContext::new(&StoreLimits::default()),
        listener: Arc::new(NoListener),
    })
}

async fn create_tenant(manager: &TenantManager) -> Arc<Tenant> {
    let created = manager.create_tenant(TenantId::generate(), Default::default());
    created.await.unwrap()
}

fn key(n: u32) -> Key {
    Key {
        field6: n,
        ..Key::MIN
    }
}

async fn put(timeline: &Arc<Timeline>, n: u32, lsn: u64, text: &'static str) {
    let mut writer = timeline.writer().await;
    let mut batch = WriteBatch::default();
    batch.put(key(n), Lsn(lsn), Value::Image(text.into()));
    writer.put(batch).await.unwrap();
    let prev = timeline.last_record().last;
    writer.advance(RecordLsn { last: Lsn(lsn), prev });
}

async fn text(timeline: &Timeline, n: u32, lsn: u64) -> Option<String> {
    let value = timeline.get(key(n), Lsn(lsn)).await.unwrap();
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

fn branch_of(ancestor: &Timeline, start: Option<u64>) -> BranchSpec {
    BranchSpec {
        timeline_id: TimelineId::generate(),
        ancestor_id: ancestor.timeline_id,
        start_lsn: start.map(Lsn),
        wait_timeout: NO_WAIT,
    }
}

async fn root(tenant: &Arc<Tenant>) -> Arc<Timeline> {
    let unfinished = tenant.create_timeline(TimelineId::generate(), 15).await.unwrap();
    unfinished.timeline().writer().await.advance(START);
    unfinished.finish().await.unwrap()
}

#[tokio::test]
async fn branches_see_what_was_there_and_go_their_own_way() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = create_tenant(&manager(dir.path())).await;
    let main = root(&tenant).await;
    put(&main, 1, 0x110, "one").await;
    put(&main, 1, 0x120, "two").await;
    put(&main, 2, 0x130, "other").await;
    let old = tenant.branch(branch_of(&main, Some(0x11a))).await.unwrap();
    let head = tenant.branch(branch_of(&main, None)).await.unwrap();
    assert_eq!(
        old.last_record(),
        RecordLsn {
            last: Lsn(0x120),
            prev: Lsn(0)
        }
    );
    assert_eq!(head.last_record(), main.last_record());
    put(&head, 1, 0x140, "branch").await;
    put(&main, 1, 0x150, "main").await;
    let grandchild = tenant.branch(branch_of(&head, None)).await.unwrap();
    assert_eq!(text(&old, 1, 0x200).await.as_deref(), Some("two"));
    assert_eq!(text(&old, 2, 0x200).await, None);
    assert_eq!(text(&grandchild, 1, 0x200).await.as_deref(), Some("branch"));
    assert_eq!(text(&grandchild, 1, 0x119).await.as_deref(), Some("one"));
    assert_eq!(text(&main, 1, 0x200).await.as_deref(), Some("main"));
    let scanned = head.scan(key(0)..key(9), Lsn(0x200)).await.unwrap();
    assert_eq!(scanned, [(key(1), "branch".into()), (key(2), "other".into())]);
    let error = main.get(key(1), Lsn(0xff)).await.unwrap_err();
    assert!(
        matches!(
            error,
            ReadError::Collected {
                cutoff: Lsn(0x100),
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn impossible_branches_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = create_tenant(&manager(dir.path())).await;
    let main = root(&tenant).await;
    put(&main, 1, 0x110, "one").await;
    let child = tenant.branch(branch_of(&main, None)).await.unwrap();
    let error = tenant.branch(branch_of(&main, Some(0x118))).await.unwrap_err();
    assert!(matches!(error, CreateTimelineError::AncestorBehind(_)), "{error}");
    let error = tenant.branch(branch_of(&main, Some(0x80))).await.unwrap_err();
    assert!(
        error.to_string().contains("less than latest GC cutoff 0/100"),
        "{error}"
    );
    let error = tenant.branch(branch_of(&child, Some(0x108))).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("less than timeline ancestor lsn 0/110"),
        "{error}"
    );
    let mut same = branch_of(&main, None);
    same.timeline_id = child.timeline_id;
    let error = tenant.branch(same).await.unwrap_err();
    assert!(matches!(error, CreateTimelineError::AlreadyExists(_)), "{error}");
    assert_eq!(main.branch_points().len(), 1);

    let error = tenant.delete_timeline(main.timeline_id).await.unwrap_err();
    assert!(matches!(error, DeleteTimelineError::HasBranches), "{error}");
    tenant.delete_timeline(child.timeline_id).await.unwrap();
    tenant.delete_timeline(main.timeline_id).await.unwrap();
    assert_eq!(
        std::fs::read_dir(tenant.dir().join("timelines")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn a_restart_finds_tenants_branches_and_settings() {
    let dir = tempfile::tempdir().unwrap();
    let id = TenantId::generate();
    let overrides = TenantConfigOverrides {
        gc_horizon: Some(77),
        ..Default::default()
    };
    let (main, child) = {
        let manager = manager(dir.path());
        let tenant = manager.create_tenant(id, overrides).await.unwrap();
        let main = root(&tenant).await;
        let child = tenant.branch(branch_of(&main, None)).await.unwrap();
        let unfinished = tenant.create_timeline(TimelineId::generate(), 15).await.unwrap();
        // A killed process does not run destructors.
        std::mem::forget(unfinished);
        (main.timeline_id, child.timeline_id)
    };
    let manager = manager(dir.path());
    manager.load_all().await.unwrap();
    let tenant = manager.get_active(id).unwrap();
    assert_eq!(tenant.config().gc_horizon, 77);
    assert_eq!(tenant.timelines().len(), 2);
    let child = tenant.get_timeline(child).unwrap();
    assert_eq!(child.ancestor().unwrap().0.timeline_id, main);
    assert_eq!(child.state(), TimelineState::Active);
    assert_eq!(
        std::fs::read_dir(tenant.dir().join("timelines")).unwrap().count(),
        2
    );
    let error = tenant.delete_timeline(main).await.unwrap_err();
    assert!(matches!(error, DeleteTimelineError::HasBranches), "{error}");
}

#[tokio::test]
async fn an_unfinished_timeline_takes_its_files_along() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = create_tenant(&manager(dir.path())).await;
    let id = TimelineId::generate();
    let unfinished = tenant.create_timeline(id, 15).await.unwrap();
    assert!(tenant.create_timeline(id, 15).await.is_err());
    assert!(tenant.get_timeline(id).is_err());
    unfinished.abort().await;
    assert_eq!(
        std::fs::read_dir(tenant.dir().join("timelines")).unwrap().count(),
        0
    );
    tenant
        .create_timeline(id, 15)
        .await
        .unwrap()
        .finish()
        .await
        .unwrap();
}
