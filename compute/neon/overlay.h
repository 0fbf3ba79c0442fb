/*
 * overlay.h
 *	  Local copies of evicted pages that no WAL record describes.
 */
#ifndef NEON_OVERLAY_H
#define NEON_OVERLAY_H

#include "storage/smgr.h"

extern void overlay_request_locks(void);
extern void overlay_shmem_init(void);

/* Has the fork an overlay at all? */
extern bool overlay_exists(RelFileNode node, ForkNumber fork);

/* Stores a page that is not all zeros. It is what readers get until it is replaced or forgotten. */
extern void overlay_store(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page);

/* Forgets a page, because the WAL describes its newest version, or because it is all zeros. */
extern void overlay_forget(SMgrRelation reln, ForkNumber fork, BlockNumber blkno);

/* Reads the page into `page`; false if the overlay does not have it. */
extern bool overlay_read(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page);

/* Number of blocks up to the last one the overlay of an existing fork may have. */
extern BlockNumber overlay_nblocks(SMgrRelation reln, ForkNumber fork);

/* Drops pages from `nblocks` on. The caller holds the relation's AccessExclusiveLock. */
extern void overlay_truncate(SMgrRelation reln, ForkNumber fork, BlockNumber nblocks);

/* Removes the overlay of a fork that is being dropped. Failures are warnings. */
extern void overlay_drop(RelFileNodeBackend rnode, ForkNumber fork);

#endif							/* NEON_OVERLAY_H */
