/*
 * smgr_hook.c
 *	  The server's table of storage managers, and replacing what is in it.
 *
 * smgrsw in smgr.c is a static constant table, so it has no symbol. It is found by its content: the
 * addresses of the md functions in a row, which the server exports. smgr_selftest.c then
 * proves that calls go through it: the server never runs half replaced.
 */
#include "postgres.h"

#include "readonly_table.h"
#include "smgr_hook.h"

#define CALLBACKS (sizeof(SmgrCallbacks) / sizeof(void *))

/* What md.c provides, as smgr.c lists it. */
static const SmgrCallbacks md_callbacks = {
	.init = mdinit,
	.shutdown = NULL,
	.open = mdopen,
	.close = mdclose,
	.create = mdcreate,
	.exists = mdexists,
	.unlink = mdunlink,
	.extend = mdextend,
	.prefetch = mdprefetch,
	.read = mdread,
	.write = mdwrite,
	.writeback = mdwriteback,
	.nblocks = mdnblocks,
	.truncate = mdtruncate,
	.immedsync = mdimmedsync,
};

/* The only entry of smgrsw. */
static SmgrCallbacks *smgr_table;

void
smgr_hook_find_table(void)
{
	void	   *pattern[CALLBACKS];

	memcpy(pattern, &md_callbacks, sizeof(pattern));
	smgr_table = find_pointer_table(pattern, CALLBACKS);
	if (smgr_table == NULL)
		ereport(FATAL,
				(errmsg("neon: cannot find the storage manager table of this server (%s)",
						PG_VERSION_STR),
				 errhint("This build of PostgreSQL is not supported.")));
}

void
smgr_hook_install(const SmgrCallbacks *callbacks)
{
	overwrite_protected(smgr_table, callbacks, sizeof(SmgrCallbacks));
}

void
smgr_hook_disarm_mdimmedsync(void)
{
	char	   *entry = (char *) mdimmedsync;

#if defined(__x86_64__)
	static const unsigned char endbr64[] = {0xf3, 0x0f, 0x1e, 0xfa};
	static const unsigned char ret[] = {0xc3};

	/* Where indirect branches are checked, the landing mark has to stay. */
	if (memcmp(entry, endbr64, sizeof(endbr64)) == 0)
		entry += sizeof(endbr64);
#elif defined(__aarch64__)
	static const uint32 ret[] = {0xd65f03c0};
#else
#error "the instruction that returns from a function is not known for this architecture"
#endif
	overwrite_protected(entry, ret, sizeof(ret));
}
