//! Our view of PostgreSQL's structs and constants against the C compiler's, for the installed server headers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test binary uses a part of the common helpers")]
mod common;

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use postgres_ffi::c_struct::{CStruct, Layout};
use postgres_ffi::v15::{
    BLCKSZ, WAL_SEGMENT_SIZE, bodies, checkpoint, control_file, decode, page, record, relfile, rmgr, slru,
    wal_page, xact,
};

const LAYOUTS: &[Layout] = &[
    checkpoint::CheckPoint::LAYOUT,
    control_file::ControlFile::LAYOUT,
    relfile::RelFileNode::LAYOUT,
    xact::StatsItem::LAYOUT,
    xact::PrepareHeader::LAYOUT,
    bodies::SmgrCreate::LAYOUT,
    bodies::SmgrTruncate::LAYOUT,
    bodies::DbaseCreateFileCopy::LAYOUT,
    bodies::DbaseCreateWalLog::LAYOUT,
    bodies::DbaseDropHeader::LAYOUT,
    bodies::TablespaceDrop::LAYOUT,
    bodies::ClogTruncate::LAYOUT,
    bodies::MultiXactCreateHeader::LAYOUT,
    bodies::MultiXactMember::LAYOUT,
    bodies::MultiXactTruncate::LAYOUT,
    bodies::RelMapUpdateHeader::LAYOUT,
    bodies::RunningXactsHeader::LAYOUT,
    bodies::ParameterChange::LAYOUT,
    bodies::EndOfRecovery::LAYOUT,
    bodies::OverwriteContrecord::LAYOUT,
    bodies::ReplOriginSet::LAYOUT,
    bodies::ReplOriginDrop::LAYOUT,
    bodies::LogicalMessageHeader::LAYOUT,
];

const INCLUDES: &[&str] = &[
    "postgres.h",
    "access/brin_xlog.h",
    "access/clog.h",
    "access/commit_ts.h",
    "access/ginxlog.h",
    "access/gistxlog.h",
    "access/hash_xlog.h",
    "access/heapam_xlog.h",
    "access/multixact.h",
    "access/nbtxlog.h",
    "access/rmgr.h",
    "access/slru.h",
    "access/spgxlog.h",
    "access/transam.h",
    "access/xact.h",
    "access/xlog_internal.h",
    "access/xlogrecord.h",
    "catalog/catversion.h",
    "catalog/pg_control.h",
    "catalog/pg_tablespace_d.h",
    "catalog/storage_xlog.h",
    "commands/dbcommands_xlog.h",
    "commands/sequence.h",
    "commands/tablespace.h",
    "common/relpath.h",
    "replication/message.h",
    "replication/origin.h",
    "storage/bufpage.h",
    "storage/itemid.h",
    "storage/relfilenode.h",
    "storage/sinval.h",
    "storage/standbydefs.h",
    "utils/relmapper.h",
];

/// A C expression and the value it must have.
type Fact = (String, u64);

/// Constants whose name is the same in C.
macro_rules! same_name {
    ($($module:ident :: { $($name:ident),* $(,)? })*) => {
        vec![$($((stringify!($name).to_owned(), u64::from($module::$name)),)*)*]
    };
}

fn constants() -> Vec<Fact> {
    same_name! {
        wal_page::{
            XLOG_PAGE_MAGIC, XLP_FIRST_IS_CONTRECORD, XLP_LONG_HEADER, XLP_BKP_REMOVABLE,
            XLP_FIRST_IS_OVERWRITE_CONTRECORD, XLP_ALL_FLAGS,
        }
        decode::{
            XLR_MAX_BLOCK_ID, XLR_BLOCK_ID_DATA_SHORT, XLR_BLOCK_ID_DATA_LONG, XLR_BLOCK_ID_ORIGIN,
            XLR_BLOCK_ID_TOPLEVEL_XID, BKPBLOCK_FORK_MASK, BKPBLOCK_HAS_IMAGE, BKPBLOCK_HAS_DATA,
            BKPBLOCK_WILL_INIT, BKPBLOCK_SAME_REL, BKPIMAGE_HAS_HOLE, BKPIMAGE_APPLY, BKPIMAGE_COMPRESS_PGLZ,
            BKPIMAGE_COMPRESS_LZ4, BKPIMAGE_COMPRESS_ZSTD,
        }
        rmgr::{
            XLR_RMGR_INFO_MASK, XLR_SPECIAL_REL_UPDATE, XLR_CHECK_CONSISTENCY, XLOG_HEAP_OPMASK,
            XLOG_HEAP_INIT_PAGE, XLOG_BRIN_OPMASK, XLOG_BRIN_INIT_PAGE, XLOG_XACT_OPMASK, XLOG_XACT_HAS_INFO,
            RM_MIN_CUSTOM_ID,
        }
        page::{
            PD_HAS_FREE_LINES, PD_PAGE_FULL, PD_ALL_VISIBLE, PD_VALID_FLAG_BITS, LP_UNUSED, LP_NORMAL, LP_REDIRECT,
            LP_DEAD,
        }
        xact::{
            XACT_XINFO_HAS_DBINFO, XACT_XINFO_HAS_SUBXACTS, XACT_XINFO_HAS_RELFILENODES, XACT_XINFO_HAS_INVALS,
            XACT_XINFO_HAS_TWOPHASE, XACT_XINFO_HAS_ORIGIN, XACT_XINFO_HAS_AE_LOCKS, XACT_XINFO_HAS_GID,
            XACT_XINFO_HAS_DROPPED_STATS,
        }
        bodies::{ SMGR_TRUNCATE_HEAP, SMGR_TRUNCATE_VM, SMGR_TRUNCATE_FSM }
        relfile::{
            DEFAULTTABLESPACE_OID, GLOBALTABLESPACE_OID, RELSEG_SIZE, MAIN_FORKNUM, FSM_FORKNUM,
            VISIBILITYMAP_FORKNUM, INIT_FORKNUM,
        }
        slru::{
            SLRU_PAGES_PER_SEGMENT, TRANSACTION_STATUS_IN_PROGRESS, TRANSACTION_STATUS_COMMITTED,
            TRANSACTION_STATUS_ABORTED, TRANSACTION_STATUS_SUB_COMMITTED,
        }
        control_file::{ DB_SHUTDOWNED, DB_IN_PRODUCTION }
    }
}

