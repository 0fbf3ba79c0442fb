/*
 * size_functions.c
 *	  pg_relation_size and its family, which on a stock server look at the sizes of local files.
 *
 * The built-in functions are replaced in the server's table of them, so that what calls them by
 * name or through a view (\d+, monitoring) gets true answers. Relations are asked for their size
 * through the storage manager. For a database and a tablespace the built-in function still counts what is local, and
 * checks permissions; what the page server holds is added. It knows sizes of whole databases
 * in their default tablespace only, so relations in other tablespaces count in their own size
 * and not in that of their tablespace.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_tablespace_d.h"
#include "commands/dbcommands.h"
#include "commands/tablespace.h"
#include "common/relpath.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/smgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrtab.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

#include "pagestore_smgr.h"
#include "readonly_table.h"
#include "size_functions.h"

static PGFunction builtin_database_size;
static PGFunction builtin_tablespace_size;

static int64
fork_size(Relation rel, ForkNumber fork)
{
	if (!RELKIND_HAS_STORAGE(rel->rd_rel->relkind) || !smgrexists(RelationGetSmgr(rel), fork))
		return 0;
	return (int64) smgrnblocks(RelationGetSmgr(rel), fork) * BLCKSZ;
}

static int64
all_forks_size(Relation rel)
{
	int64		size = 0;

	for (ForkNumber fork = MAIN_FORKNUM; fork <= MAX_FORKNUM; fork++)
		size += fork_size(rel, fork);
	return size;
}

static int64
indexes_size(Relation rel)
{
	int64		size = 0;
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	index = relation_open(lfirst_oid(cell), AccessShareLock);

		size += all_forks_size(index);
		relation_close(index, AccessShareLock);
	}
	list_free(indexes);
	return size;
}

/* The relation with its TOAST table and that one's index, without its own indexes. */
static int64
table_size(Relation rel)
{
	int64		size = all_forks_size(rel);

	if (OidIsValid(rel->rd_rel->reltoastrelid))
	{
		Relation	toast = relation_open(rel->rd_rel->reltoastrelid, AccessShareLock);

		size += all_forks_size(toast) + indexes_size(toast);
		relation_close(toast, AccessShareLock);
	}
	return size;
}

static int64
total_size(Relation rel)
{
	return table_size(rel) + (rel->rd_rel->relhasindex ? indexes_size(rel) : 0);
}

/* The size of a relation given by OID, or NULL if it does not exist (any more). */
static Datum
measure(FunctionCallInfo fcinfo, int64 (*measure_relation) (Relation))
{
	Relation	rel = try_relation_open(PG_GETARG_OID(0), AccessShareLock);
	int64		size;

	if (rel == NULL)
		PG_RETURN_NULL();
	size = measure_relation(rel);
	relation_close(rel, AccessShareLock);
	PG_RETURN_INT64(size);
}

