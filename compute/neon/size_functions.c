/*
 * size_functions.c
 *	  pg_relation_size and its family, which on a stock server look at the sizes of local files.
 *
 * The built-in functions are replaced in the server's table of them, so that what calls them by
 * name or through a view (\d+, monitoring) gets true answers. Relations are asked for their size
 * through the storage manager. A database or tablespace is the sum of its relations: the session's own
 * database lists them in pg_class, for another one the page server adds them up as of now. Local relations, and files
 * that are none, count as on a stock server; overlays do not. The built-in functions still check permissions.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_tablespace.h"
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
#include "utils/relmapper.h"
#include "utils/syscache.h"

#include "local_rels.h"
#include "pagestore_smgr.h"
#include "readonly_table.h"
#include "size_functions.h"

static PGFunction builtin_database_size;
static PGFunction builtin_tablespace_size;

static int64
stored_fork_size(SMgrRelation reln, ForkNumber fork)
{
	return smgrexists(reln, fork) ? (int64) smgrnblocks(reln, fork) * BLCKSZ : 0;
}

static int64
storage_size(SMgrRelation reln)
{
	int64		size = 0;

	for (ForkNumber fork = MAIN_FORKNUM; fork <= MAX_FORKNUM; fork++)
		size += stored_fork_size(reln, fork);
	return size;
}

static int64
fork_size(Relation rel, ForkNumber fork)
{
	return RELKIND_HAS_STORAGE(rel->rd_rel->relkind) ? stored_fork_size(RelationGetSmgr(rel), fork) : 0;
}

static int64
all_forks_size(Relation rel)
{
	return RELKIND_HAS_STORAGE(rel->rd_rel->relkind) ? storage_size(RelationGetSmgr(rel)) : 0;
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

/* What the page server holds of a database in a tablespace, in bytes. */
static int64
remote_database_size(Oid database, Oid tablespace)
{
	PageRequest request = {.kind = REQUEST_DBSIZE_IN,.node = {.dbNode = database,.spcNode = tablespace}};

	pagestore_set_newest_lsn(&request);
	return pagestream_database_size(&request);
}

/* A permanent relation's size, by its row in pg_class; 0 if it is not in that tablespace. */
static int64
listed_relation_size(Form_pg_class class, Oid tablespace)
{
	RelFileNode node = {
		.spcNode = OidIsValid(class->reltablespace) ? class->reltablespace : MyDatabaseTableSpace,
		.dbNode = tablespace == GLOBALTABLESPACE_OID ? InvalidOid : MyDatabaseId,
		.relNode = class->relfilenode,
	};

	if (!RELKIND_HAS_STORAGE(class->relkind) || class->relpersistence != RELPERSISTENCE_PERMANENT ||
		node.spcNode != tablespace)
		return 0;
	if (!OidIsValid(node.relNode))
		node.relNode = RelationMapOidToFilenode(class->oid, class->relisshared);
	return OidIsValid(node.relNode) ? storage_size(smgropen(node, InvalidBackendId)) : 0;
}

/* The permanent relations in a tablespace that this session's database knows: its own and the shared ones. */
static int64
listed_relations_size(Oid tablespace)
{
	Relation	classes = table_open(RelationRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(classes, 0, NULL);
	HeapTuple	tuple;
	int64		size = 0;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		size += listed_relation_size((Form_pg_class) GETSTRUCT(tuple), tablespace);
	}
	table_endscan(scan);
	table_close(classes, AccessShareLock);
	return size;
}

/* All of a database in a tablespace. Init forks are local files, but the page server counts them, too. */
static int64
database_size_in(Oid database, Oid tablespace)
{
	char	   *directory = GetDatabasePath(database, tablespace);
	struct stat st;

	if (stat(directory, &st) != 0)
		return 0;
	if (database == MyDatabaseId || tablespace == GLOBALTABLESPACE_OID)
		return local_files_size(directory, InvalidForkNumber) + listed_relations_size(tablespace);
	return local_files_size(directory, INIT_FORKNUM) + remote_database_size(database, tablespace);
}

/* The sum over all rows of a catalog whose first column is an OID. */
static int64
sum_over(Oid catalog, int64 (*measure_row) (Oid row, Oid argument), Oid argument)
{
	Relation	rel = table_open(catalog, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(rel, 0, NULL);
	HeapTuple	tuple;
	int64		size = 0;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
		size += measure_row(*(Oid *) GETSTRUCT(tuple), argument);
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	return size;
}

static int64
size_of_database_in_tablespace(Oid tablespace, Oid database)
{
	return tablespace == GLOBALTABLESPACE_OID ? 0 : database_size_in(database, tablespace);
}

static Datum
neon_database_size(PG_FUNCTION_ARGS)
{
	Oid			database = PG_GETARG_OID(0);

	/* For its checks. */
	(void) builtin_database_size(fcinfo);
	if (fcinfo->isnull)
		PG_RETURN_NULL();
	PG_RETURN_INT64(sum_over(TableSpaceRelationId, size_of_database_in_tablespace, database));
}

static Datum
neon_database_size_name(PG_FUNCTION_ARGS)
{
	Oid			database = get_database_oid(NameStr(*PG_GETARG_NAME(0)), false);

	return OidFunctionCall1(F_PG_DATABASE_SIZE_OID, ObjectIdGetDatum(database));
}

static Datum
neon_tablespace_size(PG_FUNCTION_ARGS)
{
	Oid			tablespace = PG_GETARG_OID(0);

	(void) builtin_tablespace_size(fcinfo);
	if (fcinfo->isnull)
		PG_RETURN_NULL();
	if (tablespace == GLOBALTABLESPACE_OID)
		PG_RETURN_INT64(database_size_in(InvalidOid, tablespace));
	PG_RETURN_INT64(sum_over(DatabaseRelationId, database_size_in, tablespace));
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
