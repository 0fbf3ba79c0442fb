/*
 * neon_test_utils.c
 *	  Helpers for tests: pages as the page server has them, an empty buffer cache, used-up xids and OIDs.
 *
 * Everything is for superusers. Requests go through the client of the neon library, which is
 * loaded by shared_preload_libraries.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/varlena.h"

#include "cluster_state.h"
#include "pagestream.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(test_consume_xids);
PG_FUNCTION_INFO_V1(clear_buffer_cache);
PG_FUNCTION_INFO_V1(get_raw_page_at_lsn);
PG_FUNCTION_INFO_V1(get_raw_page_at_lsn_by_number);
PG_FUNCTION_INFO_V1(neon_xlogflush);
PG_FUNCTION_INFO_V1(set_next_oid);

/* A relation that never existed: its buffers are only there to push others out. */
#define SCRATCH_RELNODE 1

/* The clock hand must pass often enough to bring the highest usage count (5) of a buffer to 0, and once more. */
#define SWEEPS 7

static void
require_superuser(void)
{
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to use neon_test_utils")));
}

/* Uses up transaction ids, as subtransactions of the current transaction. */
Datum
test_consume_xids(PG_FUNCTION_ARGS)
{
	require_superuser();
	(void) GetTopTransactionId();
	for (int32 left = PG_GETARG_INT32(0); left > 0; left--)
	{
		CHECK_FOR_INTERRUPTS();
		(void) GetNewTransactionId(true);
	}
	PG_RETURN_VOID();
}

/* As if all OIDs up to here had been used up. The next one handed out logs how far the counter may go. */
Datum
set_next_oid(PG_FUNCTION_ARGS)
{
	require_superuser();
	LWLockAcquire(OidGenLock, LW_EXCLUSIVE);
	ShmemVariableCache->nextOid = PG_GETARG_OID(0);
	ShmemVariableCache->oidCount = 0;
	LWLockRelease(OidGenLock);
	PG_RETURN_VOID();
}

/* Evicts every page that is not in use, in the way it happens when memory is short. */
Datum
clear_buffer_cache(PG_FUNCTION_ARGS)
{
	RelFileNode scratch = {MyDatabaseTableSpace, MyDatabaseId, SCRATCH_RELNODE};
	ForkNumber	fork = MAIN_FORKNUM;
	BlockNumber first_to_drop = 0;

	require_superuser();
	for (BlockNumber blkno = 0; blkno < (BlockNumber) NBuffers * SWEEPS; blkno++)
	{
		CHECK_FOR_INTERRUPTS();
		/* Zeroing needs no storage below. */
		UnlockReleaseBuffer(ReadBufferWithoutRelcache(scratch, fork, blkno,
													  RBM_ZERO_AND_LOCK, NULL, true));
	}
	DropRelFileNodeBuffers(smgropen(scratch, InvalidBackendId), &fork, 1, &first_to_drop);
	PG_RETURN_VOID();
}

/* The page as the page server has it; argument `lsn_argument` is the LSN, or null for the newest. */
static Datum
raw_page(FunctionCallInfo fcinfo, RelFileNode node, ForkNumber fork, int64 blkno, int lsn_argument)
{
	PageRequest request = {.kind = REQUEST_GETPAGE, .node = node, .fork = fork};
	bytea	   *page = palloc(VARHDRSZ + BLCKSZ);

	if (blkno < 0 || blkno > MaxBlockNumber)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid block number")));
	request.blkno = (BlockNumber) blkno;
	request.latest = PG_ARGISNULL(lsn_argument);
	if (request.latest)
	{
		request.lsn = current_insert_lsn();
		XLogFlush(request.lsn);
	}
	else
		request.lsn = PG_GETARG_LSN(lsn_argument);
	request.not_before = request.lsn;
	SET_VARSIZE(page, VARHDRSZ + BLCKSZ);
	pagestream_get_page(&request, VARDATA(page));
	PG_RETURN_BYTEA_P(page);
}

static void
refuse_nulls(FunctionCallInfo fcinfo, int count)
{
	for (int i = 0; i < count; i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("only the LSN may be null")));
	}
}

Datum
get_raw_page_at_lsn(PG_FUNCTION_ARGS)
{
	Relation	rel;
	RelFileNode node;

	require_superuser();
	refuse_nulls(fcinfo, 3);
	rel = relation_openrv(makeRangeVarFromNameList(textToQualifiedNameList(PG_GETARG_TEXT_PP(0))),
						  AccessShareLock);
	node = rel->rd_node;
	relation_close(rel, AccessShareLock);
	return raw_page(fcinfo, node, forkname_to_number(text_to_cstring(PG_GETARG_TEXT_PP(1))),
					PG_GETARG_INT64(2), 3);
}

Datum
get_raw_page_at_lsn_by_number(PG_FUNCTION_ARGS)
{
	RelFileNode node;
	int32		fork;

	require_superuser();
	refuse_nulls(fcinfo, 5);
	node.spcNode = PG_GETARG_OID(0);
	node.dbNode = PG_GETARG_OID(1);
	node.relNode = PG_GETARG_OID(2);
	fork = PG_GETARG_INT32(3);
	if (fork < 0 || fork > MAX_FORKNUM)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid fork number")));
	return raw_page(fcinfo, node, (ForkNumber) fork, PG_GETARG_INT64(4), 5);
}

Datum
neon_xlogflush(PG_FUNCTION_ARGS)
{
	require_superuser();
	XLogFlush(PG_GETARG_LSN(0));
	PG_RETURN_VOID();
}
