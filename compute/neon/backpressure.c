/*
 * backpressure.c
 *	  Feedback of the page server, and slowing down writers that are too far ahead of it.
 *
 * Without a limit the page server could fall behind by any amount of WAL, and every read of a
 * page changed lately would wait that long. A lag above one of neon.max_replication_*_lag slows
 * writers in two places: a transaction that wrote waits before its commit, until the lag is
 * small again (cancellable); and within a statement each new block, and each page read, costs a short sleep, since
 * buffer and relation locks may be held there. The sleep grows with the excess, so that a statement of any size
 * settles at the page server's speed instead of leaving it behind.
 *
 * WAL leaves this server only when it has been flushed. A statement that writes much flushes none but whole
 * segments, so whoever finds the page server behind flushes first: else the lag it waits for may be its own.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "postmaster/autovacuum.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/pg_lsn.h"

#include "backpressure.h"
#include "cluster_state.h"
#include "neon.h"

/* Sleep per new block or page read while the page server is behind: at the limit, per excess of the limit, and at most. */
#define BRIEF_SLEEP_US 1000
#define EXCESS_SLEEP_US 64000
#define LONGEST_SLEEP_US 200000

/* How often a waiting commit looks again. */
#define COMMIT_CHECK_MS 10

#define BYTES_PER_MB INT64CONST(1048576)

typedef struct Backpressure
{
	slock_t		mutex;
	PageserverFeedback feedback;	/* all zeros until the first one */
	pg_atomic_uint64 throttled_us;
} Backpressure;

static Backpressure *shared;

Size
backpressure_shmem_size(void)
{
	return sizeof(Backpressure);
}

void
backpressure_shmem_init(void)
{
	bool		found;

	shared = ShmemInitStruct("neon backpressure", sizeof(Backpressure), &found);
	if (found)
		return;
	MemSet(shared, 0, sizeof(Backpressure));
	SpinLockInit(&shared->mutex);
	pg_atomic_init_u64(&shared->throttled_us, 0);
}

void
backpressure_set_feedback(const PageserverFeedback *feedback)
{
	SpinLockAcquire(&shared->mutex);
	shared->feedback = *feedback;
	SpinLockRelease(&shared->mutex);
}

PageserverFeedback
backpressure_get_feedback(void)
{
	PageserverFeedback feedback;

	SpinLockAcquire(&shared->mutex);
	feedback = shared->feedback;
	SpinLockRelease(&shared->mutex);
	return feedback;
}

/* By how much of the limit the lag exceeds it; not above 0 if it does not. */
static double
excess(XLogRecPtr ours, XLogRecPtr theirs, int limit_mb)
{
	/* An LSN of 0 means that there is nothing to keep the pace of: no report, or no remote storage. */
	if (limit_mb <= 0 || theirs == InvalidXLogRecPtr || ours <= theirs)
		return 0;
	return (double) (ours - theirs) / (limit_mb * BYTES_PER_MB) - 1;
}

/* The largest excess of all lags that have a limit; not above 0 if the page server is near enough. */
static double
pageserver_excess_lag(void)
{
	PageserverFeedback feedback;
	XLogRecPtr	ours;

	if (neon_max_replication_write_lag_mb <= 0 && neon_max_replication_flush_lag_mb <= 0 &&
		neon_max_replication_apply_lag_mb <= 0)
		return 0;
	feedback = backpressure_get_feedback();
	/* The base backup came from the page server, so that far it has been in any case. */
	if (feedback.received_lsn == InvalidXLogRecPtr)
		feedback.received_lsn = cluster_state.base_lsn;
	ours = GetXLogWriteRecPtr();
	return Max(excess(ours, feedback.received_lsn, neon_max_replication_write_lag_mb),
			   Max(excess(ours, feedback.disk_consistent_lsn, neon_max_replication_flush_lag_mb),
				   excess(ours, feedback.remote_consistent_lsn, neon_max_replication_apply_lag_mb)));
}

/* Is this one of the processes whose work can wait? */
static bool
is_throttled_process(void)
{
	return MyBackendType == B_BACKEND || MyBackendType == B_AUTOVAC_WORKER ||
		MyBackendType == B_BG_WORKER;
}

void
throttle_briefly(void)
{
	double		excess_lag;
	long		sleep_us;

	if (!is_throttled_process() || !TransactionIdIsValid(GetTopTransactionIdIfAny()))
		return;
	excess_lag = pageserver_excess_lag();
	if (excess_lag <= 0)
		return;
	XLogFlush(GetXLogWriteRecPtr());
	sleep_us = Min(BRIEF_SLEEP_US + EXCESS_SLEEP_US * excess_lag, LONGEST_SLEEP_US);
	pg_usleep(sleep_us);
	pg_atomic_fetch_add_u64(&shared->throttled_us, sleep_us);
}

/* A transaction that wrote waits here, before anything of its commit has happened. */
static void
wait_before_commit(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_PRE_COMMIT || !is_throttled_process() ||
		!TransactionIdIsValid(GetTopTransactionIdIfAny()))
		return;
	if (pageserver_excess_lag() > 0)
		XLogFlush(XactLastRecEnd);
	while (pageserver_excess_lag() > 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 COMMIT_CHECK_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		pg_atomic_fetch_add_u64(&shared->throttled_us, COMMIT_CHECK_MS * 1000);
		CHECK_FOR_INTERRUPTS();
	}
}

void
backpressure_init(void)
{
	RegisterXactCallback(wait_before_commit, NULL);
}

void
check_cluster_size(void)
{
	if (neon_max_cluster_size_mb < 0 || MyBackendType != B_BACKEND)
		return;
	if (backpressure_get_feedback().timeline_size_bytes >
		(uint64) neon_max_cluster_size_mb * BYTES_PER_MB)
		ereport(ERROR,
				(errcode(ERRCODE_DISK_FULL),
				 errmsg("could not extend file because cluster size limit (%d MB) has been exceeded",
						neon_max_cluster_size_mb),
				 errhint("This limit is defined by neon.max_cluster_size. Delete data or raise it.")));
}

PG_FUNCTION_INFO_V1(pg_cluster_size);
PG_FUNCTION_INFO_V1(backpressure_lsns);
PG_FUNCTION_INFO_V1(backpressure_throttling_time);

/* Logical size of the timeline in bytes; NULL before the page server has reported it. */
Datum
pg_cluster_size(PG_FUNCTION_ARGS)
{
	uint64		bytes = backpressure_get_feedback().timeline_size_bytes;

	if (bytes == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(bytes);
}

/* How far the page server has come: one row of three LSNs. */
Datum
backpressure_lsns(PG_FUNCTION_ARGS)
{
	PageserverFeedback feedback = backpressure_get_feedback();
	TupleDesc	descriptor;
	Datum		values[3];
	bool		nulls[3] = {false};

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = LSNGetDatum(feedback.received_lsn);
	values[1] = LSNGetDatum(feedback.disk_consistent_lsn);
	values[2] = LSNGetDatum(feedback.remote_consistent_lsn);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls)));
}

/* Time that writers have spent waiting for the page server since the start, in microseconds. */
Datum
backpressure_throttling_time(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(pg_atomic_read_u64(&shared->throttled_us));
}
