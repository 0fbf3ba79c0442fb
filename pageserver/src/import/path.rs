//! What the files of a data directory hold, by their names.

use pageserver_api::reltag::{Fork, RelTag, SlruKind};

use postgres_ffi::v15::WAL_SEGMENT_SIZE;
use postgres_ffi::v15::encode::PG_TIMELINE;
use postgres_ffi::v15::relfile::{RELSEG_SIZE, RelFileName};
use postgres_ffi::v15::slru::parse_segment_name;
use postgres_ffi::v15::wal_file::SegmentName;

use crate::pgdatadir::{DEFAULT_TABLESPACE, DbId, GLOBAL_TABLESPACE};

/// File name of a WAL segment of timeline 1.
pub fn wal_segment_name(number: u64) -> String {
    SegmentName {
        timeline: PG_TIMELINE,
        segment: number,
    }
    .file_name(WAL_SEGMENT_SIZE)
}

/// A file of a data directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClusterFile {
    /// `global/pg_control`.
    ControlFile,
    /// `pg_filenode.map` of a database.
    RelMap(DbId),
    /// A segment of a relation fork; the number counts from 0.
    Relation {
        /// The fork.
        rel: RelTag,
        /// Number of the segment.
        segment: u32,
    },
    /// A segment of an SLRU.
    Slru(SlruKind, u32),
    /// State of a prepared transaction.
    TwoPhase(u32),
    /// Start of the last record, for whoever continues the WAL.
    Signal,
    /// Belongs to a tablespace of a user's making, which cannot be imported.
    Tablespace,
    /// Nothing that is part of the history.
    Other,
}

impl ClusterFile {
    /// What the file at `path`, relative to the data directory, holds.
    pub fn of(path: &str) -> Self {
        let path = path.trim_start_matches("./");
        match path.split('/').collect::<Vec<_>>()[..] {
            ["global", "pg_control"] => ClusterFile::ControlFile,
            ["global", name] => Self::in_database(
                DbId {
                    spcnode: GLOBAL_TABLESPACE,
                    dbnode: 0,
                },
                name,
            ),
            ["base", db, name] => match db.parse() {
                Ok(dbnode) => Self::in_database(
                    DbId {
                        spcnode: DEFAULT_TABLESPACE,
                        dbnode,
                    },
                    name,
                ),
                Err(_) => ClusterFile::Other,
            },
            ["pg_xact", name] => Self::slru(SlruKind::Clog, name),
            ["pg_multixact", "offsets", name] => Self::slru(SlruKind::MultiXactOffsets, name),
            ["pg_multixact", "members", name] => Self::slru(SlruKind::MultiXactMembers, name),
            ["pg_twophase", name] => xid(name).map_or(ClusterFile::Other, ClusterFile::TwoPhase),
            ["zenith.signal" | "neon.signal"] => ClusterFile::Signal,
            ["pg_tblspc", _, ..] => ClusterFile::Tablespace,
            _ => ClusterFile::Other,
        }
    }

    fn in_database(db: DbId, name: &str) -> Self {
        if name == "pg_filenode.map" {
            return ClusterFile::RelMap(db);
        }
        relation(db, name).unwrap_or(ClusterFile::Other)
    }

    fn slru(kind: SlruKind, name: &str) -> Self {
        parse_segment_name(name).map_or(ClusterFile::Other, |segno| ClusterFile::Slru(kind, segno))
    }
}

/// Name of a prepared transaction's state file.
fn xid(name: &str) -> Option<u32> {
    let plain = name.len() == 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(name, 16).ok()).flatten()
}

/// `16384`, `16384_vm`, `16384.1`, `16384_fsm.2`; not `t3_16384`, which is temporary.
fn relation(db: DbId, name: &str) -> Option<ClusterFile> {
    let RelFileName {
        relnode,
        forknum,
        segment,
    } = RelFileName::parse(name)?;
    let fork = Fork::try_from(forknum).ok()?;
    let rel = RelTag {
        spcnode: db.spcnode,
        dbnode: db.dbnode,
        relnode,
        fork,
    };
    let fits = segment.checked_add(1)?.checked_mul(RELSEG_SIZE).is_some();
    (relnode != 0 && fits).then_some(ClusterFile::Relation { rel, segment })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let rel = |spcnode, dbnode, relnode, fork, segment| ClusterFile::Relation {
            rel: RelTag {
                spcnode,
                dbnode,
                relnode,
                fork,
            },
            segment,
        };
        for (path, want) in [
            ("global/pg_control", ClusterFile::ControlFile),
            ("./global/1262", rel(1664, 0, 1262, Fork::Main, 0)),
            ("base/5/16384_vm", rel(1663, 5, 16384, Fork::Vm, 0)),
            ("base/5/16384_fsm.2", rel(1663, 5, 16384, Fork::Fsm, 2)),
            ("base/5/16384_init", rel(1663, 5, 16384, Fork::Init, 0)),
            (
                "base/5/pg_filenode.map",
                ClusterFile::RelMap(DbId {
                    spcnode: 1663,
                    dbnode: 5,
                }),
            ),
            ("pg_xact/0001", ClusterFile::Slru(SlruKind::Clog, 1)),
            (
                "pg_multixact/offsets/00FF",
                ClusterFile::Slru(SlruKind::MultiXactOffsets, 255),
            ),
            ("pg_twophase/000002F1", ClusterFile::TwoPhase(753)),
            ("zenith.signal", ClusterFile::Signal),
            ("pg_tblspc/16385/PG_15_202209061/5/1", ClusterFile::Tablespace),
        ] {
            assert_eq!(ClusterFile::of(path), want, "{path}");
        }
        let others = [
            "base/5/t3_16384",
            "base/5/16384.0",
            "base/5/0",
            "base/5/",
            "base/5/PG_VERSION",
            "base/x/1",
            "PG_VERSION",
            "base/5/16384_foo",
            "base/5/99999999999",
            "base/5/1.99999",
            "pg_wal/000000010000000000000001",
            "base/5",
            "pg_xact/-1",
            "",
            "/",
            "base/5/+1",
        ];
        for other in others {
            assert_eq!(ClusterFile::of(other), ClusterFile::Other, "{other}");
        }
    }
}
