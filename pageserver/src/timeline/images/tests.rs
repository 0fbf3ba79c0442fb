use pageserver_api::tenant_config::TenantConfigOverrides;
use utils::lsn::RecordLsn;

use super::*;
use crate::pgdatadir::cache::MetadataCache;
use crate::pgdatadir::modification::Modification;
use crate::server::testing::{REL, START, TestServer};
use crate::timeline::{ReadStore, WriteBatch};

#[tokio::test]
async fn a_relation_without_blocks_keeps_its_size() {
    let server = TestServer::start().await;
    let settings = TenantConfigOverrides {
        compaction_threshold: Some(1),
        image_creation_threshold: Some(1),
        ..Default::default()
    };
    server.tenant.set_overrides(settings).await.unwrap();
    let timeline = server.timeline(3).await;
    let empty = RelTag {
        relnode: REL.relnode + 1,
        ..REL
    };
    let lsn = Lsn(START.0 + 8);
    let mut writer = timeline.writer().await;
    let (mut cache, mut batch) = (MetadataCache::default(), WriteBatch::default());
    let mut modification = Modification::new(&*timeline, &mut cache, &mut batch, lsn);
    modification.create_rel(empty).await.unwrap();
    modification.finish();
    writer.put(batch).await.unwrap();
    writer.advance(RecordLsn {
        last: lsn,
        prev: START,
    });
    drop(writer);
    timeline.flush().await.unwrap();
    timeline.compact().await.unwrap();
    let images_at = |name: &LayerFileName| !name.is_delta() && name.lsn_range().start == lsn;
    assert!(timeline.layer_names().iter().any(|(name, _)| images_at(name)));
    for (rel, want) in [(empty, 0_u32), (REL, 3)] {
        let size = timeline.get(rel_size_key(rel), lsn).await.unwrap();
        assert_eq!(size.as_deref(), Some(&want.to_le_bytes()[..]), "{rel:?}");
    }
}
