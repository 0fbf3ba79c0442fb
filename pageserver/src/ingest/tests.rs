//! Single records on the model store. What whole workloads leave is compared with real servers in `tests/differential`.

use bytes::Bytes;
use pageserver_api::key;
use pageserver_api::reltag::{Fork, RelTag, SlruKind};
use postgres_ffi::c_struct::{CStruct, CValue};
use postgres_ffi::v15::bodies::SmgrTruncate;
use postgres_ffi::v15::checkpoint::CheckPoint;
use postgres_ffi::v15::encode::encode_record;
use postgres_ffi::v15::record::{Block, BlockImage, DecodedRecord, ImageCompression, RecordHeader};
use postgres_ffi::v15::relfile::RelFileNode;
use postgres_ffi::v15::{BLCKSZ, page};

use super::*;
use crate::pgdatadir::modification::RelNode;
use crate::pgdatadir::zero_page;

const REL: RelNode = RelNode {
    spcnode: 1663,
    dbnode: 5,
    relnode: 16384,
};
const START: RecordLsn = RecordLsn {
    last: Lsn(0x1000),
    prev: Lsn(0xf80),
};

/// A store with the values every timeline has.
async fn new_store() -> Arc<MemoryStore> {
    let mut store = Arc::new(MemoryStore::default());
    let (mut cache, mut batch) = (MetadataCache::default(), WriteBatch::default());
    let mut m = Modification::new(&*store, &mut cache, &mut batch, START.last);
    m.init_empty();
    m.put_checkpoint(
        CheckPoint {
            next_xid: 700,
            ..CheckPoint::get(&[0; 88])
        }
        .encode()
        .into(),
    );
    m.finish();
    WriteStore::put(&mut store, batch).await.unwrap();
    store
}

struct Fixture {
    store: Arc<MemoryStore>,
    ingest: WalIngest<Arc<MemoryStore>>,
}

impl Fixture {
    async fn new() -> Self {
        let store = new_store().await;
        let ingest = WalIngest::new(Arc::clone(&store), START).await.unwrap();
        Fixture { store, ingest }
    }

    /// Ingests a record right behind the last one, and commits.
    async fn ingest(&mut self, record: DecodedRecord) -> Result<Lsn, IngestError> {
        let prev = self.ingest.at().last;
        let raw = Bytes::from(encode_record(&record));
        let last = Lsn(prev.0 + raw.len() as u64).align_up();
        self.ingest.ingest_record(RecordLsn { last, prev }, raw).await?;
        self.ingest.commit().await.unwrap();
        Ok(last)
    }

    async fn size(&self, fork: Fork) -> Option<u32> {
        pgdatadir::rel_size(&*self.store, REL.fork(fork), Lsn::MAX)
            .await
            .unwrap()
    }

    async fn page(&self, block: u32) -> Bytes {
        pgdatadir::rel_page(&*self.store, REL.fork(Fork::Main), block, Lsn::MAX)
            .await
            .unwrap()
    }
}

fn record(rmid: u8, info: u8, main_data: &[u8]) -> DecodedRecord {
    DecodedRecord {
        header: RecordHeader {
            rmid,
            info,
            xid: 700,
            ..Default::default()
        },
        blocks: Default::default(),
        main_data: Bytes::copy_from_slice(main_data),
        origin_id: 0,
        toplevel_xid: None,
    }
}

/// A block reference; with an image of `tag` in every byte but the page header if one is given.
fn block(id: u8, blkno: u32, image: Option<u8>) -> Block {
    let image = image.map(|tag| {
        let mut page = [tag; BLCKSZ];
        page::init(&mut page, 0);
        page[page::HEADER_LEN..].fill(tag);
        BlockImage {
            data: Bytes::copy_from_slice(&page),
            compression: ImageCompression::None,
            hole_offset: 0,
            hole_length: 0,
            apply: true,
        }
    });
    let RelNode {
        spcnode,
        dbnode,
        relnode,
    } = REL;
    Block {
        id,
        spcnode,
        dbnode,
        relnode,
        forknum: 0,
        blkno,
        will_init: false,
        image,
        data: Bytes::new(),
    }
}

