//! Ends of transactions: commit, abort and prepare records (`access/xact.h`), and two-phase state files.

use utils::lsn::Lsn;

use super::relfile::RelFileNode;
use super::rmgr::{
    XLOG_XACT_ABORT, XLOG_XACT_ABORT_PREPARED, XLOG_XACT_COMMIT, XLOG_XACT_COMMIT_PREPARED,
    XLOG_XACT_HAS_INFO, XLOG_XACT_OPMASK,
};
use crate::c_struct;
use crate::c_struct::CStruct;
use crate::cursor::{Cursor, Truncated};

/// `xinfo`: database and tablespace follow.
pub const XACT_XINFO_HAS_DBINFO: u32 = 1 << 0;
/// `xinfo`: subtransactions follow.
pub const XACT_XINFO_HAS_SUBXACTS: u32 = 1 << 1;
/// `xinfo`: relations to be dropped follow.
pub const XACT_XINFO_HAS_RELFILENODES: u32 = 1 << 2;
/// `xinfo`: cache invalidations follow.
pub const XACT_XINFO_HAS_INVALS: u32 = 1 << 3;
/// `xinfo`: the id of the prepared transaction follows.
pub const XACT_XINFO_HAS_TWOPHASE: u32 = 1 << 4;
/// `xinfo`: the origin's position follows.
pub const XACT_XINFO_HAS_ORIGIN: u32 = 1 << 5;
/// `xinfo`: the transaction held access exclusive locks.
pub const XACT_XINFO_HAS_AE_LOCKS: u32 = 1 << 6;
/// `xinfo`: the global id of the prepared transaction follows.
pub const XACT_XINFO_HAS_GID: u32 = 1 << 7;
/// `xinfo`: statistics to be dropped follow.
pub const XACT_XINFO_HAS_DROPPED_STATS: u32 = 1 << 8;

/// Length of a `SharedInvalidationMessage` in bytes.
pub const INVALIDATION_LEN: usize = 16;
/// First field of a two-phase state.
pub const TWOPHASE_MAGIC: u32 = 0x57f9_4534;

/// Which way a transaction ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It committed.
    Committed,
    /// It was rolled back.
    Aborted,
}

/// A commit or abort record, also of a prepared transaction (`xl_xact_parsed_commit`, `xl_xact_parsed_abort`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct XactEnd {
    /// Which way.
    pub outcome: Outcome,
    /// When, in microseconds since 2000-01-01.
    pub time: i64,
    /// Flags: `XACT_XINFO_` and others.
    pub xinfo: u32,
    /// Database and its tablespace, (0, 0) if not given.
    pub database: (u32, u32),
    /// Subtransactions, which end with it.
    pub subxacts: Vec<u32>,
    /// Relations whose files are dropped.
    pub dropped: Vec<RelFileNode>,
    /// The transaction that ends, if it was prepared; otherwise it is the one in the record's header.
    pub twophase_xid: Option<u32>,
    /// Global id of a prepared transaction, empty if not given.
    pub twophase_gid: Vec<u8>,
    /// Position and time of the commit at the replication origin.
    pub origin: Option<(Lsn, i64)>,
}

impl XactEnd {
    /// Whether `info` is that of a commit or abort record, and of which.
    pub fn outcome_of(info: u8) -> Option<Outcome> {
        match info & XLOG_XACT_OPMASK {
            XLOG_XACT_COMMIT | XLOG_XACT_COMMIT_PREPARED => Some(Outcome::Committed),
            XLOG_XACT_ABORT | XLOG_XACT_ABORT_PREPARED => Some(Outcome::Aborted),
            _ => None,
        }
    }

    /// Reads the main data of a record whose `xl_info` is `info`, for which [`Self::outcome_of`] gave `outcome`.
    pub fn parse(outcome: Outcome, info: u8, main_data: &[u8]) -> Result<Self, Truncated> {
        let input = &mut Cursor::new(main_data);
        let time = input.i64()?;
        let xinfo = if info & XLOG_XACT_HAS_INFO != 0 {
            input.u32()?
        } else {
            0
        };
        let has = |flag: u32| xinfo & flag != 0;
        let mut end = XactEnd {
            outcome,
            time,
            xinfo,
            database: (0, 0),
            subxacts: Vec::new(),
            dropped: Vec::new(),
            twophase_xid: None,
            twophase_gid: Vec::new(),
            origin: None,
        };
        if has(XACT_XINFO_HAS_DBINFO) {
            end.database = (input.u32()?, input.u32()?);
        }
        if has(XACT_XINFO_HAS_SUBXACTS) {
            let count = input.u32()?;
            end.subxacts = input.u32s(count as usize)?;
        }
        if has(XACT_XINFO_HAS_RELFILENODES) {
            let count = input.u32()?;
            end.dropped = input.structs(count as usize)?;
        }
        if has(XACT_XINFO_HAS_DROPPED_STATS) {
            let count = input.u32()?;
            input.structs::<StatsItem>(count as usize)?;
        }
        if has(XACT_XINFO_HAS_INVALS) && outcome == Outcome::Committed {
            let count = input.u32()? as usize;
            input.skip(count.saturating_mul(INVALIDATION_LEN))?;
        }
        if has(XACT_XINFO_HAS_TWOPHASE) {
            end.twophase_xid = Some(input.u32()?);
            if has(XACT_XINFO_HAS_GID) {
                end.twophase_gid = input.c_str()?.to_vec();
            }
        }
        if has(XACT_XINFO_HAS_ORIGIN) {
            end.origin = Some((input.lsn()?, input.i64()?));
        }
        Ok(end)
    }
}

