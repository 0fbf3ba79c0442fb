//! Reading PostgreSQL's objects at an LSN.

use bytes::Bytes;
use pageserver_api::key::{self, Key, KeyKind};
use pageserver_api::reltag::{Fork, RelTag, SlruKind};
use postgres_ffi::v15::BLCKSZ;
use utils::lsn::Lsn;

use super::DataError;
use super::aux_files::AuxFileGroup;
use super::directory::{DbDirectory, DbId, NumberSet};
use super::repl_origins::ReplOrigins;
use crate::timeline::store::ReadStore;

/// OID of the default tablespace, `pg_default`.
pub const DEFAULT_TABLESPACE: u32 = 1663;
/// OID of the tablespace of shared relations, `pg_global`.
pub const GLOBAL_TABLESPACE: u32 = 1664;
/// Size keys or pages asked for in one traversal, so that a large database does not make one large request.
pub(crate) const KEYS_PER_READ_MAX: usize = 1024;

static ZERO_PAGE: [u8; BLCKSZ] = [0; BLCKSZ];

/// A page of zeros, as PostgreSQL sees a block that was added and never written.
pub fn zero_page() -> Bytes {
    Bytes::from_static(&ZERO_PAGE)
}

pub(super) fn damaged(key: Key, lsn: Lsn, reason: impl ToString) -> DataError {
    DataError::Damaged {
        key,
        lsn,
        reason: reason.to_string(),
    }
}

pub(super) fn decode_size(key: Key, lsn: Lsn, raw: &[u8]) -> Result<u32, DataError> {
    let raw: [u8; 4] = raw
        .try_into()
        .map_err(|_| damaged(key, lsn, format!("a size has 4 bytes, not {}", raw.len())))?;
    Ok(u32::from_le_bytes(raw))
}

/// A directory entry: whether the fork exists.
pub(super) fn decode_entry(key: Key, lsn: Lsn, raw: &[u8]) -> Result<bool, DataError> {
    match raw {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(damaged(
            key,
            lsn,
            "a relation directory entry is one byte, 0 or 1",
        )),
    }
}

/// Whether the fork exists.
pub async fn rel_exists<S: ReadStore>(store: &S, rel: RelTag, lsn: Lsn) -> Result<bool, DataError> {
    let key = key::rel_dir_entry_key(rel);
    match store.get(key, lsn).await? {
        Some(raw) => decode_entry(key, lsn, &raw),
        None => Ok(false),
    }
}

/// Number of blocks of the fork; `None` if it does not exist.
pub async fn rel_size<S: ReadStore>(store: &S, rel: RelTag, lsn: Lsn) -> Result<Option<u32>, DataError> {
    let keys = [key::rel_dir_entry_key(rel), key::rel_size_key(rel)];
    let values = store.get_many(&keys, lsn).await?;
    match &values[..] {
        [Some(entry), size] if decode_entry(keys[0], lsn, entry)? => {
            let size = size
                .as_ref()
                .ok_or_else(|| damaged(keys[1], lsn, "the relation has no size"))?;
            decode_size(keys[1], lsn, size).map(Some)
        }
        _ => Ok(None),
    }
}

/// One page of a relation fork. Beyond the end of the fork, and in a fork that does not exist, it is a
/// page of zeros.
pub async fn rel_page<S: ReadStore>(
    store: &S,
    rel: RelTag,
    block: u32,
    lsn: Lsn,
) -> Result<Bytes, DataError> {
    let keys = [key::rel_size_key(rel), key::rel_block_key(rel, block)];
    let values = store.get_many(&keys, lsn).await?;
    let size = match &values[0] {
        Some(raw) => decode_size(keys[0], lsn, raw)?,
        None => 0,
    };
    match &values[1] {
        Some(page) if block < size => check_page(keys[1], lsn, page.clone()),
        _ => Ok(zero_page()),
    }
}

/// Pages of a relation fork in the order of `blocks`, each as [`rel_page`] gives it.
pub async fn rel_pages_at<S: ReadStore>(
    store: &S,
    rel: RelTag,
    blocks: &[u32],
    lsn: Lsn,
) -> Result<Vec<Bytes>, DataError> {
    let size_key = key::rel_size_key(rel);
    let size = match store.get(size_key, lsn).await? {
        Some(raw) => decode_size(size_key, lsn, &raw)?,
        None => 0,
    };
    let keys: Vec<Key> = blocks
        .iter()
        .map(|block| key::rel_block_key(rel, *block))
        .collect();
    let values = store.get_many(&keys, lsn).await?;
    let page = |(key, value): (&Key, Option<Bytes>)| match value {
        Some(page) if key.field6 < size => check_page(*key, lsn, page),
        _ => Ok(zero_page()),
    };
    keys.iter().zip(values).map(page).collect()
}

