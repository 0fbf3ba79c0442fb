//! Databases: creation by both strategies, drop, and relation maps; tablespaces.

use pageserver_api::reltag::RelTag;
use postgres_ffi::cursor::{Cursor, Truncated};
use postgres_ffi::v15::record::DecodedRecord;
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

/// A database as records name it: its OID, then its tablespace's.
fn read_db(body: &mut Cursor<'_>) -> Result<DbId, Truncated> {
    let dbnode = body.u32()?;
    Ok(DbId {
        spcnode: body.u32()?,
        dbnode,
    })
}

pub(super) async fn ingest<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let mut body = Cursor::new(&cx.record.main_data);
    match cx.record.rmgr_info() {
        rmgr::XLOG_DBASE_CREATE_WAL_LOG => {
            m.create_database(read_db(&mut body).map_err(IngestFault::malformed)?)
                .await?;
        }
        rmgr::XLOG_DBASE_DROP => {
            for db in dropped(&mut body).map_err(IngestFault::malformed)? {
                m.drop_database(db).await?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// `xl_dbase_drop_rec`: the database in each of its tablespaces.
fn dropped(body: &mut Cursor<'_>) -> Result<Vec<DbId>, Truncated> {
    let dbnode = body.u32()?;
    let count = body.u32()? as usize;
    let spcnodes = body.u32s(count)?;
    Ok(spcnodes
        .into_iter()
        .map(|spcnode| DbId { spcnode, dbnode })
        .collect())
}

/// Tablespaces are in the database directory as their database 0, so that one without databases is known, too.
pub(super) async fn ingest_tablespace<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let spcnode = Cursor::new(&cx.record.main_data)
        .u32()
        .map_err(IngestFault::malformed)?;
    let tablespace = DbId { spcnode, dbnode: 0 };
    match cx.record.rmgr_info() {
        rmgr::XLOG_TBLSPC_CREATE => m.create_database(tablespace).await?,
        rmgr::XLOG_TBLSPC_DROP => m.drop_database(tablespace).await?,
        _ => {}
    }
    Ok(())
}

/// `xl_relmap_update`: database, tablespace, length, contents.
pub(super) async fn ingest_relmap<S: ReadStore>(
    m: &mut Modification<'_, S>,
    cx: &Context<'_>,
) -> Result<(), IngestFault> {
    let mut body = Cursor::new(&cx.record.main_data);
    let db = read_db(&mut body).map_err(IngestFault::malformed)?;
    let len = body.u32().map_err(IngestFault::malformed)? as usize;
    if len != RELMAP_LEN || body.left() < RELMAP_LEN {
        return Err(IngestFault::malformed(format!(
            "relation map of {len} bytes, {} are there",
            body.left()
        )));
    }
    let map = cx.record.main_data.slice_ref(&body.rest()[..RELMAP_LEN]);
    Ok(m.put_relmap(db, map).await?)
}

/// `xl_dbase_create_file_copy_rec`: the new database, then its template.
fn copied(raw: &[u8]) -> Result<(DbId, DbId), Truncated> {
    let mut body = Cursor::new(raw);
    Ok((read_db(&mut body)?, read_db(&mut body)?))
}

impl<W: WriteStore> WalIngest<W> {
    /// `CREATE DATABASE … STRATEGY file_copy`: what PostgreSQL does by copying files is done by copying values.
    /// The store has everything before `lsn`.
    pub(super) async fn copy_database(
        &mut self,
        lsn: Lsn,
        record: &DecodedRecord,
    ) -> Result<(), IngestFault> {
        let (to, from) = copied(&record.main_data).map_err(IngestFault::malformed)?;
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