fn images(blocks: &[(u32, u8)]) -> DecodedRecord {
    let mut images = record(rmgr::RM_XLOG_ID, rmgr::XLOG_FPI, &[]);
    images.blocks = (0..)
        .zip(blocks)
        .map(|(id, (blkno, tag))| block(id, *blkno, Some(*tag)))
        .collect();
    images
}

#[tokio::test]
async fn an_unknown_record_is_an_error_that_names_it_and_its_lsn() {
    let mut fixture = Fixture::new().await;
    for (rmid, info, name) in [
        (rmgr::RM_HEAP2_ID, 0xf0, "Heap2/0xf0"),
        (128, 0x10, "rmgr 128/0x10"),
        (rmgr::RM_SMGR_ID, 0x70, "Storage/0x70"),
    ] {
        let error = fixture.ingest(record(rmid, info, &[0; 40])).await.unwrap_err();
        assert_eq!(error.name, name);
        assert!(
            error.lsn > START.last && matches!(error.cause, IngestFault::Unknown { .. }),
            "{error:?}"
        );
        fixture = Fixture::new().await;
    }
}

#[tokio::test]
async fn truncated_bodies_are_errors() {
    for kind in rmgr::RECORD_KINDS
        .iter()
        .filter(|kind| kind.rmid <= rmgr::RM_RELMAP_ID)
    {
        for len in 0..3 {
            let mut fixture = Fixture::new().await;
            // An error or, where the body does not matter, nothing; never a panic.
            let _ = fixture
                .ingest(record(kind.rmid, kind.info, &vec![0xff; len]))
                .await;
        }
    }
}

#[tokio::test]
async fn blocks_that_a_record_passes_over_read_as_zeros() {
    let mut fixture = Fixture::new().await;
    let lsn = fixture.ingest(images(&[(5, 1), (2, 2)])).await.unwrap();
    assert_eq!(fixture.size(Fork::Main).await, Some(6));
    for number in [0, 1, 3, 4] {
        assert_eq!(fixture.page(number).await, zero_page(), "block {number}");
    }
    for (number, tag) in [(5, 1), (2, 2)] {
        let page = fixture.page(number).await;
        assert!(page[page::HEADER_LEN..].iter().all(|byte| *byte == tag));
        assert_eq!(page::lsn(page[..].try_into().unwrap()), lsn);
    }
    let versions = fixture.store.versions();
    let at_lsn = versions.iter().filter(|(_, at, _)| *at == lsn).count();
    // Six blocks, the size, the directory entry, the directory of databases, the checkpoint.
    assert_eq!(at_lsn, 10);
    assert_eq!(fixture.ingest.take_grown_blocks(), 6);
}

#[tokio::test]
async fn a_change_of_a_block_that_does_not_exist_is_passed_over() {
    let mut fixture = Fixture::new().await;
    let mut delete = record(rmgr::RM_HEAP_ID, rmgr::XLOG_HEAP_DELETE, &[0; 8]);
    delete.blocks.push(block(0, 3, None));
    fixture.ingest(delete.clone()).await.unwrap();
    assert_eq!(fixture.size(Fork::Main).await, None);
    fixture.ingest(images(&[(0, 1)])).await.unwrap();
    let lsn = fixture.ingest(delete).await.unwrap();
    assert_eq!(fixture.size(Fork::Main).await, Some(1));
    assert!(fixture.store.versions().iter().all(|(_, at, _)| *at != lsn));
}

#[tokio::test]
async fn an_image_for_consistency_checking_is_no_page() {
    let mut fixture = Fixture::new().await;
    fixture.ingest(images(&[(0, 1)])).await.unwrap();
    let mut delete = record(rmgr::RM_HEAP_ID, rmgr::XLOG_HEAP_DELETE, &[0; 8]);
    delete.blocks.push(block(0, 0, Some(9)));
    delete.blocks[0].image.as_mut().unwrap().apply = false;
    let lsn = fixture.ingest(delete).await.unwrap();
    let key = key::rel_block_key(REL.fork(Fork::Main), 0);
    let versions = fixture.store.versions();
    let (.., value) = versions
        .iter()
        .find(|(k, at, _)| *k == key && *at == lsn)
        .unwrap();
    assert!(!value.will_init(), "{value:?}");
}

