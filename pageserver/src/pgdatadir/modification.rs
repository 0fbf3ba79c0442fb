//! The changes of one WAL record (or of an import) to PostgreSQL's objects, turned into values.
//!
//! Changes are collected and become values in [`Modification::finish`]: a relation that grows by 32 blocks in
//! one record gets one new size. A modification that was begun must be finished, or the cache thrown away.

use bytes::Bytes;
use pageserver_api::key;
use pageserver_api::reltag::{Fork, RelTag, SlruKind};
use pageserver_api::value::{Value, WalRecord};
use smallvec::SmallVec;
use utils::lsn::Lsn;

use super::DataError;
use super::aux_files::AuxFileGroup;
use super::cache::{MetadataCache, RelState};
use super::directory::{DbId, NumberSet};
use super::read::{self, KEYS_PER_READ_MAX, decode_entry, zero_page};
use super::repl_origins::ReplOrigins;
use crate::timeline::reconstruct;
use crate::timeline::store::{ReadStore, WriteBatch};

/// A relation without its fork, as WAL names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct RelNode {
    /// Tablespace OID.
    pub spcnode: u32,
    /// Database OID.
    pub dbnode: u32,
    /// Relation number.
    pub relnode: u32,
}

impl RelNode {
    /// One fork of it.
    pub fn fork(self, fork: Fork) -> RelTag {
        RelTag {
            spcnode: self.spcnode,
            dbnode: self.dbnode,
            relnode: self.relnode,
            fork,
        }
    }
}

/// A new position of a replication origin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OriginMove {
    /// Where it is if that is further than before.
    Forward(Lsn),
    /// Where it is from now on.
    To(Lsn),
}

/// The changes of one record in the making; see the module head.
pub struct Modification<'a, S> {
    store: &'a S,
    cache: &'a mut MetadataCache,
    batch: &'a mut WriteBatch,
    lsn: Lsn,
    /// Forks whose size changed; may hold a fork more than once.
    resized: SmallVec<[RelTag; 4]>,
    databases_changed: bool,
    prepared_changed: bool,
    slrus_changed: SmallVec<[SlruKind; 1]>,
}

impl<'a, S: ReadStore> Modification<'a, S> {
    /// Begins to collect the changes made at `lsn`. `store` has everything up to `lsn` that is not in `batch`,
    /// and of what is in `batch` the cache knows the sizes and directories.
    pub fn new(store: &'a S, cache: &'a mut MetadataCache, batch: &'a mut WriteBatch, lsn: Lsn) -> Self {
        Modification {
            store,
            cache,
            batch,
            lsn,
            resized: SmallVec::new(),
            databases_changed: false,
            prepared_changed: false,
            slrus_changed: SmallVec::new(),
        }
    }

