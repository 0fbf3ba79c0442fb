//! Main data of the records that change something other than pages of relations: databases, tablespaces, relation
//! files, SLRUs, counters, settings. Transactions have their own module, [`super::xact`].
//!
//! Fixed-size bodies are read with [`CStruct::decode`]; those with a list behind them have a `parse`.

use utils::lsn::Lsn;

use super::relfile::RelFileNode;
use crate::c_struct;
use crate::c_struct::CStruct;
use crate::cursor::{Cursor, Truncated};

/// [`SmgrTruncate::flags`]: the main fork.
pub const SMGR_TRUNCATE_HEAP: u32 = 1;
/// [`SmgrTruncate::flags`]: the visibility map.
pub const SMGR_TRUNCATE_VM: u32 = 2;
/// [`SmgrTruncate::flags`]: the free space map.
pub const SMGR_TRUNCATE_FSM: u32 = 4;

c_struct! {
    /// `XLOG_SMGR_CREATE`: a fork of a relation comes into being.
    #[derive(Copy, Eq)]
    pub struct SmgrCreate("xl_smgr_create", "sizeof(xl_smgr_create)" = 16) {
        /// Relation.
        relation: RelFileNode = 0 "rnode",
        /// Fork number.
        forknum: u32 = 12 "forkNum",
    }
}

c_struct! {
    /// `XLOG_SMGR_TRUNCATE`: a relation is cut short.
    #[derive(Copy, Eq)]
    pub struct SmgrTruncate("xl_smgr_truncate", "sizeof(xl_smgr_truncate)" = 20) {
        /// Pages that remain in the main fork.
        blocks: u32 = 0 "blkno",
        /// Relation.
        relation: RelFileNode = 4 "rnode",
        /// Which forks: `SMGR_TRUNCATE_`.
        flags: u32 = 16 "flags",
    }
}

c_struct! {
    /// `XLOG_DBASE_CREATE_FILE_COPY`: a database is made by copying another's files.
    #[derive(Copy, Eq)]
    pub struct DbaseCreateFileCopy(
        "xl_dbase_create_file_copy_rec", "sizeof(xl_dbase_create_file_copy_rec)" = 16
    ) {
        /// New database.
        database: u32 = 0 "db_id",
        /// Its tablespace.
        tablespace: u32 = 4 "tablespace_id",
        /// Database that is copied.
        source_database: u32 = 8 "src_db_id",
        /// Tablespace whose files are copied.
        source_tablespace: u32 = 12 "src_tablespace_id",
    }
}

c_struct! {
    /// `XLOG_DBASE_CREATE_WAL_LOG`: a database comes into being, its pages follow in the WAL.
    #[derive(Copy, Eq)]
    pub struct DbaseCreateWalLog("xl_dbase_create_wal_log_rec", "sizeof(xl_dbase_create_wal_log_rec)" = 8) {
        /// New database.
        database: u32 = 0 "db_id",
        /// Its tablespace.
        tablespace: u32 = 4 "tablespace_id",
    }
}

c_struct! {
    /// Fixed part of [`DbaseDrop`].
    #[derive(Copy, Eq)]
    pub struct DbaseDropHeader("xl_dbase_drop_rec", "MinSizeOfDbaseDropRec" = 8) {
        /// Database.
        database: u32 = 0 "db_id",
        /// Number of tablespaces.
        tablespaces: u32 = 4 "ntablespaces",
    }
}

/// `XLOG_DBASE_DROP`: a database goes away, or leaves a tablespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DbaseDrop {
    /// Database.
    pub database: u32,
    /// Tablespaces its files are removed from.
    pub tablespaces: Vec<u32>,
}

impl DbaseDrop {
    /// Reads the main data.
    pub fn parse(main_data: &[u8]) -> Result<Self, Truncated> {
        let mut input = Cursor::new(main_data);
        let header = DbaseDropHeader::read(&mut input)?;
        Ok(Self {
            database: header.database,
            tablespaces: input.u32s(header.tablespaces as usize)?,
        })
    }
}

/// `XLOG_TBLSPC_CREATE`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TablespaceCreate {
    /// Tablespace.
    pub tablespace: u32,
    /// Its location in the file system, empty if in place.
    pub path: Vec<u8>,
}

