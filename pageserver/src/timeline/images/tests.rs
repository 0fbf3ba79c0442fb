use std::time::Duration;

use pageserver_api::layer_name::LayerFileName;
use pageserver_api::tenant_config::TenantConfigOverrides;
use utils::lsn::RecordLsn;

use super::*;
use crate::pgdatadir::cache::MetadataCache;
use crate::pgdatadir::modification::Modification;
use crate::server::testing::{REL, START, TestServer, put};
use crate::timeline::{ReadStore, WriteBatch};

/// One of those that [`create_rels`] creates.
fn created_rel(number: u32) -> RelTag {
    RelTag {
        relnode: REL.relnode + 1 + number,
        ..REL
    }
}

/// Creates relations without blocks, all at the LSN returned, and writes them out.
async fn create_rels(timeline: &Arc<Timeline>, count: u32) -> Lsn {
    let lsn = Lsn(START.0 + 8);
    let mut writer = timeline.writer().await;
    let (mut cache, mut batch) = (MetadataCache::default(), WriteBatch::default());
    let mut modification = Modification::new(&**timeline, &mut cache, &mut batch, lsn);
    for number in 0..count {
        modification.create_rel(created_rel(number)).await.unwrap();
    }
    modification.finish();
    writer.put(batch).await.unwrap();
    writer.advance(RecordLsn {
        last: lsn,
        prev: START,
    });
    drop(writer);
    timeline.flush().await.unwrap();
    lsn
}

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
    let lsn = create_rels(&timeline, 1).await;
    let empty = created_rel(0);
    timeline.compact().await.unwrap();
    let images_at = |name: &LayerFileName| !name.is_delta() && name.lsn_range().start == lsn;
    assert!(timeline.layer_names().iter().any(|(name, _)| images_at(name)));
    for (rel, want) in [(empty, 0_u32), (REL, 3)] {
        let size = timeline.get(rel_size_key(rel), lsn).await.unwrap();
        assert_eq!(size.as_deref(), Some(&want.to_le_bytes()[..]), "{rel:?}");
    }
}

/// A timeline with files of `kib` KiB, which the number of layers alone gives no images.
async fn small_files(server: &TestServer, compaction_threshold: usize, kib: u64) -> Arc<Timeline> {
    let settings = TenantConfigOverrides {
        compaction_threshold: Some(compaction_threshold),
        compaction_target_size: Some(kib * 1024),
        image_creation_threshold: Some(100),
        ..Default::default()
    };
    server.tenant.set_overrides(settings).await.unwrap();
    server.timeline(3).await
}

/// Level 0 layers, other deltas, and images above the first.
fn counts(timeline: &Timeline) -> (usize, usize, usize) {
    let names = timeline.layer_names();
    let l0 = names.iter().filter(|(name, _)| name.is_l0()).count();
    let images = |name: &LayerFileName| !name.is_delta() && name.lsn_range().start > START;
    let images = names.iter().filter(|(name, _)| images(name)).count();
    let deltas = names.iter().filter(|(name, _)| name.is_delta()).count();
    (l0, deltas - l0, images)
}

#[tokio::test]
async fn a_load_gets_images_once_it_is_at_rest() {
    let server = TestServer::start().await;
    let timeline = small_files(&server, 100, 256).await;
    for step in 1..3 {
        put(&timeline, Lsn(START.0 + 8 * step), 0..200, |block| {
            block + step as u8
        })
        .await;
        timeline.flush().await.unwrap();
        timeline.compact().await.unwrap();
        assert_eq!(counts(&timeline), (step as usize, 0, 0), "more is to be expected");
    }
    timeline.compact().await.unwrap();
    let (l0, deltas, images) = counts(&timeline);
    assert_eq!(l0, 0);
    assert!(deltas > 1 && images > 0, "{deltas} deltas, {images} images");
    for (lsn, plus) in [(START.0 + 8, 1), (START.0 + 16, 2)] {
        for block in 0..200 {
            let page = crate::pgdatadir::rel_page(&*timeline, REL, block, Lsn(lsn))
                .await
                .unwrap();
            assert!(page[..] == [block as u8 + plus; 8192], "block {block} at {lsn:X}");
        }
    }
    timeline.compact().await.unwrap();
    assert_eq!(
        counts(&timeline),
        (0, deltas, images),
        "there is nothing more to do"
    );
}

#[tokio::test]
async fn the_end_of_a_load_joins_it_from_memory() {
    let server = TestServer::start().await;
    let timeline = small_files(&server, 100, 256).await;
    put(&timeline, Lsn(START.0 + 8), 0..200, |block| block).await;
    timeline.flush().await.unwrap();
    timeline.compact().await.unwrap();
    let end = Lsn(START.0 + 16);
    put(&timeline, end, 0..200, |block| block + 1).await;
    timeline.compact().await.unwrap();
    let written = timeline
        .disk_consistent
        .wait_for(end, Duration::from_secs(10))
        .await;
    written.expect("it was frozen, so it is written out");
    for _ in 0..2 {
        assert_eq!(counts(&timeline), (2, 0, 0));
        timeline.compact().await.unwrap();
    }
    let (l0, _, images) = counts(&timeline);
    assert_eq!(l0, 0);
    let at_end = |(name, _): &(LayerFileName, u64)| !name.is_delta() && name.lsn_range().start == end;
    assert!(images > 0 && timeline.layer_names().iter().any(at_end));
}

#[tokio::test]
async fn changes_here_and_there_wait_for_more_layers() {
    let server = TestServer::start().await;
    let timeline = small_files(&server, 100, 16).await;
    create_rels(&timeline, 1000).await;
    let heavy_enough =
        timeline.layers.load().files.l0()[0].file_len() > timeline.config().compaction_target_size;
    assert!(heavy_enough, "or else this would prove nothing");
    for _ in 0..3 {
        timeline.compact().await.unwrap();
        assert_eq!(counts(&timeline), (1, 0, 0));
    }
}

#[tokio::test]
async fn no_file_is_stretched_over_what_has_not_changed() {
    let server = TestServer::start().await;
    let timeline = small_files(&server, 1, 64).await;
    let key = |block| pageserver_api::key::rel_block_key(REL, block);
    put(&timeline, Lsn(START.0 + 8), 100..140, |block| block).await;
    timeline.flush().await.unwrap();
    timeline.compact().await.unwrap();
    let covering = |timeline: &Timeline| {
        let names = timeline.layer_names();
        let covers = |name: &LayerFileName| name.is_delta() && name.key_range().contains(&key(110));
        names.iter().filter(|(name, _)| covers(name)).count()
    };
    assert_eq!(covering(&timeline), 1);
    for (step, blocks) in [(2, 0..3), (3, 200..203)] {
        put(&timeline, Lsn(START.0 + 8 * step), blocks, |block| block).await;
    }
    timeline.flush().await.unwrap();
    timeline.compact().await.unwrap();
    assert_eq!(covering(&timeline), 1, "{:?}", timeline.layer_names());
}