c_struct! {
    /// Statistics of an object that goes away.
    #[derive(Copy, Eq)]
    pub struct StatsItem("xl_xact_stats_item", "sizeof(xl_xact_stats_item)" = 12) {
        /// Kind of statistics.
        kind: i32 = 0 "kind",
        /// Database.
        database: u32 = 4 "dboid",
        /// Object.
        object: u32 = 8 "objoid",
    }
}

c_struct! {
    /// Fixed part of a prepare record, and of a two-phase state file, which has the same contents and a CRC.
    pub struct PrepareHeader("xl_xact_prepare", "sizeof(xl_xact_prepare)" = 72) {
        /// [`TWOPHASE_MAGIC`].
        magic: u32 = 0 "magic",
        /// Length of the state file in bytes, CRC included.
        total_len: u32 = 4 "total_len",
        /// The transaction.
        xid: u32 = 8 "xid",
        /// Its database.
        database: u32 = 12 "database",
        /// When it was prepared, microseconds since 2000-01-01.
        prepared_at: i64 = 16 "prepared_at",
        /// Its user.
        owner: u32 = 24 "owner",
        /// Number of subtransactions.
        subxacts: u32 = 28 "nsubxacts",
        /// Number of relations dropped at commit.
        commit_rels: u32 = 32 "ncommitrels",
        /// Number of relations dropped at abort.
        abort_rels: u32 = 36 "nabortrels",
        /// Number of statistics dropped at commit.
        commit_stats: u32 = 40 "ncommitstats",
        /// Number of statistics dropped at abort.
        abort_stats: u32 = 44 "nabortstats",
        /// Number of cache invalidations.
        invalidations: u32 = 48 "ninvalmsgs",
        /// Whether the relcache init file becomes invalid.
        init_file_invalid: bool = 52 "initfileinval",
        /// Length of the global id, terminator included.
        gid_len: u16 = 54 "gidlen",
        /// Position at the replication origin.
        origin_lsn: Lsn = 56 "origin_lsn",
        /// Time at the replication origin.
        origin_time: i64 = 64 "origin_timestamp",
    }
}

/// A prepare record (`XLOG_XACT_PREPARE`).
#[derive(Clone, Debug, PartialEq)]
pub struct Prepare {
    /// Fixed part.
    pub header: PrepareHeader,
    /// Global id, without terminator.
    pub gid: Vec<u8>,
    /// Subtransactions.
    pub subxacts: Vec<u32>,
    /// Relations whose files are dropped at commit.
    pub commit_rels: Vec<RelFileNode>,
    /// Relations whose files are dropped at abort.
    pub abort_rels: Vec<RelFileNode>,
}

impl Prepare {
    /// Reads the main data of the record, or a state file.
    pub fn parse(main_data: &[u8]) -> Result<Self, Truncated> {
        let input = &mut Cursor::new(main_data);
        let header = PrepareHeader::read(input)?;
        let gid = aligned(input, header.gid_len.into())?;
        let gid = gid.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        let subxacts = Cursor::new(aligned(input, (header.subxacts as usize).saturating_mul(4))?)
            .u32s(header.subxacts as usize)?;
        let mut rels = |count: u32| {
            let len = (count as usize).saturating_mul(RelFileNode::LAYOUT.len);
            Cursor::new(aligned(input, len)?).structs(count as usize)
        };
        Ok(Self {
            commit_rels: rels(header.commit_rels)?,
            abort_rels: rels(header.abort_rels)?,
            header,
            gid,
            subxacts,
        })
    }
}

/// The next `len` bytes; passes over the padding up to a multiple of 8 as well.
fn aligned<'a>(input: &mut Cursor<'a>, len: usize) -> Result<&'a [u8], Truncated> {
    let taken = input.bytes(len)?;
    input.skip(len.next_multiple_of(8) - len)?;
    Ok(taken)
}