/// The pages `blocks` of a relation fork that has at least that many; for whole-relation copies.
pub async fn rel_pages<S: ReadStore>(
    store: &S,
    rel: RelTag,
    blocks: std::ops::Range<u32>,
    lsn: Lsn,
) -> Result<Vec<Bytes>, DataError> {
    let keys: Vec<Key> = blocks.map(|block| key::rel_block_key(rel, block)).collect();
    let values = store.get_many(&keys, lsn).await?;
    let page = |(key, value): (&Key, Option<Bytes>)| match value {
        Some(page) => check_page(*key, lsn, page),
        None => Ok(zero_page()),
    };
    keys.iter().zip(values).map(page).collect()
}

fn check_page(key: Key, lsn: Lsn, page: Bytes) -> Result<Bytes, DataError> {
    if page.len() == BLCKSZ {
        Ok(page)
    } else {
        Err(damaged(
            key,
            lsn,
            format!("a page has {BLCKSZ} bytes, not {}", page.len()),
        ))
    }
}

/// All relation forks of a database, ordered by fork, then by number.
pub async fn list_rels<S: ReadStore>(store: &S, db: DbId, lsn: Lsn) -> Result<Vec<RelTag>, DataError> {
    live_entries(store, key::rel_dir_range(db.spcnode, db.dbnode), lsn).await
}

/// All relations of a database that have this fork.
pub async fn list_rels_of_fork<S: ReadStore>(
    store: &S,
    db: DbId,
    fork: Fork,
    lsn: Lsn,
) -> Result<Vec<RelTag>, DataError> {
    live_entries(store, key::rel_dir_fork_range(db.spcnode, db.dbnode, fork), lsn).await
}

async fn live_entries<S: ReadStore>(
    store: &S,
    range: std::ops::Range<Key>,
    lsn: Lsn,
) -> Result<Vec<RelTag>, DataError> {
    let mut rels = Vec::new();
    for (key, raw) in store.scan(range, lsn).await? {
        let Some(KeyKind::RelDirEntry(rel)) = key.kind() else {
            return Err(damaged(
                key,
                lsn,
                "it stands among relation directory entries and is none",
            ));
        };
        if decode_entry(key, lsn, &raw)? {
            rels.push(rel);
        }
    }
    Ok(rels)
}

/// Sizes in blocks of relations that exist, in the order of `rels`.
pub async fn rel_sizes<S: ReadStore>(store: &S, rels: &[RelTag], lsn: Lsn) -> Result<Vec<u32>, DataError> {
    let mut sizes = Vec::with_capacity(rels.len());
    for chunk in rels.chunks(KEYS_PER_READ_MAX) {
        let keys: Vec<Key> = chunk.iter().map(|rel| key::rel_size_key(*rel)).collect();
        for (key, raw) in keys.iter().zip(store.get_many(&keys, lsn).await?) {
            let raw = raw.ok_or_else(|| damaged(*key, lsn, "the relation has no size"))?;
            sizes.push(decode_size(*key, lsn, &raw)?);
        }
    }
    Ok(sizes)
}

/// Size of a database in one tablespace in bytes, all forks counted.
pub async fn db_size<S: ReadStore>(store: &S, db: DbId, lsn: Lsn) -> Result<u64, DataError> {
    let rels = list_rels(store, db, lsn).await?;
    let sizes = rel_sizes(store, &rels, lsn).await?;
    Ok(sizes
        .into_iter()
        .map(|blocks| u64::from(blocks) * BLCKSZ as u64)
        .sum())
}

/// Size of all relations of the cluster in bytes. Reads the size of every relation: ingest keeps the
/// number up to date afterwards (`WalIngest::take_logical_size_delta`).
pub async fn logical_size<S: ReadStore>(store: &S, lsn: Lsn) -> Result<u64, DataError> {
    let mut bytes = 0;
    for db in databases(store, lsn).await?.dbs.into_keys() {
        bytes += db_size(store, db, lsn).await?;
    }
    Ok(bytes)
}

/// All databases.
pub async fn databases<S: ReadStore>(store: &S, lsn: Lsn) -> Result<DbDirectory, DataError> {
    let raw = required(store, key::DB_DIRECTORY, "database directory", lsn).await?;
    DbDirectory::decode(&raw).map_err(|e| damaged(key::DB_DIRECTORY, lsn, e))
}

/// Contents of `pg_filenode.map`; `None` if the database has none.
pub async fn relmap<S: ReadStore>(store: &S, db: DbId, lsn: Lsn) -> Result<Option<Bytes>, DataError> {
    Ok(store.get(key::relmap_key(db.spcnode, db.dbnode), lsn).await?)
}