impl TablespaceCreate {
    /// Reads the main data.
    pub fn parse(main_data: &[u8]) -> Result<Self, Truncated> {
        let mut input = Cursor::new(main_data);
        Ok(Self {
            tablespace: input.u32()?,
            path: input.c_str()?.to_vec(),
        })
    }
}

c_struct! {
    /// `XLOG_TBLSPC_DROP`.
    #[derive(Copy, Eq)]
    pub struct TablespaceDrop("xl_tblspc_drop_rec", "sizeof(xl_tblspc_drop_rec)" = 4) {
        /// Tablespace.
        tablespace: u32 = 0 "ts_id",
    }
}

c_struct! {
    /// `CLOG_TRUNCATE`.
    #[derive(Copy, Eq)]
    pub struct ClogTruncate("xl_clog_truncate", "sizeof(xl_clog_truncate)" = 12) {
        /// First page that is kept.
        page: u32 = 0 "pageno",
        /// Oldest transaction whose status is kept.
        oldest_xid: u32 = 4 "oldestXact",
        /// Database that needs it.
        oldest_xid_db: u32 = 8 "oldestXactDb",
    }
}

/// Number of the page that `CLOG_ZEROPAGE`, `XLOG_MULTIXACT_ZERO_OFF_PAGE` or `XLOG_MULTIXACT_ZERO_MEM_PAGE` makes.
pub fn zero_page(main_data: &[u8]) -> Result<u32, Truncated> {
    Cursor::new(main_data).u32()
}

c_struct! {
    /// Fixed part of [`MultiXactCreate`].
    #[derive(Copy, Eq)]
    pub struct MultiXactCreateHeader("xl_multixact_create", "SizeOfMultiXactCreate" = 12) {
        /// The multixact.
        multi: u32 = 0 "mid",
        /// Offset of its first member.
        offset: u32 = 4 "moff",
        /// Number of members.
        members: u32 = 8 "nmembers",
    }
}

c_struct! {
    /// A member of a multixact.
    #[derive(Copy, Eq)]
    pub struct MultiXactMember("MultiXactMember", "sizeof(MultiXactMember)" = 8) {
        /// Transaction.
        xid: u32 = 0 "xid",
        /// `MultiXactStatus`.
        status: u32 = 4 "status",
    }
}

/// `XLOG_MULTIXACT_CREATE_ID`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MultiXactCreate {
    /// The multixact.
    pub multi: u32,
    /// Offset of its first member.
    pub offset: u32,
    /// Its members.
    pub members: Vec<MultiXactMember>,
}

impl MultiXactCreate {
    /// Reads the main data.
    pub fn parse(main_data: &[u8]) -> Result<Self, Truncated> {
        let mut input = Cursor::new(main_data);
        let header = MultiXactCreateHeader::read(&mut input)?;
        Ok(Self {
            multi: header.multi,
            offset: header.offset,
            members: input.structs(header.members as usize)?,
        })
    }
}

c_struct! {
    /// `XLOG_MULTIXACT_TRUNCATE_ID`. Ends are exclusive.
    #[derive(Copy, Eq)]
    pub struct MultiXactTruncate("xl_multixact_truncate", "SizeOfMultiXactTruncate" = 20) {
        /// Database that has the new oldest multixact.
        oldest_multi_db: u32 = 0 "oldestMultiDB",
        /// First multixact removed.
        start_multi: u32 = 4 "startTruncOff",
        /// New oldest multixact.
        end_multi: u32 = 8 "endTruncOff",
        /// First member removed.
        start_member: u32 = 12 "startTruncMemb",
        /// New oldest member.
        end_member: u32 = 16 "endTruncMemb",
    }
}

c_struct! {
    /// Fixed part of [`RelMapUpdate`].
    #[derive(Copy, Eq)]
    pub struct RelMapUpdateHeader("xl_relmap_update", "MinSizeOfRelmapUpdate" = 12) {
        /// Database, 0 for the shared map.
        database: u32 = 0 "dbid",
        /// Its tablespace.
        tablespace: u32 = 4 "tsid",
        /// Length of the file in bytes.
        len: u32 = 8 "nbytes",
    }
}

/// `XLOG_RELMAP_UPDATE`: new contents of a `pg_filenode.map`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RelMapUpdate<'a> {
    /// Database, 0 for the shared map.
    pub database: u32,
    /// Its tablespace.
    pub tablespace: u32,
    /// The file.
    pub file: &'a [u8],
}

