/*
 * smgr_selftest.c
 *	  Proof that every smgr function of this server goes through the table we replaced.
 *
 * A compiler that sees only one storage manager may turn a call through the constant table into a
 * direct call of the md function. Such a call would look for a local file that is not there, or
 * worse, find one. So before any process of the server can use the storage manager, each function
 * is called on a probe relation while the table holds callbacks that do nothing but count.
 *
 * Where a bypass is harmless, it is allowed: mdinit and mdopen set up md's own state, which we keep
 * using. mdimmedsync is bypassed by Debian's build and made to return at once: no local
 * file of a compute needs to survive a crash. Anything else is FATAL.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/backendid.h"
#include "storage/smgr.h"

#include "smgr_hook.h"

/* The probe is a temporary relation of a backend that cannot exist, so that it has no buffers. */
#define PROBE_BACKEND (MaxBackends + 1)
#define PROBE_BLOCKS 7

static SmgrCallbacks arrived;	/* a non-null field: that callback was called */

#define RECORD(callback) memset(&arrived.callback, 1, sizeof(arrived.callback))

static void
probe_close(SMgrRelation reln, ForkNumber fork)
{
	RECORD(close);
}

static void
probe_create(SMgrRelation reln, ForkNumber fork, bool isRedo)
{
	RECORD(create);
}

static bool
probe_exists(SMgrRelation reln, ForkNumber fork)
{
	RECORD(exists);
	return false;
}

static void
probe_unlink(RelFileNodeBackend rnode, ForkNumber fork, bool isRedo)
{
	RECORD(unlink);
}

static void
probe_extend(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *buffer, bool skipFsync)
{
	RECORD(extend);
}

static bool
probe_prefetch(SMgrRelation reln, ForkNumber fork, BlockNumber blkno)
{
	RECORD(prefetch);
	return true;
}

static void
probe_read(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *buffer)
{
	RECORD(read);
}

static void
probe_write(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *buffer, bool skipFsync)
{
	RECORD(write);
}

static void
probe_writeback(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, BlockNumber nblocks)
{
	RECORD(writeback);
}

static BlockNumber
probe_nblocks(SMgrRelation reln, ForkNumber fork)
{
	RECORD(nblocks);
	return PROBE_BLOCKS;
}

static void
probe_truncate(SMgrRelation reln, ForkNumber fork, BlockNumber old_blocks, BlockNumber nblocks)
{
	RECORD(truncate);
}

static void
probe_immedsync(SMgrRelation reln, ForkNumber fork)
{
	RECORD(immedsync);
}

static const SmgrCallbacks probe_callbacks = {
	.init = mdinit,
	.open = mdopen,
	.close = probe_close,
	.create = probe_create,
	.exists = probe_exists,
	.unlink = probe_unlink,
	.extend = probe_extend,
	.prefetch = probe_prefetch,
	.read = probe_read,
	.write = probe_write,
	.writeback = probe_writeback,
	.nblocks = probe_nblocks,
	.truncate = probe_truncate,
	.immedsync = probe_immedsync,
};

/* Calls what smgr.c exports, and checks the results that come back through it. */
static bool
call_every_function(void)
{
	PGAlignedBlock page = {{0}};
	RelFileNode node = {1, 1, 1};
	ForkNumber	fork = MAIN_FORKNUM;
	BlockNumber truncate_to = 1;
	SMgrRelation reln = smgropen(node, PROBE_BACKEND);
	bool		results_ok = !smgrexists(reln, fork) &&
	smgrnblocks(reln, fork) == PROBE_BLOCKS &&
	smgrprefetch(reln, fork, 0);

	smgrcreate(reln, fork, false);
	smgrextend(reln, fork, 0, page.data, true);
	smgrread(reln, fork, 0, page.data);
	smgrwrite(reln, fork, 0, page.data, true);
	smgrwriteback(reln, fork, 0, 1);
	smgrtruncate(reln, &fork, 1, &truncate_to);
	smgrdounlinkall(&reln, 1, false);
	/* Reaches the table or the disarmed mdimmedsync; returning at all is what counts. */
	smgrimmedsync(reln, fork);
	smgrclose(reln);
	return results_ok;
}

static void
require(bool happened, const char *function)
{
	if (!happened)
		ereport(FATAL,
				(errmsg("neon: self-test of the storage manager failed: %s does not use the table (server %s)",
						function, PG_VERSION_STR),
				 errhint("This build of PostgreSQL is not supported.")));
}

void
smgr_selftest(void)
{
	bool		results_ok;

	memset(&arrived, 0, sizeof(arrived));
	smgr_hook_install(&probe_callbacks);
	smgr_hook_disarm_mdimmedsync();
	results_ok = call_every_function();

	require(arrived.close != NULL, "smgrclose");
	require(arrived.create != NULL, "smgrcreate");
	require(arrived.exists != NULL, "smgrexists");
	require(arrived.unlink != NULL, "smgrdounlinkall");
	require(arrived.extend != NULL, "smgrextend");
	require(arrived.prefetch != NULL, "smgrprefetch");
	require(arrived.read != NULL, "smgrread");
	require(arrived.write != NULL, "smgrwrite");
	require(arrived.writeback != NULL, "smgrwriteback");
	require(arrived.nblocks != NULL, "smgrnblocks");
	require(arrived.truncate != NULL, "smgrtruncate");
	require(results_ok, "a result");
}