/// Numbers of the segments an SLRU has.
pub async fn slru_segments<S: ReadStore>(
    store: &S,
    kind: SlruKind,
    lsn: Lsn,
) -> Result<NumberSet, DataError> {
    let key = key::slru_dir_key(kind);
    let raw = required(store, key, kind.directory(), lsn).await?;
    NumberSet::decode(&raw).map_err(|e| damaged(key, lsn, e))
}

/// Number of blocks of an SLRU segment; 0 if it never existed.
pub async fn slru_segment_size<S: ReadStore>(
    store: &S,
    kind: SlruKind,
    segno: u32,
    lsn: Lsn,
) -> Result<u32, DataError> {
    let key = key::slru_segment_size_key(kind, segno);
    match store.get(key, lsn).await? {
        Some(raw) => decode_size(key, lsn, &raw),
        None => Ok(0),
    }
}

/// One stored SLRU page: 8192 bytes, followed on clog pages by 8 bytes with the latest commit time,
/// big endian, once a transaction on it has committed.
pub async fn slru_page<S: ReadStore>(
    store: &S,
    kind: SlruKind,
    segno: u32,
    block: u32,
    lsn: Lsn,
) -> Result<Option<Bytes>, DataError> {
    let key = key::slru_block_key(kind, segno, block);
    let page = store.get(key, lsn).await?;
    match page.as_ref().map(Bytes::len) {
        None | Some(BLCKSZ) => Ok(page),
        Some(len) if len == BLCKSZ + 8 && kind == SlruKind::Clog => Ok(page),
        Some(len) => Err(damaged(key, lsn, format!("an SLRU page of {len} bytes"))),
    }
}

/// Transactions that are prepared and not yet committed or rolled back.
pub async fn twophase_xids<S: ReadStore>(store: &S, lsn: Lsn) -> Result<NumberSet, DataError> {
    let raw = required(store, key::TWOPHASE_DIRECTORY, "two-phase directory", lsn).await?;
    NumberSet::decode(&raw).map_err(|e| damaged(key::TWOPHASE_DIRECTORY, lsn, e))
}

/// State file of a prepared transaction, without its CRC.
pub async fn twophase_file<S: ReadStore>(store: &S, xid: u32, lsn: Lsn) -> Result<Bytes, DataError> {
    required(store, key::twophase_file_key(xid), "two-phase file", lsn).await
}

/// The `CheckPoint` struct as ingest keeps it up to date.
pub async fn checkpoint<S: ReadStore>(store: &S, lsn: Lsn) -> Result<Bytes, DataError> {
    required(store, key::CHECKPOINT, "checkpoint", lsn).await
}

/// The bytes of `global/pg_control` as imported; its checkpoint is that of the import.
pub async fn control_file<S: ReadStore>(store: &S, lsn: Lsn) -> Result<Bytes, DataError> {
    required(store, key::CONTROL_FILE, "control file", lsn).await
}

/// All groups of auxiliary files that have files.
pub async fn aux_file_groups<S: ReadStore>(store: &S, lsn: Lsn) -> Result<Vec<AuxFileGroup>, DataError> {
    let mut groups = Vec::new();
    for (key, raw) in store.scan(key::AUX_FILE_GROUPS, lsn).await? {
        let group = AuxFileGroup::decode(raw).map_err(|e| damaged(key, lsn, e))?;
        if !group.files.is_empty() {
            groups.push(group);
        }
    }
    Ok(groups)
}

/// How far replication from each origin has come.
pub async fn repl_origins<S: ReadStore>(store: &S, lsn: Lsn) -> Result<ReplOrigins, DataError> {
    let mut origins = ReplOrigins::new();
    for (key, raw) in store.scan(key::REPL_ORIGINS, lsn).await? {
        let Some(KeyKind::ReplOrigin { origin }) = key.kind() else {
            return Err(damaged(
                key,
                lsn,
                "it stands among replication origins and is none",
            ));
        };
        match <[u8; 8]>::try_from(&raw[..]) {
            Ok(raw) => drop(origins.insert(origin, Lsn(u64::from_le_bytes(raw)))),
            // It was dropped.
            Err(_) if raw.is_empty() => {}
            Err(_) => return Err(damaged(key, lsn, "a position has 8 bytes")),
        }
    }
    Ok(origins)
}

async fn required<S: ReadStore>(store: &S, key: Key, what: &str, lsn: Lsn) -> Result<Bytes, DataError> {
    let missing = || DataError::Missing {
        what: format!("{what} (key {key})"),
        lsn,
    };
    store.get(key, lsn).await?.ok_or_else(missing)
}
