/*
 * local_rels.c
 *	  Relations that live in local files: temporary and unlogged ones.
 *
 * A temporary relation is known by its backend id. The storage manager is not told which relation
 * is unlogged; what tells is the init fork, and that is created after the main fork may have been
 * filled (index builds). Until then nothing of the relation has a WAL position, so all that was
 * evicted of it is in its overlay, and the overlay of a fork is the very file a local fork has
 * (overlay.c). So making a relation local is: extend those files to the forks' sizes.
 *
 * Init forks are WAL-logged like anything permanent, and kept as local files too: they are what
 * marks a relation as unlogged. The base backup brings them back after a restart.
 */
#include "postgres.h"

#include <sys/stat.h>
#include <unistd.h>

#include "catalog/pg_tablespace_d.h"
#include "common/relpath.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/md.h"
#include "storage/reinit.h"

#include "local_rels.h"
#include "relsize_cache.h"

bool
local_file_exists(RelFileNode node, ForkNumber fork)
{
	char	   *path = relpathperm(node, fork);
	bool		exists = access(path, F_OK) == 0;

	pfree(path);
	return exists;
}

bool
is_local_relation(RelFileNodeBackend rnode)
{
	Knowledge	init_fork;

	if (RelFileNodeBackendIsTemp(rnode))
		return true;
	if (rnode.node.spcNode == GLOBALTABLESPACE_OID)
		return false;

	init_fork = relsize_get(rnode.node, INIT_FORKNUM).existence;
	if (init_fork == NOT_KNOWN)
	{
		bool		exists = local_file_exists(rnode.node, INIT_FORKNUM);

		relsize_learn_existence(rnode.node, INIT_FORKNUM, exists);
		return exists;
	}
	return init_fork == KNOWN_PRESENT;
}

bool
is_local_fork(RelFileNodeBackend rnode, ForkNumber fork)
{
	return fork == INIT_FORKNUM || is_local_relation(rnode);
}

void
make_relation_local(SMgrRelation reln)
{
	PGAlignedBlock zeros;

	MemSet(zeros.data, 0, BLCKSZ);
	for (ForkNumber fork = MAIN_FORKNUM; fork < INIT_FORKNUM; fork++)
	{
		ForkState	state = relsize_get(reln->smgr_rnode.node, fork);

		/* This compute has just created the relation: what it does not know is not there. */
		if (state.existence != KNOWN_PRESENT)
			continue;
		mdcreate(reln, fork, true);
		if (state.nblocks != InvalidBlockNumber && state.nblocks > mdnblocks(reln, fork))
			mdextend(reln, fork, state.nblocks - 1, zeros.data, true);
	}
}

/* The first file of a relation's main fork: a number, and nothing else. */
static bool
is_main_fork_file(const char *name)
{
	return strspn(name, "0123456789") == strlen(name);
}

/*
 * Overlays are the files of relations without an init fork. Temporary relations have names of another form.
 * `fork` is that of the relation's file, InvalidForkNumber if it is none.
 */
static bool
is_overlay_file(const char *directory, const char *name, ForkNumber *fork)
{
	int			oid_chars;
	char		path[MAXPGPATH * 2];

	*fork = InvalidForkNumber;
	if (!parse_filename_for_nontemp_relation(name, &oid_chars, fork))
		return false;
	snprintf(path, sizeof(path), "%s/%.*s_%s", directory, oid_chars, name, forkNames[INIT_FORKNUM]);
	return access(path, F_OK) != 0;
}

int64
local_files_size(const char *directory, ForkNumber skipped)
{
	DIR		   *dir = AllocateDir(directory);
	struct dirent *de;
	int64		size = 0;

	if (dir == NULL && errno == ENOENT)
		return 0;
	while ((de = ReadDir(dir, directory)) != NULL)
	{
		char		path[MAXPGPATH * 2];
		ForkNumber	fork;
		struct stat st;

		CHECK_FOR_INTERRUPTS();
		if (is_overlay_file(directory, de->d_name, &fork) ||
			(fork != InvalidForkNumber && fork == skipped))
			continue;
		snprintf(path, sizeof(path), "%s/%s", directory, de->d_name);
		/* It may be gone by now. */
		if (stat(path, &st) == 0 && S_ISREG(st.st_mode))
			size += st.st_size;
	}
	FreeDir(dir);
	return size;
}

/*
 * Where a database has relations outside its default tablespace, an empty file is kept for each: DROP
 * TABLESPACE and ALTER DATABASE must see that there are relations. Only the default one has a PG_VERSION.
 */
static bool
needs_places(const char *directory)
{
	char		path[MAXPGPATH * 2];

	snprintf(path, sizeof(path), "%s/PG_VERSION", directory);
	return strcmp(directory, "global") != 0 && access(path, F_OK) != 0;
}

/* Removes the overlays in one database's directory. */
static void
remove_overlay_files_in(const char *directory)
{
	bool		keep_places = needs_places(directory);
	DIR		   *dir = AllocateDir(directory);
	struct dirent *de;

	while ((de = ReadDirExtended(dir, directory, LOG)) != NULL)
	{
		ForkNumber	fork;
		char		path[MAXPGPATH * 2];

		if (!is_overlay_file(directory, de->d_name, &fork))
			continue;
		snprintf(path, sizeof(path), "%s/%s", directory, de->d_name);
		if ((keep_places && is_main_fork_file(de->d_name)) ?
			truncate(path, 0) != 0 : unlink(path) != 0)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not remove the contents of file \"%s\": %m", path)));
	}
	FreeDir(dir);
}

/* Does so in every database directory below `parent`. */
static void
remove_overlay_files_below(const char *parent)
{
	DIR		   *dir = AllocateDir(parent);
	struct dirent *de;

	if (dir == NULL && errno == ENOENT)
		return;
	while ((de = ReadDirExtended(dir, parent, LOG)) != NULL)
	{
		char		path[MAXPGPATH];

		/* Names of database directories are OIDs. */
		if (strspn(de->d_name, "0123456789") != strlen(de->d_name))
			continue;
		snprintf(path, sizeof(path), "%s/%s", parent, de->d_name);
		remove_overlay_files_in(path);
	}
	FreeDir(dir);
}

void
remove_overlay_files(void)
{
	DIR		   *dir;
	struct dirent *de;

	remove_overlay_files_in("global");
	remove_overlay_files_below("base");

	dir = AllocateDir("pg_tblspc");
	while ((de = ReadDirExtended(dir, "pg_tblspc", LOG)) != NULL)
	{
		char		path[MAXPGPATH];

		if (strspn(de->d_name, "0123456789") != strlen(de->d_name))
			continue;
		snprintf(path, sizeof(path), "pg_tblspc/%s/%s", de->d_name, TABLESPACE_VERSION_DIRECTORY);
		remove_overlay_files_below(path);
	}
	FreeDir(dir);
}
