//! Resource managers and the kinds of their records, with PostgreSQL's own symbols, and the names `pg_waldump` prints.
//!
//! A record kind is the resource manager's number with the high four bits of `xl_info`; some managers
//! keep a flag in the highest bit ([`XLOG_HEAP_INIT_PAGE`], [`XLOG_BRIN_INIT_PAGE`], [`XLOG_XACT_HAS_INFO`]).

/// One kind of record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RecordKind {
    /// Resource manager number.
    pub rmid: u8,
    /// PostgreSQL's symbol for `info`.
    pub symbol: &'static str,
    /// The manager's bits of `xl_info`.
    pub info: u8,
    /// What `pg_waldump` calls it.
    pub name: &'static str,
}

/// Mask of the bits of `xl_info` that belong to the resource manager.
pub const XLR_RMGR_INFO_MASK: u8 = 0xf0;
/// `xl_info`: the record changes relation files in ways its block references do not show.
pub const XLR_SPECIAL_REL_UPDATE: u8 = 0x01;
/// `xl_info`: images are there to check what redo makes of the pages.
pub const XLR_CHECK_CONSISTENCY: u8 = 0x02;
/// Heap and heap2: the operation without [`XLOG_HEAP_INIT_PAGE`].
pub const XLOG_HEAP_OPMASK: u8 = 0x70;
/// Heap and heap2: the new tuple is the only one on its page, which redo makes from nothing.
pub const XLOG_HEAP_INIT_PAGE: u8 = 0x80;
/// BRIN: the operation without [`XLOG_BRIN_INIT_PAGE`].
pub const XLOG_BRIN_OPMASK: u8 = 0x70;
/// BRIN: the page is made from nothing.
pub const XLOG_BRIN_INIT_PAGE: u8 = 0x80;
/// Transactions: the operation without [`XLOG_XACT_HAS_INFO`].
pub const XLOG_XACT_OPMASK: u8 = 0x70;
/// Transactions: a commit or abort record has an `xinfo` field.
pub const XLOG_XACT_HAS_INFO: u8 = 0x80;
/// Lowest number of a resource manager that an extension may register.
pub const RM_MIN_CUSTOM_ID: u8 = 128;

/// Declares the managers and their record kinds: constants, names and the list of all of them. Entries after
/// a `+` have a flag set and a name of their own.
macro_rules! managers {
    ($(
        $id:ident = $number:literal, $title:literal, mask $mask:expr => {
            $($symbol:ident = $info:literal $name:literal,)*
            $(+ $base:ident | $flag:ident $flagged:literal,)*
        }
    )*) => {
        $(
            #[doc = concat!("Number of the resource manager `", $title, "`.")]
            pub const $id: u8 = $number;
            $(
                #[doc = concat!("`", $title, "`: the record kind `", $name, "`.")]
                pub const $symbol: u8 = $info;
            )*
        )*

        /// Name of a built-in resource manager as `pg_waldump` prints it, `None` for an unknown one.
        pub fn rmgr_name(rmid: u8) -> Option<&'static str> {
            match rmid {
                $($id => Some($title),)*
                _ => None,
            }
        }

        /// Name of a record kind as `pg_waldump` prints it, `"UNKNOWN"` if there is none.
        pub fn record_name(rmid: u8, info: u8) -> &'static str {
            match rmid {
                $($id => {
                    let info = info & $mask;
                    $(if info == $symbol {
                        return $name;
                    })*
                    $(if info == $base | $flag {
                        return $flagged;
                    })*
                })*
                _ => {}
            }
            "UNKNOWN"
        }

        /// Every resource manager: symbol and number.
        pub const MANAGERS: &[(&str, u8)] = &[$((stringify!($id), $id),)*];

        /// Every record kind, without those that differ by a flag only.
        pub const RECORD_KINDS: &[RecordKind] = &[$($(
            RecordKind { rmid: $id, symbol: stringify!($symbol), info: $symbol, name: $name },
        )*)*];
    };
}

