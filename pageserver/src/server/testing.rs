//! A server in a temporary directory, for tests of the services.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pageserver_api::reltag::{Fork, RelTag};
use utils::id::{TenantId, TenantTimelineId, TimelineId};
use utils::lsn::{Lsn, RecordLsn};

use super::Server;
use crate::config::ConfigDocument;
use crate::context::{StoreContext, StoreLimits};
use crate::import::{ClusterTemplate, Initdb};
use crate::pgdatadir::DbId;
use crate::pgdatadir::cache::MetadataCache;
use crate::pgdatadir::modification::Modification;
use crate::tenant::{Tenant, TenantManager, TenantManagerConfig, TimelineListener};
use crate::timeline::{Timeline, WriteBatch};
use crate::walreceiver::WalReceivers;

/// A relation of the test timelines.
pub const REL: RelTag = RelTag {
    spcnode: 1663,
    dbnode: 5,
    relnode: 16384,
    fork: Fork::Main,
};
/// Where test timelines start.
pub const START: Lsn = Lsn(0x100);

/// A server with one tenant.
pub struct TestServer {
    /// The server.
    pub server: Arc<Server>,
    /// Its tenant.
    pub tenant: Arc<Tenant>,
    _directory: tempfile::TempDir,
}

impl TestServer {
    /// A server with the default settings and a short time to wait for WAL.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A server with these overrides of its settings.
    pub async fn start_with(overrides: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut all = vec!["id=1".to_owned(), "wait_lsn_timeout='200 ms'".to_owned()];
        all.extend(overrides.iter().map(|text| (*text).to_owned()));
        let document = ConfigDocument::initial(directory.path(), &all).unwrap();
        let server = make(directory.path(), document).await;
        let id = TenantId::generate();
        let tenant = server
            .tenants
            .create_tenant(id, Default::default())
            .await
            .unwrap();
        TestServer {
            server,
            tenant,
            _directory: directory,
        }
    }

    /// A timeline whose database has [`REL`] with `blocks` pages, each full of its number.
    pub async fn timeline(&self, blocks: u8) -> Arc<Timeline> {
        let id = TimelineId::generate();
        let unfinished = self.tenant.create_timeline(id, 15).await.unwrap();
        put(unfinished.timeline(), START, 0..blocks, |block| block).await;
        unfinished.finish().await.unwrap()
    }

    /// Tenant and timeline.
    pub fn id(&self, timeline: &Timeline) -> TenantTimelineId {
        TenantTimelineId::new(self.tenant.id, timeline.timeline_id)
    }
}

async fn make(workdir: &Path, document: ConfigDocument) -> Arc<Server> {
    let config = document.settings().unwrap();
    // Nobody is there; the receivers go on trying.
    let broker = broker::Broker::connect(&config.broker).await.unwrap();
    let receivers = Arc::new(WalReceivers::new(broker, None));
    let limits = StoreLimits {
        wait_lsn_timeout: Duration::from_millis(200),
        ..Default::default()
    };
    let tenants = Arc::new(TenantManager::new(TenantManagerConfig {
        workdir: workdir.to_owned(),
        default_tenant_config: config.tenant_config.clone(),
        context: StoreContext::new(&limits),
        listener: Arc::clone(&receivers) as Arc<dyn TimelineListener>,
    }));
    let initdb = Initdb {
        bin_dir: "/usr/lib/postgresql/15/bin".into(),
        lib_dir: None,
        account: "postgres".to_owned(),
        superuser: config.superuser.clone(),
    };
    Arc::new(Server {
        template: ClusterTemplate::new(workdir, initdb),
        config,
        tenants,
        receivers,
        auth: None,
    })
}

/// Writes pages of [`REL`] at `lsn`, and makes them visible.
pub async fn put(
    timeline: &Arc<Timeline>,
    lsn: Lsn,
    blocks: std::ops::Range<u8>,
    contents: impl Fn(u8) -> u8,
) {
    let mut writer = timeline.writer().await;
    let (mut cache, mut batch) = (MetadataCache::default(), WriteBatch::default());
    let mut m = Modification::new(&**timeline, &mut cache, &mut batch, lsn);
    if lsn == START {
        m.init_empty();
        let db = DbId {
            spcnode: REL.spcnode,
            dbnode: REL.dbnode,
        };
        m.create_database(db).await.unwrap();
        m.create_rel(REL).await.unwrap();
    }
    m.extend_rel(REL, blocks.end.into(), |_| true).await.unwrap();
    for block in blocks {
        m.put_page(REL, block.into(), Bytes::from(vec![contents(block); 8192]));
    }
    m.finish();
    writer.put(batch).await.unwrap();
    let prev = timeline.last_record().last;
    writer.advance(RecordLsn { last: lsn, prev });
}