/// Path of a two-phase state file, relative to the data directory.
pub fn twophase_path(xid: u32) -> String {
    format!("pg_twophase/{xid:08X}")
}

/// Contents of a two-phase state file: the main data of the prepare record and its CRC.
pub fn twophase_file(main_data: &[u8]) -> Vec<u8> {
    let mut file = main_data.to_vec();
    file.extend_from_slice(&crc32c::crc32c(main_data).to_le_bytes());
    file
}

/// The main data of the prepare record that a two-phase state file holds; `None` if the file is damaged.
pub fn twophase_contents(file: &[u8]) -> Option<&[u8]> {
    let (contents, crc) = file.split_last_chunk::<4>()?;
    let header = PrepareHeader::decode(contents).ok()?;
    let sound = header.magic == TWOPHASE_MAGIC
        && header.total_len as usize == file.len()
        && crc32c::crc32c(contents) == u32::from_le_bytes(*crc);
    sound.then_some(contents)
}

/// Subtransactions that were assigned to a top-level transaction (`XLOG_XACT_ASSIGNMENT`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Assignment {
    /// Top-level transaction.
    pub top_xid: u32,
    /// Subtransactions.
    pub subxacts: Vec<u32>,
}

impl Assignment {
    /// Reads the main data of the record.
    pub fn parse(main_data: &[u8]) -> Result<Self, Truncated> {
        let mut input = Cursor::new(main_data);
        let top_xid = input.u32()?;
        let count = input.u32()?;
        Ok(Self {
            top_xid,
            subxacts: input.u32s(count as usize)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commit_with_everything() {
        let mut data = 77i64.to_le_bytes().to_vec();
        let xinfo = 0x1bf_u32;
        data.extend(xinfo.to_le_bytes());
        for number in [5, 1663, 2, 101, 102, 1, 1663, 5, 16384, 1, 3, 5, 9, 1u32] {
            data.extend(number.to_le_bytes());
        }
        data.extend([0xee; INVALIDATION_LEN]);
        data.extend(100u32.to_le_bytes());
        data.extend(b"gid\0");
        data.extend(0x1_0000_0000_u64.to_le_bytes());
        data.extend((-3i64).to_le_bytes());
        let info = XLOG_XACT_COMMIT_PREPARED | XLOG_XACT_HAS_INFO;
        let outcome = XactEnd::outcome_of(info).unwrap();
        let end = XactEnd::parse(outcome, info, &data).unwrap();
        let relation = RelFileNode {
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
        };
        let expected = XactEnd {
            outcome: Outcome::Committed,
            time: 77,
            xinfo,
            database: (5, 1663),
            subxacts: vec![101, 102],
            dropped: vec![relation],
            twophase_xid: Some(100),
            twophase_gid: b"gid".to_vec(),
            origin: Some((Lsn(0x1_0000_0000), -3)),
        };
        assert_eq!(end, expected);
        for len in 0..data.len() {
            assert!(XactEnd::parse(outcome, info, &data[..len]).is_err());
        }
    }

    #[test]
    fn plain_abort() {
        let end = XactEnd::parse(Outcome::Aborted, XLOG_XACT_ABORT, &5i64.to_le_bytes()).unwrap();
        assert_eq!((end.time, end.xinfo, end.twophase_xid), (5, 0, None));
        assert_eq!(XactEnd::outcome_of(0x50), None);
    }

    #[test]
    fn two_phase_state() {
        let mut header = PrepareHeader::decode(&[0; 72]).unwrap();
        header.magic = TWOPHASE_MAGIC;
        header.gid_len = 4;
        header.subxacts = 1;
        header.commit_rels = 1;
        header.total_len = 72 + 8 + 8 + 16 + 4;
        let mut data = header.encode();
        data.extend(b"gid\0\0\0\0\0");
        data.extend([9, 0, 0, 0, 0, 0, 0, 0]);
        data.extend([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        let prepare = Prepare::parse(&data).unwrap();
        assert_eq!((&prepare.gid[..], &prepare.subxacts[..]), (&b"gid"[..], &[9][..]));
        assert_eq!(prepare.commit_rels[0].relnode, 3);
        assert!(prepare.abort_rels.is_empty());
        let mut file = twophase_file(&data);
        assert_eq!(twophase_contents(&file), Some(&data[..]));
        file[80] ^= 1;
        assert_eq!(twophase_contents(&file), None);
        assert_eq!(twophase_path(0xabc), "pg_twophase/00000ABC");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(info: u8, data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = XactEnd::parse(Outcome::Committed, info, &data);
            let _ = XactEnd::parse(Outcome::Aborted, info, &data);
            let _ = Prepare::parse(&data);
            let _ = Assignment::parse(&data);
            let _ = twophase_contents(&data);
        }
    }
}