impl<'a> RelMapUpdate<'a> {
    /// Reads the main data.
    pub fn parse(main_data: &'a [u8]) -> Result<Self, Truncated> {
        let mut input = Cursor::new(main_data);
        let header = RelMapUpdateHeader::read(&mut input)?;
        Ok(Self {
            database: header.database,
            tablespace: header.tablespace,
            file: input.bytes(header.len as usize)?,
        })
    }
}

c_struct! {
    /// Fixed part of [`RunningXacts`].
    #[derive(Copy, Eq)]
    pub struct RunningXactsHeader("xl_running_xacts", "offsetof(xl_running_xacts, xids)" = 24) {
        /// Number of transactions.
        xids: u32 = 0 "xcnt",
        /// Number of subtransactions.
        subxids: u32 = 4 "subxcnt",
        /// Whether subtransactions are missing.
        overflowed: bool = 8 "subxid_overflow",
        /// Next transaction id.
        next_xid: u32 = 12 "nextXid",
        /// Oldest transaction running.
        oldest_running_xid: u32 = 16 "oldestRunningXid",
        /// Latest transaction that ended.
        latest_completed_xid: u32 = 20 "latestCompletedXid",
    }
}

/// `XLOG_RUNNING_XACTS`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RunningXacts {
    /// Fixed part.
    pub header: RunningXactsHeader,
    /// Transactions, then subtransactions.
    pub xids: Vec<u32>,
}

impl RunningXacts {
    /// Reads the main data.
    pub fn parse(main_data: &[u8]) -> Result<Self, Truncated> {
        let mut input = Cursor::new(main_data);
        let header = RunningXactsHeader::read(&mut input)?;
        let count = u64::from(header.xids) + u64::from(header.subxids);
        Ok(Self {
            header,
            xids: input.u32s(count as usize)?,
        })
    }
}

/// `XLOG_NEXTOID`: object ids below this may be in use.
pub fn next_oid(main_data: &[u8]) -> Result<u32, Truncated> {
    Cursor::new(main_data).u32()
}

c_struct! {
    /// `XLOG_PARAMETER_CHANGE`: settings a standby has to follow.
    #[derive(Copy, Eq)]
    pub struct ParameterChange("xl_parameter_change", "sizeof(xl_parameter_change)" = 28) {
        /// `max_connections`.
        max_connections: i32 = 0 "MaxConnections",
        /// `max_worker_processes`.
        max_worker_processes: i32 = 4 "max_worker_processes",
        /// `max_wal_senders`.
        max_wal_senders: i32 = 8 "max_wal_senders",
        /// `max_prepared_transactions`.
        max_prepared_transactions: i32 = 12 "max_prepared_xacts",
        /// `max_locks_per_transaction`.
        max_locks_per_transaction: i32 = 16 "max_locks_per_xact",
        /// `wal_level`: 0 minimal, 1 replica, 2 logical.
        wal_level: i32 = 20 "wal_level",
        /// `wal_log_hints`.
        wal_log_hints: bool = 24 "wal_log_hints",
        /// `track_commit_timestamp`.
        track_commit_timestamp: bool = 25 "track_commit_timestamp",
    }
}

c_struct! {
    /// `XLOG_END_OF_RECOVERY`.
    #[derive(Copy, Eq)]
    pub struct EndOfRecovery("xl_end_of_recovery", "sizeof(xl_end_of_recovery)" = 16) {
        /// When, microseconds since 2000-01-01.
        time: i64 = 0 "end_time",
        /// PostgreSQL's timeline from here on.
        timeline: u32 = 8 "ThisTimeLineID",
        /// The one before.
        previous_timeline: u32 = 12 "PrevTimeLineID",
    }
}

c_struct! {
    /// `XLOG_OVERWRITE_CONTRECORD`: the record at that place never got its rest.
    #[derive(Copy, Eq)]
    pub struct OverwriteContrecord("xl_overwrite_contrecord", "sizeof(xl_overwrite_contrecord)" = 16) {
        /// Start of that record.
        overwritten: Lsn = 0 "overwritten_lsn",
        /// When, microseconds since 2000-01-01.
        time: i64 = 8 "overwrite_time",
    }
}

