/*
 * standby.c
 *	  A hot standby: a replica that follows the primary by streaming WAL from the safekeepers.
 *
 * Where recovery begins. A base backup ends at LSN X with a shutdown checkpoint record of its own making. A
 * primary writes on behind it; but in the WAL that a standby gets, the primary's own record is at X.
 * So recovery must begin to replay at X, and the checkpoint record that PostgreSQL wants to read first must be
 * elsewhere: it is written to the start of the segment after that of X, as a checkpoint of a running server, with X
 * as its redo position. Streaming replaces that file when it gets there. Until then nothing mistakes it for
 * real WAL, since its link to the previous record fits nowhere.
 *
 * When reads begin. Which transactions ran at X only the next snapshot in the WAL tells; the primary logs one with
 * each checkpoint, and otherwise every 15 s while there is something to log.
 *
 * What replay changes. Every block a record mentions goes through shared buffers, and is evicted through
 * pagestore_write() when replay has changed it. That is what keeps sizes, last-written LSNs and the file
 * cache right, as on a primary. Commands on whole databases and tablespaces pass by; they are dealt with here.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/transam.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogreader.h"
#include "access/xlogrecovery.h"
#include "catalog/pg_control.h"
#include "commands/dbcommands_xlog.h"
#include "commands/tablespace.h"
#include "common/controldata_utils.h"
#include "common/file_perm.h"
#include "common/relpath.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "storage/shmem.h"

#include "cluster_state.h"
#include "file_cache.h"
#include "last_written_lsn.h"
#include "relsize_cache.h"
#include "standby.h"

/* Older transactions than this many are not looked for among those that may be running: 4 MB of pg_subtrans. */
#define RUNNING_XIDS_MAX (1U << 20)

#define CHECKPOINT_DATA_LEN (SizeOfXLogRecordDataHeaderShort + sizeof(CheckPoint))

static void (*builtin_tablespace_redo) (XLogReaderState *record);
static void (*builtin_database_redo) (XLogReaderState *record);

bool
standby_follows(void)
{
	return cluster_state.is_replica && recoveryTarget == RECOVERY_TARGET_UNSET &&
		PrimaryConnInfo != NULL && PrimaryConnInfo[0] != '\0';
}

static XLogRecPtr
in_page_server_form(XLogRecPtr lsn)
{
	/* The record it starts from exists only in the base backup. */
	if (lsn <= cluster_state.start_record_end_lsn)
		return cluster_state.base_lsn;
	return lsn_skip_back_page_header(lsn);
}

XLogRecPtr
standby_replayed_lsn(void)
{
	return in_page_server_form(GetXLogReplayRecPtr(NULL));
}

XLogRecPtr
standby_replaying_lsn(void)
{
	return in_page_server_form(GetCurrentReplayRecPtr(NULL));
}

/* The first page of a segment, with a checkpoint record as its first; the record's LSN is returned. */
static XLogRecPtr
build_checkpoint_page(char *page, XLogRecPtr segment_start, uint64 system_id, const CheckPoint *checkpoint)
{
	XLogLongPageHeader header = (XLogLongPageHeader) page;
	XLogRecord *record = (XLogRecord *) (page + SizeOfXLogLongPHD);
	char	   *data = (char *) record + SizeOfXLogRecord;

	MemSet(page, 0, XLOG_BLCKSZ);
	header->std.xlp_magic = XLOG_PAGE_MAGIC;
	header->std.xlp_info = XLP_LONG_HEADER;
	header->std.xlp_tli = checkpoint->ThisTimeLineID;
	header->std.xlp_pageaddr = segment_start;
	header->xlp_sysid = system_id;
	header->xlp_seg_size = wal_segment_size;
	header->xlp_xlog_blcksz = XLOG_BLCKSZ;

	record->xl_tot_len = SizeOfXLogRecord + CHECKPOINT_DATA_LEN;
	record->xl_prev = InvalidXLogRecPtr;
	record->xl_info = XLOG_CHECKPOINT_ONLINE;
	record->xl_rmid = RM_XLOG_ID;
	data[0] = (char) XLR_BLOCK_ID_DATA_SHORT;
	data[1] = sizeof(CheckPoint);
	memcpy(data + SizeOfXLogRecordDataHeaderShort, checkpoint, sizeof(CheckPoint));
	INIT_CRC32C(record->xl_crc);
	COMP_CRC32C(record->xl_crc, data, CHECKPOINT_DATA_LEN);
	COMP_CRC32C(record->xl_crc, record, offsetof(XLogRecord, xl_crc));
	FIN_CRC32C(record->xl_crc);
	return segment_start + SizeOfXLogLongPHD;
}

