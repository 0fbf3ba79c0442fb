/*
 * file_cache_views.c
 *	  SQL functions that show what is in the local file cache, and how it does.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/tuplestore.h"

#include "file_cache.h"

PG_FUNCTION_INFO_V1(local_cache_pages);
PG_FUNCTION_INFO_V1(local_cache_statistics);

/* One row for each page in the cache. */
Datum
local_cache_pages(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	uint32		position = 0;
	FileCacheEntry entry;

	InitMaterializedSRF(fcinfo, 0);
	while (file_cache_next(&position, &entry))
	{
		bool		nulls[7] = {false};
		Datum		values[7] = {
			Int64GetDatum(entry.slot),
			ObjectIdGetDatum(entry.tag.rnode.relNode),
			ObjectIdGetDatum(entry.tag.rnode.spcNode),
			ObjectIdGetDatum(entry.tag.rnode.dbNode),
			Int16GetDatum(entry.tag.forkNum),
			Int64GetDatum(entry.tag.blockNum),
			Int64GetDatum(entry.accesses),
		};

		CHECK_FOR_INTERRUPTS();
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Counters since the start, and sizes in bytes. */
Datum
local_cache_statistics(PG_FUNCTION_ARGS)
{
	FileCacheStats stats = file_cache_stats();
	TupleDesc	descriptor;
	bool		nulls[6] = {false};
	Datum		values[6] = {
		Int64GetDatum(stats.hits),
		Int64GetDatum(stats.misses),
		Int64GetDatum(stats.stores),
		Int64GetDatum(stats.evictions),
		Int64GetDatum((int64) stats.used_pages * BLCKSZ),
		Int64GetDatum((int64) stats.limit_pages * BLCKSZ),
	};

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls)));
}