c_struct! {
    /// `XLOG_REPLORIGIN_SET`: how far replication from an origin has come.
    #[derive(Copy, Eq)]
    pub struct ReplOriginSet("xl_replorigin_set", "sizeof(xl_replorigin_set)" = 16) {
        /// Position at the origin.
        remote_lsn: Lsn = 0 "remote_lsn",
        /// Origin.
        origin: u16 = 8 "node_id",
        /// Whether the position may go back.
        force: bool = 10 "force",
    }
}

c_struct! {
    /// `XLOG_REPLORIGIN_DROP`.
    #[derive(Copy, Eq)]
    pub struct ReplOriginDrop("xl_replorigin_drop", "sizeof(xl_replorigin_drop)" = 2) {
        /// Origin.
        origin: u16 = 0 "node_id",
    }
}

c_struct! {
    /// Fixed part of [`LogicalMessage`].
    #[derive(Copy, Eq)]
    pub struct LogicalMessageHeader("xl_logical_message", "SizeOfLogicalMessage" = 24) {
        /// Database.
        database: u32 = 0 "dbId",
        /// Whether it belongs to its transaction.
        transactional: bool = 4 "transactional",
        /// Length of the prefix, terminator included.
        prefix_len: u64 = 8 "prefix_size",
        /// Length of the message.
        message_len: u64 = 16 "message_size",
    }
}

/// `XLOG_LOGICAL_MESSAGE`: bytes an extension put into the WAL.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LogicalMessage<'a> {
    /// Fixed part.
    pub header: LogicalMessageHeader,
    /// Who is meant to read it, without terminator.
    pub prefix: &'a [u8],
    /// The message.
    pub message: &'a [u8],
}

impl<'a> LogicalMessage<'a> {
    /// Reads the main data.
    pub fn parse(main_data: &'a [u8]) -> Result<Self, Truncated> {
        let mut input = Cursor::new(main_data);
        let header = LogicalMessageHeader::read(&mut input)?;
        let prefix = input.bytes(usize::try_from(header.prefix_len).unwrap_or(usize::MAX))?;
        let message = input.bytes(usize::try_from(header.message_len).unwrap_or(usize::MAX))?;
        Ok(Self {
            header,
            prefix: prefix.strip_suffix(&[0]).unwrap_or(prefix),
            message,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn lists() {
        let create = MultiXactCreate::parse(&words(&[7, 100, 2, 11, 0, 12, 5])).unwrap();
        assert_eq!((create.multi, create.offset), (7, 100));
        assert_eq!(create.members[1], MultiXactMember { xid: 12, status: 5 });
        assert!(MultiXactCreate::parse(&words(&[7, 100, 2, 11, 0, 12])).is_err());
        assert!(MultiXactCreate::parse(&words(&[7, 100, u32::MAX])).is_err());
        let drop = DbaseDrop::parse(&words(&[5, 2, 1663, 16400])).unwrap();
        assert_eq!((drop.database, drop.tablespaces), (5, vec![1663, 16400]));
        let running = RunningXacts::parse(&words(&[1, 1, 0, 10, 8, 9, 8, 20])).unwrap();
        assert_eq!((running.header.next_xid, running.xids), (10, vec![8, 20]));
    }

    #[test]
    fn byte_strings() {
        let mut data = words(&[0, 1663, 4]);
        data.extend(b"file");
        assert_eq!(RelMapUpdate::parse(&data).unwrap().file, b"file");
        let mut data = words(&[5, 1, 3, 0, 2, 0]);
        data.extend(b"me\0hi");
        let message = LogicalMessage::parse(&data).unwrap();
        assert_eq!((message.prefix, message.message), (&b"me"[..], &b"hi"[..]));
        assert!(message.header.transactional);
        let create = TablespaceCreate::parse(b"\x10\0\0\0/srv/ts\0").unwrap();
        assert_eq!((create.tablespace, &create.path[..]), (16, &b"/srv/ts"[..]));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = (DbaseDrop::parse(&data), TablespaceCreate::parse(&data), zero_page(&data), next_oid(&data));
            let _ = (MultiXactCreate::parse(&data), RelMapUpdate::parse(&data), RunningXacts::parse(&data));
            let _ = (LogicalMessage::parse(&data), ParameterChange::decode(&data), SmgrCreate::decode(&data));
        }
    }
}