#[tokio::test]
async fn truncation_cuts_and_later_growth_shows_zeros() {
    let mut fixture = Fixture::new().await;
    fixture
        .ingest(images(&[(0, 1), (1, 1), (2, 1), (3, 1)]))
        .await
        .unwrap();
    let RelNode {
        spcnode,
        dbnode,
        relnode,
    } = REL;
    let cut = SmgrTruncate {
        blocks: 1,
        relation: RelFileNode {
            spcnode,
            dbnode,
            relnode,
        },
        flags: 7,
    };
    fixture
        .ingest(record(rmgr::RM_SMGR_ID, rmgr::XLOG_SMGR_TRUNCATE, &cut.encode()))
        .await
        .unwrap();
    assert_eq!(fixture.size(Fork::Main).await, Some(1));
    fixture.ingest(images(&[(3, 2)])).await.unwrap();
    assert_eq!(fixture.page(2).await, zero_page());
    assert_eq!(fixture.page(3).await[page::HEADER_LEN], 2);
    assert_eq!(
        (fixture.size(Fork::Vm).await, fixture.size(Fork::Fsm).await),
        (None, None)
    );
}

#[tokio::test]
async fn a_commit_sets_one_value_per_clog_page_and_drops_relations() {
    let mut fixture = Fixture::new().await;
    for page in 0u32..2 {
        let zero = record(rmgr::RM_CLOG_ID, rmgr::CLOG_ZEROPAGE, &page.to_le_bytes());
        fixture.ingest(zero).await.unwrap();
    }
    fixture.ingest(images(&[(0, 1)])).await.unwrap();
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    // Time, xinfo (subtransactions, relations), then both.
    let body = words(&[1, 0, 6, 2, 701, 32769, 1, REL.spcnode, REL.dbnode, REL.relnode]);
    let info = rmgr::XLOG_XACT_COMMIT | rmgr::XLOG_XACT_HAS_INFO;
    let lsn = fixture
        .ingest(record(rmgr::RM_XACT_ID, info, &body))
        .await
        .unwrap();
    assert_eq!(fixture.size(Fork::Main).await, None);
    for (block, at, byte) in [(0, 700 / 4, 0b0101), (1, 0, 0b0100)] {
        let page = pgdatadir::slru_page(&*fixture.store, SlruKind::Clog, 0, block, lsn)
            .await
            .unwrap()
            .unwrap();
        assert_eq!((page[at], page.len()), (byte, BLCKSZ + 8), "page {block}");
    }
    let checkpoint = pgdatadir::checkpoint(&*fixture.store, lsn).await.unwrap();
    assert_eq!(CheckPoint::decode(&checkpoint).unwrap().next_xid, 32770);
}

#[tokio::test]
async fn a_later_ingest_goes_on_where_the_first_one_was_dropped() {
    let mut fixture = Fixture::new().await;
    fixture.ingest(images(&[(0, 1), (1, 1)])).await.unwrap();
    let at = fixture.ingest.at();
    fixture.ingest = WalIngest::new(Arc::clone(&fixture.store), at).await.unwrap();
    fixture.ingest(images(&[(4, 2)])).await.unwrap();
    assert_eq!(fixture.size(Fork::Main).await, Some(5));
    assert_eq!(fixture.ingest.take_grown_blocks(), 3);
    let rel = RelTag {
        fork: Fork::Init,
        ..REL.fork(Fork::Main)
    };
    assert!(
        !pgdatadir::rel_exists(&*fixture.store, rel, Lsn::MAX)
            .await
            .unwrap()
    );
}