    /// The LSN all changes are made at.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    fn image(&mut self, key: key::Key, value: impl Into<Bytes>) {
        self.batch.put(key, self.lsn, Value::Image(value.into()));
    }

    /// Number of blocks of the fork; `None` if it does not exist.
    pub async fn rel_size(&mut self, rel: RelTag) -> Result<Option<u32>, DataError> {
        match self.cache.rel(rel) {
            Some(state) => Ok(state),
            None => self.load_rel(rel).await,
        }
    }

    #[cold]
    async fn load_rel(&mut self, rel: RelTag) -> Result<RelState, DataError> {
        let state = read::rel_size(self.store, rel, self.lsn).await?;
        self.cache.set_rel(rel, state);
        Ok(state)
    }

    fn resize(&mut self, rel: RelTag, before: u32, blocks: u32) {
        self.cache.grown_blocks += i64::from(blocks) - i64::from(before);
        self.cache.set_rel(rel, Some(blocks));
        if self.resized.last() != Some(&rel) {
            self.resized.push(rel);
        }
    }

    /// Makes the fork, empty, unless it exists. No record tells of a database's first relation in another tablespace.
    pub async fn create_rel(&mut self, rel: RelTag) -> Result<(), DataError> {
        if self.rel_size(rel).await?.is_none() {
            self.create_database(DbId {
                spcnode: rel.spcnode,
                dbnode: rel.dbnode,
            })
            .await?;
            self.image(key::rel_dir_entry_key(rel), vec![1]);
            self.resize(rel, 0, 0);
        }
        Ok(())
    }

    /// Lets the fork have at least `blocks` blocks, and makes it if need be. Blocks that are added read as zeros
    /// until they are written; `written` tells which of them the caller is about to write.
    pub async fn extend_rel(
        &mut self,
        rel: RelTag,
        blocks: u32,
        written: impl Fn(u32) -> bool,
    ) -> Result<(), DataError> {
        let size = self.rel_size(rel).await?;
        let before = size.unwrap_or(0);
        if size.is_none() {
            self.create_rel(rel).await?;
        }
        if blocks > before {
            for block in (before..blocks).filter(|block| !written(*block)) {
                self.image(key::rel_block_key(rel, block), zero_page());
            }
            self.resize(rel, before, blocks);
        }
        Ok(())
    }

    /// Cuts the fork to at most `blocks` blocks.
    pub async fn truncate_rel(&mut self, rel: RelTag, blocks: u32) -> Result<(), DataError> {
        match self.rel_size(rel).await? {
            Some(before) if before > blocks => self.resize(rel, before, blocks),
            _ => {}
        }
        Ok(())
    }

    /// Stores a page. The fork must have the block by the time the modification is finished.
    pub fn put_page(&mut self, rel: RelTag, block: u32, page: Bytes) {
        self.image(key::rel_block_key(rel, block), page);
    }

    /// Stores a change to a page; the same rule as for [`Modification::put_page`].
    pub fn put_record(&mut self, rel: RelTag, block: u32, record: WalRecord) {
        self.batch
            .put(key::rel_block_key(rel, block), self.lsn, Value::WalRecord(record));
    }

    /// Drops all forks of the relations; those that do not exist are passed over.
    pub async fn drop_rels(&mut self, rels: &[RelNode]) -> Result<(), DataError> {
        let forks = rels.iter().flat_map(|rel| Fork::ALL.map(|fork| rel.fork(fork)));
        let unknown: Vec<RelTag> = forks
            .clone()
            .filter(|rel| self.cache.rel(*rel).is_none())
            .collect();
        for chunk in unknown.chunks(KEYS_PER_READ_MAX) {
            self.load_rels(chunk).await?;
        }
        for rel in forks {
            self.drop_rel(rel).await?;
        }
        Ok(())
    }

    async fn drop_rel(&mut self, rel: RelTag) -> Result<(), DataError> {
        if let Some(before) = self.rel_size(rel).await? {
            self.resize(rel, before, 0);
            self.cache.set_rel(rel, None);
            self.image(key::rel_dir_entry_key(rel), vec![0]);
        }
        Ok(())
    }

    /// Learns sizes of forks that are not in the cache, in two traversals.
    async fn load_rels(&mut self, rels: &[RelTag]) -> Result<(), DataError> {
        let entries: Vec<_> = rels.iter().map(|rel| key::rel_dir_entry_key(*rel)).collect();
        let found = self.store.get_many(&entries, self.lsn).await?;
        let mut existing = Vec::new();
        for ((rel, key), raw) in rels.iter().zip(&entries).zip(found) {
            match raw {
                Some(raw) if decode_entry(*key, self.lsn, &raw)? => existing.push(*rel),
                _ => self.cache.set_rel(*rel, None),
            }
        }
        let sizes = read::rel_sizes(self.store, &existing, self.lsn).await?;
        for (rel, size) in existing.into_iter().zip(sizes) {
            self.cache.set_rel(rel, Some(size));
        }
        Ok(())
    }

    async fn load_databases(&mut self) -> Result<(), DataError> {
        if self.cache.databases.is_none() {
            self.cache.databases = Some(read::databases(self.store, self.lsn).await?);
        }
        Ok(())
    }

    /// Puts the database into the directory; does nothing if it is there.
    pub async fn create_database(&mut self, db: DbId) -> Result<(), DataError> {
        self.load_databases().await?;
        let databases = self.cache.databases.as_mut().expect("loaded above");
        databases.dbs.entry(db).or_insert_with(|| {
            self.databases_changed = true;
            false
        });
        Ok(())
    }

    /// Stores the relation map of a database, and puts the database into the directory if need be.
    pub async fn put_relmap(&mut self, db: DbId, relmap: Bytes) -> Result<(), DataError> {
        self.load_databases().await?;
        self.image(key::relmap_key(db.spcnode, db.dbnode), relmap);
        let databases = self.cache.databases.as_mut().expect("loaded above");
        self.databases_changed |= databases.dbs.insert(db, true) != Some(true);
        Ok(())
    }

    /// Drops a database in one tablespace with all its relations, those of the current batch included.
    pub async fn drop_database(&mut self, db: DbId) -> Result<(), DataError> {
        self.load_databases().await?;
        let mut rels = read::list_rels(self.store, db, self.lsn).await?;
        rels.extend(
            self.cache
                .known_rels(|rel| rel.spcnode == db.spcnode && rel.dbnode == db.dbnode),
        );
        rels.sort_unstable();
        rels.dedup();
        let unknown: Vec<RelTag> = rels
            .iter()
            .copied()
            .filter(|rel| self.cache.rel(*rel).is_none())
            .collect();
        for chunk in unknown.chunks(KEYS_PER_READ_MAX) {
            self.load_rels(chunk).await?;
        }
        for rel in rels {
            self.drop_rel(rel).await?;
        }
        let databases = self.cache.databases.as_mut().expect("loaded above");
        self.databases_changed |= databases.dbs.remove(&db).is_some();
        Ok(())
    }

    /// Drops a tablespace. No database has relations in it, but it is still listed for those that had.
    pub async fn drop_tablespace(&mut self, spcnode: u32) -> Result<(), DataError> {
        self.load_databases().await?;
        let databases = self.cache.databases.as_ref().expect("loaded above");
        let listed: Vec<DbId> = databases
            .dbs
            .keys()
            .copied()
            .filter(|db| db.spcnode == spcnode)
            .collect();
        for db in listed {
            self.drop_database(db).await?;
        }
        Ok(())
    }

    async fn load_slru(&mut self, kind: SlruKind) -> Result<&mut NumberSet, DataError> {
        if !self.cache.slru_segments.contains_key(&kind) {
            let segments = read::slru_segments(self.store, kind, self.lsn).await?;
            self.cache.slru_segments.insert(kind, segments);
        }
        Ok(self.cache.slru_segments.get_mut(&kind).expect("inserted above"))
    }

    /// Number of blocks of an SLRU segment; 0 if it does not exist.
    pub async fn slru_size(&mut self, kind: SlruKind, segno: u32) -> Result<u32, DataError> {
        if !self.load_slru(kind).await?.numbers.contains(&segno) {
            return Ok(0);
        }
        if let Some(size) = self.cache.slru_sizes.get(&(kind, segno)) {
            return Ok(*size);
        }
        let size = read::slru_segment_size(self.store, kind, segno, self.lsn).await?;
        self.cache.slru_sizes.insert((kind, segno), size);
        Ok(size)
    }

    /// Lets the segment have at least `blocks` blocks, and makes it if need be; see [`Modification::extend_rel`].
    pub async fn extend_slru(
        &mut self,
        kind: SlruKind,
        segno: u32,
        blocks: u32,
        written: impl Fn(u32) -> bool,
    ) -> Result<(), DataError> {
        let before = self.slru_size(kind, segno).await?;
        let segments = self.load_slru(kind).await?;
        if segments.numbers.insert(segno) && !self.slrus_changed.contains(&kind) {
            self.slrus_changed.push(kind);
        }
        if blocks > before {
            for block in (before..blocks).filter(|block| !written(*block)) {
                self.image(key::slru_block_key(kind, segno, block), zero_page());
            }
            self.cache.slru_sizes.insert((kind, segno), blocks);
            self.image(
                key::slru_segment_size_key(kind, segno),
                blocks.to_le_bytes().to_vec(),
            );
        }
        Ok(())
    }

    /// Stores an SLRU page and lets the segment have it.
    pub async fn put_slru_page(
        &mut self,
        kind: SlruKind,
        segno: u32,
        block: u32,
        page: Bytes,
    ) -> Result<(), DataError> {
        self.extend_slru(kind, segno, block + 1, |added| added == block)
            .await?;
        self.image(key::slru_block_key(kind, segno, block), page);
        Ok(())
    }

    /// Stores a change to an SLRU page. As in PostgreSQL's redo, a page that does not exist counts as zeros.
    pub async fn put_slru_record(
        &mut self,
        kind: SlruKind,
        segno: u32,
        block: u32,
        record: WalRecord,
    ) -> Result<(), DataError> {
        let key = key::slru_block_key(kind, segno, block);
        if block < self.slru_size(kind, segno).await? {
            self.batch.put(key, self.lsn, Value::WalRecord(record));
            return Ok(());
        }
        let page = reconstruct(key, self.lsn, Some(zero_page()), &[(self.lsn, (&record).into())])?;
        let page = page.expect("a base image was given");
        self.put_slru_page(kind, segno, block, page).await
    }

    /// Removes the segments of an SLRU that `doomed` picks.
    pub async fn drop_slru_segments(
        &mut self,
        kind: SlruKind,
        doomed: impl Fn(u32) -> bool,
    ) -> Result<(), DataError> {
        let segments = self.load_slru(kind).await?;
        let dropped: Vec<u32> = segments
            .numbers
            .iter()
            .copied()
            .filter(|segno| doomed(*segno))
            .collect();
        for segno in &dropped {
            segments.numbers.remove(segno);
        }
        if dropped.is_empty() {
            return Ok(());
        }
        if !self.slrus_changed.contains(&kind) {
            self.slrus_changed.push(kind);
        }
        for segno in dropped {
            self.cache.slru_sizes.remove(&(kind, segno));
            self.image(
                key::slru_segment_size_key(kind, segno),
                0u32.to_le_bytes().to_vec(),
            );
        }
        Ok(())
    }

    async fn load_prepared(&mut self) -> Result<&mut NumberSet, DataError> {
        if self.cache.prepared.is_none() {
            self.cache.prepared = Some(read::twophase_xids(self.store, self.lsn).await?);
        }
        Ok(self.cache.prepared.as_mut().expect("loaded above"))
    }

    /// Stores the state file of a prepared transaction, without its CRC.
    pub async fn put_twophase(&mut self, xid: u32, state: Bytes) -> Result<(), DataError> {
        let added = self.load_prepared().await?.numbers.insert(xid);
        self.prepared_changed |= added;
        self.image(key::twophase_file_key(xid), state);
        Ok(())
    }

    /// Forgets a prepared transaction.
    pub async fn drop_twophase(&mut self, xid: u32) -> Result<(), DataError> {
        let removed = self.load_prepared().await?.numbers.remove(&xid);
        self.prepared_changed |= removed;
        Ok(())
    }

    /// Replaces a group of auxiliary files by those of `message`, which was checked; none at all removes it.
    pub fn put_aux_files(&mut self, name: &[u8], message: &[u8]) {
        self.image(key::aux_file_group_key(name), AuxFileGroup::value(name, message));
    }

    async fn load_origins(&mut self) -> Result<&mut ReplOrigins, DataError> {
        if self.cache.origins.is_none() {
            self.cache.origins = Some(read::repl_origins(self.store, self.lsn).await?);
        }
        Ok(self.cache.origins.as_mut().expect("loaded above"))
    }

    /// Stores how far replication from an origin has come.
    pub async fn move_origin(&mut self, origin: u16, to: OriginMove) -> Result<(), DataError> {
        let origins = self.load_origins().await?;
        let before = origins.get(&origin).copied().unwrap_or(Lsn::INVALID);
        let after = match to {
            OriginMove::Forward(lsn) => lsn.max(before),
            OriginMove::To(lsn) => lsn,
        };
        origins.insert(origin, after);
        self.image(key::repl_origin_key(origin), after.0.to_le_bytes().to_vec());
        Ok(())
    }

    /// Forgets a replication origin.
    pub async fn drop_origin(&mut self, origin: u16) -> Result<(), DataError> {
        if self.load_origins().await?.remove(&origin).is_some() {
            self.image(key::repl_origin_key(origin), Bytes::new());
        }
        Ok(())
    }

    /// Stores the `CheckPoint` struct.
    pub fn put_checkpoint(&mut self, raw: Bytes) {
        self.image(key::CHECKPOINT, raw);
    }

    /// The control file as stored last.
    pub async fn control_file(&mut self) -> Result<Bytes, DataError> {
        match &self.cache.control_file {
            Some(raw) => Ok(raw.clone()),
            None => read::control_file(self.store, self.lsn).await,
        }
    }

    /// Stores the control file.
    pub fn put_control_file(&mut self, raw: Bytes) {
        self.cache.control_file = Some(raw.clone());
        self.image(key::CONTROL_FILE, raw);
    }

    /// Writes the directories of a timeline that has none yet, all empty.
    pub fn init_empty(&mut self) {
        self.cache.databases = Some(Default::default());
        self.cache.prepared = Some(Default::default());
        self.databases_changed = true;
        self.prepared_changed = true;
        for kind in SlruKind::ALL {
            self.cache.slru_segments.insert(kind, NumberSet::default());
            self.slrus_changed.push(kind);
        }
    }

    /// Writes the sizes and directories that changed.
    pub fn finish(mut self) {
        let mut resized = std::mem::take(&mut self.resized);
        resized.sort_unstable();
        resized.dedup();
        for rel in resized {
            let blocks = self.cache.rel(rel).flatten().unwrap_or(0);
            self.image(key::rel_size_key(rel), blocks.to_le_bytes().to_vec());
        }
        if self.databases_changed {
            let raw = self.cache.databases.as_ref().expect("it was changed").encode();
            self.image(key::DB_DIRECTORY, raw);
        }
        if self.prepared_changed {
            let raw = self.cache.prepared.as_ref().expect("it was changed").encode();
            self.image(key::TWOPHASE_DIRECTORY, raw);
        }
        for kind in std::mem::take(&mut self.slrus_changed) {
            let raw = self
                .cache
                .slru_segments
                .get(&kind)
                .expect("it was changed")
                .encode();
            self.image(key::slru_dir_key(kind), raw);
        }
    }
}
