//! Databases: creation by both strategies, drop, and relation maps; tablespaces.

use pageserver_api::reltag::RelTag;
use postgres_ffi::c_struct::CStruct;
use postgres_ffi::v15::bodies::{
    DbaseCreateFileCopy, DbaseCreateWalLog, DbaseDrop, RelMapUpdate, TablespaceCreate, TablespaceDrop,
};
use postgres_ffi::v15::record_ref::RecordRef;
use postgres_ffi::v15::rmgr;
use utils::lsn::Lsn;

use super::{Context, IngestFault, WalIngest, WriteStore};
use crate::pgdatadir::modification::Modification;
use crate::pgdatadir::{self, DbId};
use crate::timeline::store::ReadStore;

/// Length of a relation map file in bytes (`sizeof(RelMapFile)`).
pub(crate) const RELMAP_LEN: usize = 512;
/// Pages read and put at a time when a database is copied.
const COPY_PAGES: u32 = 256;

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    match cx.record.rmgr_info() {
        rmgr::XLOG_DBASE_CREATE_WAL_LOG => {
            let created = DbaseCreateWalLog::decode(cx.record.main_data)?;
            m.create_database(DbId {
                spcnode: created.tablespace,
                dbnode: created.database,
            })
            .await?;
        }
        rmgr::XLOG_DBASE_DROP => {
            let dropped = DbaseDrop::parse(cx.record.main_data)?;
            for spcnode in dropped.tablespaces {
                m.drop_database(DbId {
                    spcnode,
                    dbnode: dropped.database,
                })
                .await?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Tablespaces are in the database directory as their database 0, so that one without databases is known, too.
pub(super) async fn ingest_tablespace<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let tablespace = |spcnode| DbId { spcnode, dbnode: 0 };
    let raw = cx.record.main_data;
    match cx.record.rmgr_info() {
        rmgr::XLOG_TBLSPC_CREATE => {
            m.create_database(tablespace(TablespaceCreate::parse(raw)?.tablespace))
                .await?;
        }
        rmgr::XLOG_TBLSPC_DROP => {
            m.drop_tablespace(TablespaceDrop::decode(raw)?.tablespace).await?;
        }
        _ => {}
    }
    Ok(())
}

/// A new relation map.
pub(super) async fn ingest_relmap<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let update = RelMapUpdate::parse(cx.record.main_data)?;
    if update.file.len() != RELMAP_LEN {
        return Err(IngestFault::malformed(format!(
            "relation map of {} bytes",
            update.file.len()
        )));
    }
    let db = DbId {
        spcnode: update.tablespace,
        dbnode: update.database,
    };
    Ok(m.put_relmap(db, cx.raw.slice_ref(update.file)).await?)
}

impl<W: WriteStore> WalIngest<W> {
    /// `CREATE DATABASE … STRATEGY file_copy`: what PostgreSQL does by copying files is done by copying values.
    /// The store has everything before `lsn`.
    pub(super) async fn copy_database(
        &mut self,
        lsn: Lsn,
        record: &RecordRef<'_>,
    ) -> Result<(), IngestFault> {
        let copied = DbaseCreateFileCopy::decode(record.main_data)?;
        let to = DbId {
            spcnode: copied.tablespace,
            dbnode: copied.database,
        };
        let from = DbId {
            spcnode: copied.source_tablespace,
            dbnode: copied.source_database,
        };
        let mut m = Modification::new(self.writer.reader(), &mut self.cache, &mut self.batch, lsn);
        m.drop_database(to).await?;
        match pgdatadir::relmap(self.writer.reader(), from, lsn).await? {
            Some(relmap) => m.put_relmap(to, relmap).await?,
            None => m.create_database(to).await?,
        }
        m.finish();
        let rels = pgdatadir::list_rels(self.writer.reader(), from, lsn).await?;
        let sizes = pgdatadir::rel_sizes(self.writer.reader(), &rels, lsn).await?;
        for (rel, size) in rels.into_iter().zip(sizes) {
            let copy = RelTag {
                spcnode: to.spcnode,
                dbnode: to.dbnode,
                ..rel
            };
            self.copy_rel(lsn, rel, copy, size).await?;
        }
        Ok(())
    }

    async fn copy_rel(&mut self, lsn: Lsn, from: RelTag, to: RelTag, size: u32) -> Result<(), IngestFault> {
        let mut m = Modification::new(self.writer.reader(), &mut self.cache, &mut self.batch, lsn);
        m.extend_rel(to, size, |_| true).await?;
        m.finish();
        let mut start = 0;
        while start < size {
            let blocks = start..size.min(start.saturating_add(COPY_PAGES));
            let pages = pgdatadir::rel_pages(self.writer.reader(), from, blocks.clone(), lsn).await?;
            let mut m = Modification::new(self.writer.reader(), &mut self.cache, &mut self.batch, lsn);
            for (block, page) in blocks.clone().zip(pages) {
                m.put_page(to, block, page);
            }
            m.finish();
            if self.batch.values.len() >= COPY_PAGES as usize {
                self.put().await.map_err(IngestFault::Write)?;
            }
            start = blocks.end;
        }
        Ok(())
    }
}