/// A non-transactional logical message as an extension writes it.
fn message(database: u32, prefix: &[u8], message: &[u8]) -> DecodedRecord {
    let mut main_data = Vec::new();
    main_data.extend(u64::from(database).to_le_bytes());
    main_data.extend((prefix.len() as u64 + 1).to_le_bytes());
    main_data.extend((message.len() as u64).to_le_bytes());
    main_data.extend([prefix, &[0], message].concat());
    record(rmgr::RM_LOGICALMSG_ID, 0, &main_data)
}

#[tokio::test]
async fn auxiliary_files_are_replaced_and_removed_as_a_group() {
    let mut fixture = Fixture::new().await;
    let file = |contents: &[u8]| [b"pg_stat/pgstat.stat\0\x03\0\0\0", contents].concat();
    let prefix = b"neon-files:statistics";
    let first = fixture.ingest(message(0, prefix, &file(b"old"))).await.unwrap();
    let second = fixture.ingest(message(0, prefix, &file(b"new"))).await.unwrap();
    // A user's message, and somebody else's.
    fixture.ingest(message(5, prefix, b"")).await.unwrap();
    fixture.ingest(message(0, b"other", b"x")).await.unwrap();
    let contents = async |lsn| -> Vec<Bytes> {
        let groups = pgdatadir::aux_file_groups(&*fixture.store, lsn).await.unwrap();
        groups
            .into_iter()
            .flat_map(|group| group.files)
            .map(|file| file.contents)
            .collect()
    };
    assert_eq!(contents(first).await, ["old"]);
    assert_eq!(contents(second).await, ["new"]);
    assert_eq!(contents(Lsn::MAX).await, ["new"]);
    let removed = fixture.ingest(message(0, prefix, b"")).await.unwrap();
    let groups = pgdatadir::aux_file_groups(&*fixture.store, removed)
        .await
        .unwrap();
    assert_eq!(groups, []);
    let elsewhere = message(0, b"neon-files:x", b"global/pg_control\0\0\0\0\0");
    let error = fixture.ingest(elsewhere).await.unwrap_err();
    assert!(error.cause.to_string().contains("global/pg_control"), "{error:?}");
}

fn commit_with_origin(origin: u16, remote_lsn: u64) -> DecodedRecord {
    let mut main_data = vec![0; 8];
    main_data.extend((1_u32 << 5).to_le_bytes());
    main_data.extend(remote_lsn.to_le_bytes());
    main_data.extend([0; 8]);
    DecodedRecord {
        origin_id: origin,
        ..record(rmgr::RM_XACT_ID, 0x80, &main_data)
    }
}

#[tokio::test]
async fn origins_move_with_commits_and_go_when_dropped() {
    let mut fixture = Fixture::new().await;
    let origins = async |fixture: &Fixture| -> Vec<(u16, u64)> {
        let found = pgdatadir::repl_origins(&*fixture.store, Lsn::MAX).await.unwrap();
        found.into_iter().map(|(origin, lsn)| (origin, lsn.0)).collect()
    };
    fixture.ingest(commit_with_origin(3, 0x500)).await.unwrap();
    fixture.ingest(commit_with_origin(7, 0x100)).await.unwrap();
    fixture.ingest(commit_with_origin(3, 0x400)).await.unwrap();
    assert_eq!(origins(&fixture).await, [(3, 0x500), (7, 0x100)]);
    let set = |force: u8| [&0x200_u64.to_le_bytes()[..], &[3, 0, force, 0, 0, 0, 0, 0]].concat();
    let set = |force| record(rmgr::RM_REPLORIGIN_ID, rmgr::XLOG_REPLORIGIN_SET, &set(force));
    fixture.ingest(set(0)).await.unwrap();
    assert_eq!(origins(&fixture).await, [(3, 0x500), (7, 0x100)]);
    fixture.ingest(set(1)).await.unwrap();
    assert_eq!(origins(&fixture).await, [(3, 0x200), (7, 0x100)]);
    let drop = record(rmgr::RM_REPLORIGIN_ID, rmgr::XLOG_REPLORIGIN_DROP, &[7, 0]);
    fixture.ingest(drop).await.unwrap();
    assert_eq!(origins(&fixture).await, [(3, 0x200)]);
}
