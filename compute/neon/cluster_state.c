/*
 * cluster_state.c
 *	  Where this compute started: LSNs and system identifier out of pg_control.
 *
 * A compute starts from a base backup whose pg_control says "shut down" at a synthetic checkpoint
 * record, so no recovery runs. A data directory that crashed cannot be used again: its local WAL
 * may hold records that no quorum has, and redo would read pages that are newer than those
 * records. Such a start is refused.
 */
#include "postgres.h"

#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "miscadmin.h"
#include "utils/guc.h"

#include "cluster_state.h"
#include "standby.h"

ClusterState cluster_state;

/* xl_tot_len of a checkpoint record: header, one short data header, the CheckPoint itself. */
#define CHECKPOINT_RECORD_LEN \
	(SizeOfXLogRecord + SizeOfXLogRecordDataHeaderShort + sizeof(CheckPoint))

static uint32
page_header_size_at(XLogRecPtr page_start, int segment_size)
{
	return XLogSegmentOffset(page_start, segment_size) == 0 ?
		SizeOfXLogLongPHD : SizeOfXLogShortPHD;
}

XLogRecPtr
lsn_skip_back_page_header(XLogRecPtr lsn)
{
	XLogRecPtr	page_start = lsn - lsn % XLOG_BLCKSZ;

	if (lsn - page_start == page_header_size_at(page_start, wal_segment_size))
		return page_start;
	return lsn;
}

XLogRecPtr
current_insert_lsn(void)
{
	return lsn_skip_back_page_header(GetXLogInsertRecPtr());
}

/* End of a record of `length` bytes that starts at `start`; records here span at most two pages. */
static XLogRecPtr
record_end(XLogRecPtr start, uint32 length)
{
	XLogRecPtr	next_page = start - start % XLOG_BLCKSZ + XLOG_BLCKSZ;
	XLogRecPtr	end = start + MAXALIGN(length);

	if (end > next_page)
		end += page_header_size_at(next_page, wal_segment_size);
	return end;
}

/*
 * A replica needs room for at least as many transactions and locks as the server that wrote the
 * WAL, or recovery stops. Who starts a replica need not know that server's settings: pg_control does.
 */
static void
raise_replica_limits(const ControlFileData *control)
{
	const struct
	{
		const char *name;
		int			needed;
	}			limits[] = {
		{"max_connections", control->MaxConnections},
		{"max_worker_processes", control->max_worker_processes},
		{"max_wal_senders", control->max_wal_senders},
		{"max_prepared_transactions", control->max_prepared_xacts},
		{"max_locks_per_transaction", control->max_locks_per_xact},
	};

	for (int i = 0; i < lengthof(limits); i++)
	{
		char		value[16];

		if (atoi(GetConfigOption(limits[i].name, false, false)) >= limits[i].needed)
			continue;
		snprintf(value, sizeof(value), "%d", limits[i].needed);
		SetConfigOption(limits[i].name, value, PGC_POSTMASTER, PGC_S_OVERRIDE);
	}
}

void
cluster_state_init(void)
{
	struct stat st;
	bool		crc_ok;
	ControlFileData *control = get_controlfile(DataDir, &crc_ok);

	if (!crc_ok)
		ereport(FATAL,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("neon: checksum of pg_control is wrong")));

	cluster_state.is_replica = stat("standby.signal", &st) == 0 ||
		stat("recovery.signal", &st) == 0;
	if (control->state != DB_SHUTDOWNED && !cluster_state.is_replica)
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("neon: the data directory was not shut down cleanly"),
				 errhint("Start the compute again from a fresh base backup.")));

	if (cluster_state.is_replica)
		raise_replica_limits(control);
	cluster_state.system_id = control->system_identifier;
	cluster_state.start_lsn = control->checkPointCopy.redo;
	cluster_state.base_lsn = lsn_skip_back_page_header(cluster_state.start_lsn);
	/* One that follows replays the primary's record there, not that of its base backup. */
	cluster_state.start_record_end_lsn = standby_follows() ? cluster_state.start_lsn :
		record_end(cluster_state.start_lsn, CHECKPOINT_RECORD_LEN);
	pfree(control);
}