static Datum
neon_relation_size(PG_FUNCTION_ARGS)
{
	ForkNumber	fork = forkname_to_number(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	Relation	rel = try_relation_open(PG_GETARG_OID(0), AccessShareLock);
	int64		size;

	if (rel == NULL)
		PG_RETURN_NULL();
	size = fork_size(rel, fork);
	relation_close(rel, AccessShareLock);
	PG_RETURN_INT64(size);
}

static Datum
neon_table_size(PG_FUNCTION_ARGS)
{
	return measure(fcinfo, table_size);
}

static Datum
neon_indexes_size(PG_FUNCTION_ARGS)
{
	return measure(fcinfo, indexes_size);
}

static Datum
neon_total_relation_size(PG_FUNCTION_ARGS)
{
	return measure(fcinfo, total_size);
}

/* What the page server holds of a database, in bytes. */
static int64
remote_database_size(Oid database)
{
	PageRequest request = {.kind = REQUEST_DBSIZE, .node = {.dbNode = database}};

	pagestore_set_request_lsn(&request);
	return pagestream_database_size(&request);
}

static Datum
neon_database_size(PG_FUNCTION_ARGS)
{
	Oid			database = PG_GETARG_OID(0);
	int64		local;

	local = DatumGetInt64(builtin_database_size(fcinfo));
	if (fcinfo->isnull)
		PG_RETURN_NULL();
	PG_RETURN_INT64(local + remote_database_size(database));
}

static Datum
neon_database_size_name(PG_FUNCTION_ARGS)
{
	Oid			database = get_database_oid(NameStr(*PG_GETARG_NAME(0)), false);

	return OidFunctionCall1(F_PG_DATABASE_SIZE_OID, ObjectIdGetDatum(database));
}

/* The databases whose default tablespace this is. */
static int64
remote_tablespace_size(Oid tablespace)
{
	Relation	databases = table_open(DatabaseRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(databases, 0, NULL);
	HeapTuple	tuple;
	int64		size = 0;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		if (database->dattablespace == tablespace)
			size += remote_database_size(database->oid);
	}
	table_endscan(scan);
	table_close(databases, AccessShareLock);
	return size;
}

/* Shared catalogs belong to no database. */
static int64
shared_catalogs_size(void)
{
	Relation	classes = table_open(RelationRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(classes, 0, NULL);
	HeapTuple	tuple;
	int64		size = 0;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_class class = (Form_pg_class) GETSTRUCT(tuple);
		Relation	rel;

		if (class->reltablespace != GLOBALTABLESPACE_OID)
			continue;
		rel = relation_open(class->oid, AccessShareLock);
		size += all_forks_size(rel);
		relation_close(rel, AccessShareLock);
	}
	table_endscan(scan);
	table_close(classes, AccessShareLock);
	return size;
}

static Datum
neon_tablespace_size(PG_FUNCTION_ARGS)
{
	Oid			tablespace = PG_GETARG_OID(0);
	int64		local;

	local = DatumGetInt64(builtin_tablespace_size(fcinfo));
	if (fcinfo->isnull)
		PG_RETURN_NULL();
	if (tablespace == GLOBALTABLESPACE_OID)
		PG_RETURN_INT64(local + shared_catalogs_size());
	PG_RETURN_INT64(local + remote_tablespace_size(tablespace));
}

static Datum
neon_tablespace_size_name(PG_FUNCTION_ARGS)
{
	Oid			tablespace = get_tablespace_oid(NameStr(*PG_GETARG_NAME(0)), false);

	return OidFunctionCall1(F_PG_TABLESPACE_SIZE_OID, ObjectIdGetDatum(tablespace));
}

/* Puts `replacement` in the place of a built-in function; the result is what was there. */
static PGFunction
replace_builtin(Oid function, PGFunction replacement)
{
	uint16		index = fmgr_builtin_oid_index[function];
	const FmgrBuiltin *entry = &fmgr_builtins[index];
	PGFunction	replaced;

	if (index == InvalidOidBuiltinMapping || entry->foid != function)
		ereport(FATAL,
				(errmsg("neon: built-in function %u is not in the table of this server (%s)",
						function, PG_VERSION_STR)));
	replaced = entry->func;
	overwrite_protected((void *) &entry->func, &replacement, sizeof(replacement));
	return replaced;
}

void
size_functions_init(void)
{
	replace_builtin(F_PG_RELATION_SIZE_REGCLASS_TEXT, neon_relation_size);
	replace_builtin(F_PG_TABLE_SIZE, neon_table_size);
	replace_builtin(F_PG_INDEXES_SIZE, neon_indexes_size);
	replace_builtin(F_PG_TOTAL_RELATION_SIZE, neon_total_relation_size);
	builtin_database_size = replace_builtin(F_PG_DATABASE_SIZE_OID, neon_database_size);
	replace_builtin(F_PG_DATABASE_SIZE_NAME, neon_database_size_name);
	builtin_tablespace_size = replace_builtin(F_PG_TABLESPACE_SIZE_OID, neon_tablespace_size);
	replace_builtin(F_PG_TABLESPACE_SIZE_NAME, neon_tablespace_size_name);
}