/// Facts that are worded differently in C.
fn other_facts() -> Vec<Fact> {
    let header = record::RecordHeader::LEN as u64;
    let facts: &[(&str, u64)] = &[
        ("SizeOfXLogRecord", header),
        ("offsetof(XLogRecord, xl_tot_len)", 0),
        ("offsetof(XLogRecord, xl_xid)", 4),
        ("offsetof(XLogRecord, xl_prev)", 8),
        ("offsetof(XLogRecord, xl_info)", 16),
        ("offsetof(XLogRecord, xl_rmid)", 17),
        (
            "offsetof(XLogRecord, xl_crc)",
            record::RecordHeader::CRC_OFFSET as u64,
        ),
        ("SizeOfXLogRecordBlockHeader", 4),
        ("SizeOfXLogRecordBlockImageHeader", 5),
        ("offsetof(XLogRecordBlockImageHeader, length)", 0),
        ("offsetof(XLogRecordBlockImageHeader, hole_offset)", 2),
        ("offsetof(XLogRecordBlockImageHeader, bimg_info)", 4),
        ("SizeOfXLogRecordBlockCompressHeader", 2),
        ("SizeOfXLogShortPHD", wal_page::SHORT_HEADER_LEN as u64),
        ("SizeOfXLogLongPHD", wal_page::LONG_HEADER_LEN as u64),
        ("offsetof(XLogPageHeaderData, xlp_magic)", 0),
        ("offsetof(XLogPageHeaderData, xlp_info)", 2),
        ("offsetof(XLogPageHeaderData, xlp_tli)", 4),
        ("offsetof(XLogPageHeaderData, xlp_pageaddr)", 8),
        ("offsetof(XLogPageHeaderData, xlp_rem_len)", 16),
        ("offsetof(XLogLongPageHeaderData, xlp_sysid)", 24),
        ("offsetof(XLogLongPageHeaderData, xlp_seg_size)", 32),
        ("offsetof(XLogLongPageHeaderData, xlp_xlog_blcksz)", 36),
        ("SizeOfPageHeaderData", page::HEADER_LEN as u64),
        ("offsetof(PageHeaderData, pd_lsn)", page::PD_LSN as u64),
        ("offsetof(PageHeaderData, pd_checksum)", page::PD_CHECKSUM as u64),
        ("offsetof(PageHeaderData, pd_flags)", page::PD_FLAGS as u64),
        ("offsetof(PageHeaderData, pd_lower)", page::PD_LOWER as u64),
        ("offsetof(PageHeaderData, pd_upper)", page::PD_UPPER as u64),
        ("offsetof(PageHeaderData, pd_special)", page::PD_SPECIAL as u64),
        (
            "offsetof(PageHeaderData, pd_pagesize_version)",
            page::PD_PAGESIZE_VERSION as u64,
        ),
        (
            "offsetof(PageHeaderData, pd_prune_xid)",
            page::PD_PRUNE_XID as u64,
        ),
        ("PG_PAGE_LAYOUT_VERSION", page::PAGE_LAYOUT_VERSION.into()),
        ("sizeof(ItemIdData)", page::ITEM_ID_LEN as u64),
        ("BLCKSZ", BLCKSZ as u64),
        ("XLOG_BLCKSZ", BLCKSZ as u64),
        ("DEFAULT_XLOG_SEG_SIZE", WAL_SEGMENT_SIZE as u64),
        ("PG_CONTROL_VERSION", control_file::CONTROL_VERSION.into()),
        ("PG_CONTROL_FILE_SIZE", control_file::CONTROL_FILE_SIZE as u64),
        ("FirstNormalTransactionId", checkpoint::FIRST_NORMAL_XID.into()),
        ("FirstMultiXactId", slru::FIRST_MULTIXACT_ID.into()),
        ("sizeof(SharedInvalidationMessage)", xact::INVALIDATION_LEN as u64),
        ("offsetof(xl_tblspc_create_rec, ts_path)", 4),
        ("offsetof(xl_xact_assignment, xsub)", 8),
        ("MinSizeOfXactCommit", 8),
        ("MinSizeOfXactAbort", 8),
        ("sizeof(xl_xact_xinfo)", 4),
        ("sizeof(xl_xact_dbinfo)", 8),
        ("offsetof(xl_xact_dbinfo, tsId)", 4),
        ("MinSizeOfXactSubxacts", 4),
        ("MinSizeOfXactRelfilenodes", 4),
        ("MinSizeOfXactStatsItems", 4),
        ("MinSizeOfXactInvals", 4),
        ("sizeof(xl_xact_twophase)", 4),
        ("sizeof(xl_xact_origin)", 16),
        ("offsetof(xl_xact_origin, origin_timestamp)", 8),
        (
            "strcmp(TABLESPACE_VERSION_DIRECTORY, TEXT_tablespace_version_directory) == 0",
            1,
        ),
    ];
    facts
        .iter()
        .map(|(expression, value)| ((*expression).to_owned(), *value))
        .collect()
}

