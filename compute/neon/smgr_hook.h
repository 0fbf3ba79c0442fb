/*
 * smgr_hook.h
 *	  The server's table of storage managers, and replacing what is in it.
 */
#ifndef NEON_SMGR_HOOK_H
#define NEON_SMGR_HOOK_H

#include "storage/md.h"

/*
 * One entry of smgrsw in smgr.c. The types are those of the functions md.c has for each callback, since their
 * arguments change even between minor versions; the order of the fields is that of the table.
 */
typedef struct SmgrCallbacks
{
	typeof(&mdinit) init;
	void		(*shutdown) (void);
	typeof(&mdopen) open;
	typeof(&mdclose) close;
	typeof(&mdcreate) create;
	typeof(&mdexists) exists;
	typeof(&mdunlink) unlink;
	typeof(&mdextend) extend;
	typeof(&mdprefetch) prefetch;
	typeof(&mdread) read;
	typeof(&mdwrite) write;
	typeof(&mdwriteback) writeback;
	typeof(&mdnblocks) nblocks;
	typeof(&mdtruncate) truncate;
	typeof(&mdimmedsync) immedsync;
} SmgrCallbacks;

/* Finds the table; FATAL if it is not there exactly once. */
extern void smgr_hook_find_table(void);

/* Puts `callbacks` in the place of the server's own. */
extern void smgr_hook_install(const SmgrCallbacks *callbacks);

/* Makes mdimmedsync return at once: the server's own compiler may have bypassed the table for it. */
extern void smgr_hook_disarm_mdimmedsync(void);

/* smgr_selftest.c: does every smgr function reach the table? FATAL if not. Needs shared memory. */
extern void smgr_selftest(void);

#endif							/* NEON_SMGR_HOOK_H */