/* Writes a segment that has nothing but this first page. */
static void
write_segment(const char *path, const char *page)
{
	int			fd = BasicOpenFile(path, O_RDWR | O_CREAT | O_TRUNC | PG_BINARY);

	/* A short write sets no errno. */
	errno = ENOSPC;
	if (fd < 0 || pg_pwrite(fd, page, XLOG_BLCKSZ, 0) != XLOG_BLCKSZ ||
		ftruncate(fd, wal_segment_size) != 0 || close(fd) != 0)
		ereport(FATAL,
				(errcode_for_file_access(),
				 errmsg("neon: could not write file \"%s\": %m", path)));
}

/* A bound for the oldest transaction that may be running. */
static TransactionId
oldest_running_xid(const CheckPoint *checkpoint)
{
	TransactionId next = XidFromFullTransactionId(checkpoint->nextXid);

	if (next - checkpoint->oldestXid <= RUNNING_XIDS_MAX)
		return checkpoint->oldestXid;
	next -= RUNNING_XIDS_MAX;
	return TransactionIdIsNormal(next) ? next : FirstNormalTransactionId;
}

void
standby_prepare_recovery(void)
{
	bool		found;
	ControlFileData *control = ShmemInitStruct("Control File", sizeof(ControlFileData), &found);
	CheckPoint	checkpoint = control->checkPointCopy;
	PGAlignedXLogBlock page;
	XLogSegNo	segment;
	char		path[MAXPGPATH];

	/* A standby that has been running goes on where it was. */
	if (!standby_follows() || control->state != DB_SHUTDOWNED)
		return;
	if (!found)
		ereport(FATAL,
				(errmsg("neon: cannot find the control file in the memory of this server (%s)",
						PG_VERSION_STR)));

	XLByteToSeg(checkpoint.redo, segment, wal_segment_size);
	XLogFilePath(path, checkpoint.ThisTimeLineID, segment, wal_segment_size);
	if (unlink(path) != 0)
		ereport(FATAL,
				(errcode_for_file_access(),
				 errmsg("neon: could not remove file \"%s\": %m", path)));

	checkpoint.oldestActiveXid = oldest_running_xid(&checkpoint);
	segment++;
	control->checkPoint = build_checkpoint_page(page.data, segment * wal_segment_size,
												control->system_identifier, &checkpoint);
	XLogFilePath(path, checkpoint.ThisTimeLineID, segment, wal_segment_size);
	write_segment(path, page.data);

	control->checkPointCopy = checkpoint;
	control->state = DB_SHUTDOWNED_IN_RECOVERY;
	control->minRecoveryPoint = checkpoint.redo;
	control->minRecoveryPointTLI = checkpoint.ThisTimeLineID;
	update_controlfile(DataDir, control, false);
}

/*
 * A tablespace is a directory within the data directory here. At its location, which is the primary's, there may be
 * nothing, or the files of a primary on this machine.
 */
static void
redo_tablespace(XLogReaderState *record)
{
	xl_tblspc_create_rec *created = (xl_tblspc_create_rec *) XLogRecGetData(record);
	char		path[MAXPGPATH];

	if ((XLogRecGetInfo(record) & ~XLR_INFO_MASK) != XLOG_TBLSPC_CREATE)
	{
		builtin_tablespace_redo(record);
		return;
	}
	snprintf(path, sizeof(path), "pg_tblspc/%u/%s", created->ts_id, TABLESPACE_VERSION_DIRECTORY);
	if (pg_mkdir_p(path, pg_dir_create_mode) != 0 && errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create directory \"%s\": %m", path)));
}

static void
redo_database(XLogReaderState *record)
{
	xl_dbase_drop_rec *dropped = (xl_dbase_drop_rec *) XLogRecGetData(record);

	builtin_database_redo(record);
	if ((XLogRecGetInfo(record) & ~XLR_INFO_MASK) == XLOG_DBASE_DROP)
	{
		for (int i = 0; i < dropped->ntablespaces; i++)
		{
			relsize_forget_database(dropped->db_id, dropped->tablespace_ids[i]);
			file_cache_forget_database(dropped->db_id, dropped->tablespace_ids[i]);
		}
	}
	/* What a database is made of has changed in the page server only. */
	last_written_lsn_raise_floor(standby_replaying_lsn());
}

/* The end of recovery. What this server would write from now on would be nowhere but here. */
static void
refuse_promotion(void)
{
	ereport(FATAL,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("neon: a replica cannot be promoted"),
			 errhint("Start a compute that writes, on this timeline or on a branch of it.")));
}

void
standby_init(void)
{
	if (!cluster_state.is_replica)
		return;
	builtin_tablespace_redo = RmgrTable[RM_TBLSPC_ID].rm_redo;
	RmgrTable[RM_TBLSPC_ID].rm_redo = redo_tablespace;
	builtin_database_redo = RmgrTable[RM_DBASE_ID].rm_redo;
	RmgrTable[RM_DBASE_ID].rm_redo = redo_database;
	Assert(RmgrTable[RM_SMGR_ID].rm_cleanup == NULL);
	RmgrTable[RM_SMGR_ID].rm_cleanup = refuse_promotion;
}