fn layout_facts(layout: &Layout) -> Vec<Fact> {
    let c_name = layout.c_name;
    let members = layout.members.iter().flat_map(|member| {
        let member_name = member.c_name;
        [
            (format!("offsetof({c_name}, {member_name})"), member.offset as u64),
            (
                format!("sizeof((({c_name} *) 0)->{member_name})"),
                member.len as u64,
            ),
        ]
    });
    std::iter::once((layout.c_len.to_owned(), layout.len as u64))
        .chain(members)
        .collect()
}

fn record_kind_facts() -> Vec<Fact> {
    // Not a symbol of PostgreSQL's: generic records have no kinds.
    let kinds = rmgr::RECORD_KINDS
        .iter()
        .filter(|kind| kind.rmid != rmgr::RM_GENERIC_ID);
    let kinds = kinds.map(|kind| (kind.symbol.to_owned(), u64::from(kind.info)));
    let managers = rmgr::MANAGERS
        .iter()
        .map(|(symbol, number)| ((*symbol).to_owned(), u64::from(*number)));
    let highest = ("RM_MAX_BUILTIN_ID".to_owned(), rmgr::MANAGERS.len() as u64 - 1);
    kinds.chain(managers).chain([highest]).collect()
}

/// Compiles and runs a program that prints the value of each expression.
fn ask_the_compiler(expressions: &[&str]) -> Vec<u64> {
    let headers = common::pg_config("--includedir-server");
    common::must_exist(&headers.join("postgres.h"), "install postgresql-server-dev-15");
    let mut program = String::new();
    for include in INCLUDES {
        writeln!(program, "#include \"{include}\"").unwrap();
    }
    let directory = relfile::TABLESPACE_VERSION_DIRECTORY;
    writeln!(
        program,
        "#undef printf\n#define TEXT_tablespace_version_directory \"{directory}\""
    )
    .unwrap();
    writeln!(program, "int main(void)\n{{").unwrap();
    for expression in expressions {
        writeln!(
            program,
            "printf(\"%llu\\n\", (unsigned long long) ({expression}));"
        )
        .unwrap();
    }
    writeln!(program, "return 0;\n}}").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (source, binary) = (directory.path().join("layout.c"), directory.path().join("layout"));
    fs::write(&source, program).unwrap();
    let compiled = Command::new("cc")
        .arg("-I")
        .arg(&headers)
        .arg("-o")
        .arg(&binary)
        .arg(&source)
        .output();
    let compiled = compiled.expect("a C compiler must be there as `cc`");
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let printed = Command::new(&binary).output().unwrap().stdout;
    String::from_utf8(printed)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect()
}

#[test]
fn our_layouts_are_those_of_the_server_headers() {
    let mut facts: Vec<Fact> = LAYOUTS.iter().flat_map(layout_facts).collect();
    facts.extend(constants());
    facts.extend(other_facts());
    facts.extend(record_kind_facts());
    let expressions: Vec<&str> = facts.iter().map(|(expression, _)| expression.as_str()).collect();
    let values = ask_the_compiler(&expressions);
    assert_eq!(values.len(), facts.len());
    let wrong: Vec<String> = facts
        .iter()
        .zip(values)
        .filter(|((_, ours), theirs)| ours != theirs)
        .map(|((expression, ours), theirs)| format!("{expression}: ours {ours}, theirs {theirs}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn count_declarations(directory: &Path) -> usize {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() {
                return count_declarations(&path);
            }
            let source = fs::read_to_string(&path).unwrap();
            source
                .lines()
                .filter(|line| line.starts_with("c_struct! {"))
                .count()
        })
        .sum()
}

#[test]
fn no_declaration_is_left_out() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    assert_eq!(count_declarations(&source), LAYOUTS.len());
}
