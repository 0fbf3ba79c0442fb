//! A value of a key from its base version and the changes since.

use bytes::{Bytes, BytesMut};
use pageserver_api::key::{Key, KeyKind};
use pageserver_api::reltag::{Fork, RelTag};
use pageserver_api::value::{WalRecord, WalRecordRef};
use smallvec::SmallVec;
use utils::lsn::Lsn;

use crate::dispatch::{PageTag, apply};
use crate::fault::{Fault, PageName, RedoError, RmgrName};
use crate::page::{PAGE_SIZE, Page, PageBuf};
use crate::slru::{SlruPage, TIMESTAMP_LEN};
use crate::visibility;

/// Gives the page under `key` after `records`, which come with their end LSNs in ascending order. `base` is
/// the version before them; without one, some record must make the page from nothing.
///
/// The result has 8192 bytes; of a clog page 8 more with the time of the latest commit on it, once there
/// was one (microseconds since 2000, big endian).
pub fn reconstruct(key: Key, base: Option<Bytes>, records: &[(Lsn, WalRecord)]) -> Result<Bytes, RedoError> {
    let records: SmallVec<[_; 4]> = records
        .iter()
        .map(|(lsn, record)| (*lsn, record.into()))
        .collect();
    reconstruct_borrowed(key, base, &records)
}

/// The same from records that lie somewhere else.
pub fn reconstruct_borrowed(
    key: Key,
    base: Option<Bytes>,
    records: &[(Lsn, WalRecordRef<'_>)],
) -> Result<Bytes, RedoError> {
    // Nothing before the last record that makes the page from nothing can matter.
    let first = records
        .iter()
        .rposition(|(_, record)| matches!(record, WalRecordRef::Postgres { will_init: true, .. }));
    let records = &records[first.unwrap_or(0)..];
    let base = base.filter(|_| first.is_none());
    let error = |fault| RedoError {
        lsn: records.first().map_or(Lsn(0), |(lsn, _)| *lsn),
        rmgr: records
            .first()
            .map_or(RmgrName::Special("base image"), |(_, record)| name(record)),
        info: 0,
        page: PageName::Key(key),
        fault,
    };
    let target = Target::of(key).ok_or_else(|| error(Fault::WrongKind))?;
    let mut value = match base {
        Some(base) => {
            let extra = base.len().wrapping_sub(PAGE_SIZE);
            if extra != 0 && !(extra == TIMESTAMP_LEN && target.may_have_timestamp()) {
                return Err(error(Fault::Page("its base version is not a page")));
            }
            if records.is_empty() {
                return Ok(base);
            }
            base.try_into_mut()
                .unwrap_or_else(|shared| BytesMut::from(&shared[..]))
        }
        None if first.is_some() || target.may_start_from_zeros() => BytesMut::zeroed(PAGE_SIZE),
        None => return Err(error(Fault::NoBase)),
    };
    let (page, timestamp) = split(&mut value);
    let mut latest_commit = timestamp;
    for (lsn, record) in records {
        let commit = target.apply(page, *lsn, record).map_err(|failed| match failed {
            Failed::Placed(error) => error,
            Failed::Fault(fault) => RedoError {
                lsn: *lsn,
                rmgr: name(record),
                info: 0,
                page: PageName::Key(key),
                fault,
            },
        })?;
        latest_commit = latest_commit.max(commit);
    }
    if let Some(latest_commit) = latest_commit {
        value.truncate(PAGE_SIZE);
        value.extend_from_slice(&latest_commit.to_be_bytes());
    }
    Ok(value.freeze())
}

/// Page and, if there is one, the time of the latest commit.
fn split(value: &mut [u8]) -> (&mut PageBuf, Option<i64>) {
    let (page, rest) = value
        .split_first_chunk_mut::<PAGE_SIZE>()
        .expect("a value is at least a page long");
    let timestamp = rest.first_chunk::<TIMESTAMP_LEN>();
    (page, timestamp.map(|raw| i64::from_be_bytes(*raw)))
}

fn name(record: &WalRecordRef<'_>) -> RmgrName {
    let WalRecordRef::Special(record) = record else {
        return RmgrName::Special("PostgreSQL record");
    };
    RmgrName::Special(match **record {
        WalRecord::Postgres { .. } => "PostgreSQL record",
        WalRecord::ClearVisibilityMapFlags { .. } => "clearing of visibility map bits",
        WalRecord::ClogSetCommitted { .. } => "commit",
        WalRecord::ClogSetAborted { .. } => "abort",
        WalRecord::MultixactOffsetCreate { .. } => "offset of a multixact",
        WalRecord::MultixactMembersCreate { .. } => "members of a multixact",
    })
}

/// A change failed: an error that names its place already, or one that does not.
enum Failed {
    Placed(RedoError),
    Fault(Fault),
}

/// What kind of page is made.
enum Target {
    Block(PageTag),
    Slru(SlruPage),
}

impl Target {
    fn of(key: Key) -> Option<Self> {
        match key.kind()? {
            KeyKind::RelBlock { rel, block } => Some(Target::Block(tag(rel, block))),
            KeyKind::SlruBlock { kind, segno, block } => Some(Target::Slru(SlruPage { kind, segno, block })),
            _ => None,
        }
    }

    fn may_have_timestamp(&self) -> bool {
        matches!(self, Target::Slru(_))
    }

    /// PostgreSQL makes pages of the visibility map when it first needs them, without a record.
    fn may_start_from_zeros(&self) -> bool {
        matches!(self, Target::Block(tag) if tag.forknum == Fork::Vm as u8)
    }

    fn apply(&self, page: &mut PageBuf, lsn: Lsn, record: &WalRecordRef<'_>) -> Result<Option<i64>, Failed> {
        match (self, record) {
            (Target::Block(tag), WalRecordRef::Postgres { record, .. }) => {
                apply(page, tag, lsn, record).map_err(Failed::Placed)?;
                Ok(None)
            }
            (Target::Slru(slru), WalRecordRef::Postgres { record, .. }) => {
                slru.apply_postgres(page, record).map_err(Failed::Fault)?;
                Ok(None)
            }
            (target, WalRecordRef::Special(record)) => target.apply_special(page, record),
        }
    }

    fn apply_special(&self, page: &mut PageBuf, record: &WalRecord) -> Result<Option<i64>, Failed> {
        match (self, record) {
            (
                Target::Block(tag),
                WalRecord::ClearVisibilityMapFlags {
                    new_heap_block,
                    old_heap_block,
                    flags,
                },
            ) if tag.forknum == Fork::Vm as u8 => {
                for block in [new_heap_block, old_heap_block].into_iter().flatten() {
                    // A record for two pages of the map is stored with both.
                    if visibility::map_block(*block) == tag.blkno {
                        visibility::clear(&mut Page::new(page), *block, *flags);
                    }
                }
                Ok(None)
            }
            (Target::Block(_), _) => Err(Failed::Fault(Fault::WrongKind)),
            (Target::Slru(slru), record) => slru.apply(page, record).map_err(Failed::Fault),
        }
    }
}

fn tag(rel: RelTag, blkno: u32) -> PageTag {
    PageTag {
        spcnode: rel.spcnode,
        dbnode: rel.dbnode,
        relnode: rel.relnode,
        forknum: rel.fork as u8,
        blkno,
    }
}

#[cfg(test)]
pub(crate) mod tests;
