/*
 * database_commands.c
 *	  Commands that change relations behind the storage manager's back.
 *
 * CREATE DATABASE by file copy, ALTER DATABASE SET TABLESPACE and DROP DATABASE work on
 * directories. Locally that moves the overlays along; the page server does the rest when it
 * sees the WAL record. Two things are left to do: whoever reads the new relations must read at that record's LSN
 * or later, and what the cache says of relations of a directory that is gone must go too.
 *
 * None of these commands runs in a transaction block. Raising the floor before the commit is in
 * time: until then no other session can enter the database. ALTER DATABASE commits in the middle of
 * the command, the others after it.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/syscache.h"

#include "cluster_state.h"
#include "database_commands.h"
#include "file_cache.h"
#include "last_written_lsn.h"
#include "relsize_cache.h"

static ProcessUtility_hook_type next_hook;

/* Set while a command that copies relations runs in this backend. */
static bool copies_relations;

static void
raise_floor_before_commit(XactEvent event, void *arg)
{
	if (copies_relations && event == XACT_EVENT_PRE_COMMIT)
		last_written_lsn_raise_floor(current_insert_lsn());
	if (event == XACT_EVENT_ABORT)
		copies_relations = false;
}

/* ALTER DATABASE name SET TABLESPACE, which is one of the options of that statement. */
static bool
is_move(Node *statement)
{
	return IsA(statement, AlterDatabaseStmt) &&
		list_length(((AlterDatabaseStmt *) statement)->options) == 1 &&
		strcmp(linitial_node(DefElem, ((AlterDatabaseStmt *) statement)->options)->defname,
			   "tablespace") == 0;
}

/* Which database loses its relations where they are, by this statement? */
static Oid
database_left_behind(Node *statement)
{
	if (IsA(statement, DropdbStmt))
		return get_database_oid(((DropdbStmt *) statement)->dbname, true);
	if (is_move(statement))
		return get_database_oid(((AlterDatabaseStmt *) statement)->dbname, true);
	return InvalidOid;
}

static Oid
default_tablespace_of(Oid database)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	Oid			tablespace = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		tablespace = ((Form_pg_database) GETSTRUCT(tuple))->dattablespace;
		ReleaseSysCache(tuple);
	}
	return tablespace;
}

static void
watch_database_commands(PlannedStmt *planned, const char *query, bool readOnlyTree,
						ProcessUtilityContext context, ParamListInfo params,
						QueryEnvironment *environment, DestReceiver *dest,
						QueryCompletion *completion)
{
	Node	   *statement = planned->utilityStmt;
	ProcessUtility_hook_type next = next_hook != NULL ? next_hook : standard_ProcessUtility;
	Oid			database = database_left_behind(statement);
	Oid			left_tablespace = InvalidOid;

	if (OidIsValid(database) && is_move(statement))
		left_tablespace = default_tablespace_of(database);
	copies_relations = IsA(statement, CreatedbStmt) || is_move(statement);
	next(planned, query, readOnlyTree, context, params, environment, dest, completion);
	if (copies_relations)
		last_written_lsn_raise_floor(current_insert_lsn());
	copies_relations = false;
	if (OidIsValid(database))
	{
		relsize_forget_database(database, left_tablespace);
		file_cache_forget_database(database, left_tablespace);
	}
}

void
database_commands_init(void)
{
	next_hook = ProcessUtility_hook;
	ProcessUtility_hook = watch_database_commands;
	RegisterXactCallback(raise_floor_before_commit, NULL);
}
