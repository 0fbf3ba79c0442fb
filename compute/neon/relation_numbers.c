/*
 * relation_numbers.c
 *	  A number of a relation that exists is never chosen for a new one.
 *
 * GetNewRelFileNode() takes the next OID, and looks with access() whether a main fork's file of that name
 * exists. After the OID counter has wrapped around there may be such a relation, but it has no file
 * here. So the server's import of access() is bound to a function that also counts relations the
 * page server has. Any other use of access() sees what is on disk: only a missing path of exactly
 * the form of a permanent main fork's, asked for inside a transaction, is looked up.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_tablespace_d.h"
#include "common/relpath.h"
#include "miscadmin.h"

#include "imports.h"
#include "pagestore_smgr.h"
#include "relation_numbers.h"

/* Reads the path of a permanent relation's main fork; nothing may follow it. */
static bool
parse_main_fork_path(const char *path, RelFileNode *node)
{
	int			end = -1;

	if (sscanf(path, "base/%u/%u%n", &node->dbNode, &node->relNode, &end) == 2)
		node->spcNode = DEFAULTTABLESPACE_OID;
	else if (sscanf(path, "global/%u%n", &node->relNode, &end) == 1)
	{
		node->spcNode = GLOBALTABLESPACE_OID;
		node->dbNode = InvalidOid;
	}
	else if (sscanf(path, "pg_tblspc/%u/" TABLESPACE_VERSION_DIRECTORY "/%u/%u%n",
					&node->spcNode, &node->dbNode, &node->relNode, &end) != 3)
		return false;
	return end >= 0 && path[end] == '\0' && OidIsValid(node->relNode);
}

static int
access_or_in_use(const char *path, int mode)
{
	int			result = access(path, mode);
	RelFileNode node;

	if (result == 0 || errno != ENOENT || mode != F_OK)
		return result;
	if (!IsUnderPostmaster || !IsTransactionState() || CritSectionCount > 0 || RecoveryInProgress() ||
		!parse_main_fork_path(path, &node) || !pagestore_relation_exists(node))
	{
		errno = ENOENT;
		return -1;
	}
	return 0;
}

void
relation_numbers_init(void)
{
	bind_import("access", access_or_in_use);
}