managers! {
    RM_XLOG_ID = 0, "XLOG", mask 0xf0 => {
        XLOG_CHECKPOINT_SHUTDOWN = 0x00 "CHECKPOINT_SHUTDOWN",
        XLOG_CHECKPOINT_ONLINE = 0x10 "CHECKPOINT_ONLINE",
        XLOG_NOOP = 0x20 "NOOP",
        XLOG_NEXTOID = 0x30 "NEXTOID",
        XLOG_SWITCH = 0x40 "SWITCH",
        XLOG_BACKUP_END = 0x50 "BACKUP_END",
        XLOG_PARAMETER_CHANGE = 0x60 "PARAMETER_CHANGE",
        XLOG_RESTORE_POINT = 0x70 "RESTORE_POINT",
        XLOG_FPW_CHANGE = 0x80 "FPW_CHANGE",
        XLOG_END_OF_RECOVERY = 0x90 "END_OF_RECOVERY",
        XLOG_FPI_FOR_HINT = 0xa0 "FPI_FOR_HINT",
        XLOG_FPI = 0xb0 "FPI",
        XLOG_OVERWRITE_CONTRECORD = 0xd0 "OVERWRITE_CONTRECORD",
    }
    RM_XACT_ID = 1, "Transaction", mask XLOG_XACT_OPMASK => {
        XLOG_XACT_COMMIT = 0x00 "COMMIT",
        XLOG_XACT_PREPARE = 0x10 "PREPARE",
        XLOG_XACT_ABORT = 0x20 "ABORT",
        XLOG_XACT_COMMIT_PREPARED = 0x30 "COMMIT_PREPARED",
        XLOG_XACT_ABORT_PREPARED = 0x40 "ABORT_PREPARED",
        XLOG_XACT_ASSIGNMENT = 0x50 "ASSIGNMENT",
        XLOG_XACT_INVALIDATIONS = 0x60 "INVALIDATION",
    }
    RM_SMGR_ID = 2, "Storage", mask 0xf0 => {
        XLOG_SMGR_CREATE = 0x10 "CREATE",
        XLOG_SMGR_TRUNCATE = 0x20 "TRUNCATE",
    }
    RM_CLOG_ID = 3, "CLOG", mask 0xf0 => {
        CLOG_ZEROPAGE = 0x00 "ZEROPAGE",
        CLOG_TRUNCATE = 0x10 "TRUNCATE",
    }
    RM_DBASE_ID = 4, "Database", mask 0xf0 => {
        XLOG_DBASE_CREATE_FILE_COPY = 0x00 "CREATE_FILE_COPY",
        XLOG_DBASE_CREATE_WAL_LOG = 0x10 "CREATE_WAL_LOG",
        XLOG_DBASE_DROP = 0x20 "DROP",
    }
    RM_TBLSPC_ID = 5, "Tablespace", mask 0xf0 => {
        XLOG_TBLSPC_CREATE = 0x00 "CREATE",
        XLOG_TBLSPC_DROP = 0x10 "DROP",
    }
    RM_MULTIXACT_ID = 6, "MultiXact", mask 0xf0 => {
        XLOG_MULTIXACT_ZERO_OFF_PAGE = 0x00 "ZERO_OFF_PAGE",
        XLOG_MULTIXACT_ZERO_MEM_PAGE = 0x10 "ZERO_MEM_PAGE",
        XLOG_MULTIXACT_CREATE_ID = 0x20 "CREATE_ID",
        XLOG_MULTIXACT_TRUNCATE_ID = 0x30 "TRUNCATE_ID",
    }
    RM_RELMAP_ID = 7, "RelMap", mask 0xf0 => {
        XLOG_RELMAP_UPDATE = 0x00 "UPDATE",
    }
    RM_STANDBY_ID = 8, "Standby", mask 0xf0 => {
        XLOG_STANDBY_LOCK = 0x00 "LOCK",
        XLOG_RUNNING_XACTS = 0x10 "RUNNING_XACTS",
        XLOG_INVALIDATIONS = 0x20 "INVALIDATIONS",
    }
    RM_HEAP2_ID = 9, "Heap2", mask 0xf0 => {
        XLOG_HEAP2_REWRITE = 0x00 "REWRITE",
        XLOG_HEAP2_PRUNE = 0x10 "PRUNE",
        XLOG_HEAP2_VACUUM = 0x20 "VACUUM",
        XLOG_HEAP2_FREEZE_PAGE = 0x30 "FREEZE_PAGE",
        XLOG_HEAP2_VISIBLE = 0x40 "VISIBLE",
        XLOG_HEAP2_MULTI_INSERT = 0x50 "MULTI_INSERT",
        XLOG_HEAP2_LOCK_UPDATED = 0x60 "LOCK_UPDATED",
        XLOG_HEAP2_NEW_CID = 0x70 "NEW_CID",
        + XLOG_HEAP2_MULTI_INSERT | XLOG_HEAP_INIT_PAGE "MULTI_INSERT+INIT",
    }
    RM_HEAP_ID = 10, "Heap", mask 0xf0 => {
        XLOG_HEAP_INSERT = 0x00 "INSERT",
        XLOG_HEAP_DELETE = 0x10 "DELETE",
        XLOG_HEAP_UPDATE = 0x20 "UPDATE",
        XLOG_HEAP_TRUNCATE = 0x30 "TRUNCATE",
        XLOG_HEAP_HOT_UPDATE = 0x40 "HOT_UPDATE",
        XLOG_HEAP_CONFIRM = 0x50 "HEAP_CONFIRM",
        XLOG_HEAP_LOCK = 0x60 "LOCK",
        XLOG_HEAP_INPLACE = 0x70 "INPLACE",
        + XLOG_HEAP_INSERT | XLOG_HEAP_INIT_PAGE "INSERT+INIT",
        + XLOG_HEAP_UPDATE | XLOG_HEAP_INIT_PAGE "UPDATE+INIT",
        + XLOG_HEAP_HOT_UPDATE | XLOG_HEAP_INIT_PAGE "HOT_UPDATE+INIT",
    }
    RM_BTREE_ID = 11, "Btree", mask 0xf0 => {
        XLOG_BTREE_INSERT_LEAF = 0x00 "INSERT_LEAF",
        XLOG_BTREE_INSERT_UPPER = 0x10 "INSERT_UPPER",
        XLOG_BTREE_INSERT_META = 0x20 "INSERT_META",
        XLOG_BTREE_SPLIT_L = 0x30 "SPLIT_L",
        XLOG_BTREE_SPLIT_R = 0x40 "SPLIT_R",
        XLOG_BTREE_INSERT_POST = 0x50 "INSERT_POST",
        XLOG_BTREE_DEDUP = 0x60 "DEDUP",
        XLOG_BTREE_DELETE = 0x70 "DELETE",
        XLOG_BTREE_UNLINK_PAGE = 0x80 "UNLINK_PAGE",
        XLOG_BTREE_UNLINK_PAGE_META = 0x90 "UNLINK_PAGE_META",
        XLOG_BTREE_NEWROOT = 0xa0 "NEWROOT",
        XLOG_BTREE_MARK_PAGE_HALFDEAD = 0xb0 "MARK_PAGE_HALFDEAD",
        XLOG_BTREE_VACUUM = 0xc0 "VACUUM",
        XLOG_BTREE_REUSE_PAGE = 0xd0 "REUSE_PAGE",
        XLOG_BTREE_META_CLEANUP = 0xe0 "META_CLEANUP",
    }
    RM_HASH_ID = 12, "Hash", mask 0xf0 => {
        XLOG_HASH_INIT_META_PAGE = 0x00 "INIT_META_PAGE",
        XLOG_HASH_INIT_BITMAP_PAGE = 0x10 "INIT_BITMAP_PAGE",
        XLOG_HASH_INSERT = 0x20 "INSERT",
        XLOG_HASH_ADD_OVFL_PAGE = 0x30 "ADD_OVFL_PAGE",
        XLOG_HASH_SPLIT_ALLOCATE_PAGE = 0x40 "SPLIT_ALLOCATE_PAGE",
        XLOG_HASH_SPLIT_PAGE = 0x50 "SPLIT_PAGE",
        XLOG_HASH_SPLIT_COMPLETE = 0x60 "SPLIT_COMPLETE",
        XLOG_HASH_MOVE_PAGE_CONTENTS = 0x70 "MOVE_PAGE_CONTENTS",
        XLOG_HASH_SQUEEZE_PAGE = 0x80 "SQUEEZE_PAGE",
        XLOG_HASH_DELETE = 0x90 "DELETE",
        XLOG_HASH_SPLIT_CLEANUP = 0xa0 "SPLIT_CLEANUP",
        XLOG_HASH_UPDATE_META_PAGE = 0xb0 "UPDATE_META_PAGE",
        XLOG_HASH_VACUUM_ONE_PAGE = 0xc0 "VACUUM_ONE_PAGE",
    }
    RM_GIN_ID = 13, "Gin", mask 0xf0 => {
        XLOG_GIN_CREATE_PTREE = 0x10 "CREATE_PTREE",
        XLOG_GIN_INSERT = 0x20 "INSERT",
        XLOG_GIN_SPLIT = 0x30 "SPLIT",
        XLOG_GIN_VACUUM_PAGE = 0x40 "VACUUM_PAGE",
        XLOG_GIN_DELETE_PAGE = 0x50 "DELETE_PAGE",
        XLOG_GIN_UPDATE_META_PAGE = 0x60 "UPDATE_META_PAGE",
        XLOG_GIN_INSERT_LISTPAGE = 0x70 "INSERT_LISTPAGE",
        XLOG_GIN_DELETE_LISTPAGE = 0x80 "DELETE_LISTPAGE",
        XLOG_GIN_VACUUM_DATA_LEAF_PAGE = 0x90 "VACUUM_DATA_LEAF_PAGE",
    }
    RM_GIST_ID = 14, "Gist", mask 0xf0 => {
        XLOG_GIST_PAGE_UPDATE = 0x00 "PAGE_UPDATE",
        XLOG_GIST_DELETE = 0x10 "DELETE",
        XLOG_GIST_PAGE_REUSE = 0x20 "PAGE_REUSE",
        XLOG_GIST_PAGE_SPLIT = 0x30 "PAGE_SPLIT",
        XLOG_GIST_PAGE_DELETE = 0x60 "PAGE_DELETE",
        XLOG_GIST_ASSIGN_LSN = 0x70 "ASSIGN_LSN",
    }
    RM_SEQ_ID = 15, "Sequence", mask 0xf0 => {
        XLOG_SEQ_LOG = 0x00 "LOG",
    }
    RM_SPGIST_ID = 16, "SPGist", mask 0xf0 => {
        XLOG_SPGIST_ADD_LEAF = 0x10 "ADD_LEAF",
        XLOG_SPGIST_MOVE_LEAFS = 0x20 "MOVE_LEAFS",
        XLOG_SPGIST_ADD_NODE = 0x30 "ADD_NODE",
        XLOG_SPGIST_SPLIT_TUPLE = 0x40 "SPLIT_TUPLE",
        XLOG_SPGIST_PICKSPLIT = 0x50 "PICKSPLIT",
        XLOG_SPGIST_VACUUM_LEAF = 0x60 "VACUUM_LEAF",
        XLOG_SPGIST_VACUUM_ROOT = 0x70 "VACUUM_ROOT",
        XLOG_SPGIST_VACUUM_REDIRECT = 0x80 "VACUUM_REDIRECT",
    }
    RM_BRIN_ID = 17, "BRIN", mask 0xf0 => {
        XLOG_BRIN_CREATE_INDEX = 0x00 "CREATE_INDEX",
        XLOG_BRIN_INSERT = 0x10 "INSERT",
        XLOG_BRIN_UPDATE = 0x20 "UPDATE",
        XLOG_BRIN_SAMEPAGE_UPDATE = 0x30 "SAMEPAGE_UPDATE",
        XLOG_BRIN_REVMAP_EXTEND = 0x40 "REVMAP_EXTEND",
        XLOG_BRIN_DESUMMARIZE = 0x50 "DESUMMARIZE",
        + XLOG_BRIN_INSERT | XLOG_BRIN_INIT_PAGE "INSERT+INIT",
        + XLOG_BRIN_UPDATE | XLOG_BRIN_INIT_PAGE "UPDATE+INIT",
    }
    RM_COMMIT_TS_ID = 18, "CommitTs", mask 0xff => {
        COMMIT_TS_ZEROPAGE = 0x00 "ZEROPAGE",
        COMMIT_TS_TRUNCATE = 0x10 "TRUNCATE",
    }
    RM_REPLORIGIN_ID = 19, "ReplicationOrigin", mask 0xff => {
        XLOG_REPLORIGIN_SET = 0x00 "SET",
        XLOG_REPLORIGIN_DROP = 0x10 "DROP",
    }
    RM_GENERIC_ID = 20, "Generic", mask 0x00 => {
        GENERIC_RECORD = 0x00 "Generic",
    }
    RM_LOGICALMSG_ID = 21, "LogicalMessage", mask 0xf0 => {
        XLOG_LOGICAL_MESSAGE = 0x00 "MESSAGE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_pg_waldump() {
        let check = |rmid, info, want: (&str, &str)| {
            assert_eq!((rmgr_name(rmid).unwrap_or("?"), record_name(rmid, info)), want);
        };
        check(
            RM_HEAP_ID,
            XLOG_HEAP_HOT_UPDATE | XLOG_HEAP_INIT_PAGE,
            ("Heap", "HOT_UPDATE+INIT"),
        );
        check(RM_HEAP_ID, XLOG_HEAP_CONFIRM, ("Heap", "HEAP_CONFIRM"));
        check(
            RM_HEAP2_ID,
            XLOG_HEAP2_VISIBLE | XLR_SPECIAL_REL_UPDATE,
            ("Heap2", "VISIBLE"),
        );
        check(
            RM_XACT_ID,
            XLOG_XACT_COMMIT | XLOG_XACT_HAS_INFO | 1,
            ("Transaction", "COMMIT"),
        );
        check(RM_GENERIC_ID, 0x70, ("Generic", "Generic"));
        check(RM_REPLORIGIN_ID, 0x20, ("ReplicationOrigin", "UNKNOWN"));
        check(RM_SMGR_ID, 0, ("Storage", "UNKNOWN"));
        check(200, 0, ("?", "UNKNOWN"));
    }

    #[test]
    fn kinds_are_distinct() {
        for (i, kind) in RECORD_KINDS.iter().enumerate() {
            assert_eq!(record_name(kind.rmid, kind.info), kind.name);
            assert!(
                RECORD_KINDS[..i]
                    .iter()
                    .all(|other| (other.rmid, other.info) != (kind.rmid, kind.info))
            );
        }
        assert_eq!(MANAGERS.len(), 22);
    }
}
