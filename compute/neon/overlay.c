/*
 * overlay.c
 *	  Local copies of evicted pages that no WAL record describes.
 *
 * PostgreSQL may evict a page whose newest content is in no WAL record (yet): pages of an index
 * being built, sequences between two records, free space map pages. Such a page exists nowhere but
 * here. The overlay of a fork is a sparse file with the name, format and block numbers that the
 * fork has on a stock server, accessed through md.c. So pages are shared by all processes, their
 * number is bounded by disk space only, a directory copy (CREATE DATABASE by file copy) takes
 * them along, and a relation that turns out to be unlogged has its pages where they must be.
 *
 * Invariants
 *	* A block that is not all zeros in the overlay is the newest evicted version of that block. Every
 *	  write of the block therefore either stores it here or forgets it here.
 *	* All zeros means: not here. Pages that are all zeros are never stored.
 *	* The file of a living fork is never unlinked, because other processes may hold it open; when the
 *	  last page is forgotten only the mark in the relation cache goes.
 *
 * Overlays are lost when the compute stops, like everything local; nothing committed depends on them.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "common/hashfn.h"
#include "storage/bufpage.h"
#include "storage/fd.h"
#include "storage/lwlock.h"
#include "storage/md.h"

#include "local_rels.h"
#include "overlay.h"
#include "relsize_cache.h"

#define LOCKS 16
#define TRANCHE "neon_overlay"

static LWLockPadded *locks;

void
overlay_request_locks(void)
{
	RequestNamedLWLockTranche(TRANCHE, LOCKS);
}

void
overlay_shmem_init(void)
{
	locks = GetNamedLWLockTranche(TRANCHE);
}

/* Serializes changes of a fork's overlay: file length and page count. */
static LWLock *
lock_of(RelFileNode node)
{
	return &locks[hash_bytes((const unsigned char *) &node, sizeof(node)) % LOCKS].lock;
}

bool
overlay_exists(RelFileNode node, ForkNumber fork)
{
	Knowledge	overlay = relsize_get(node, fork).overlay;

	if (overlay == NOT_KNOWN)
	{
		/* An empty file only stands for a relation in a tablespace. */
		bool		exists = local_file_exists(node, fork) &&
		mdnblocks(smgropen(node, InvalidBackendId), fork) > 0;

		relsize_learn_overlay(node, fork, exists);
		return exists;
	}
	return overlay == KNOWN_PRESENT;
}

/* Whether the block is in the file and not all zeros; its content goes to `page`. */
static bool
read_stored(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page)
{
	if (blkno >= mdnblocks(reln, fork))
		return false;
	mdread(reln, fork, blkno, page);
	return !PageIsNew((Page) page);
}

void
overlay_store(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page)
{
	RelFileNode node = reln->smgr_rnode.node;
	LWLock	   *lock = lock_of(node);
	uint32		pages = 0;
	bool		was_stored = false;
	PGAlignedBlock old;

	Assert(!PageIsNew((Page) page));

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (overlay_exists(node, fork))
	{
		pages = relsize_get(node, fork).overlay_pages;
		was_stored = read_stored(reln, fork, blkno, old.data);
	}
	else
		mdcreate(reln, fork, true);

	if (blkno < mdnblocks(reln, fork))
		mdwrite(reln, fork, blkno, page, true);
	else
		mdextend(reln, fork, blkno, page, true);

	if (!was_stored && pages != OVERLAY_PAGES_UNKNOWN)
		pages++;
	relsize_set_overlay_pages(node, fork, pages);
	LWLockRelease(lock);
}

/* Makes a block all zeros, giving its disk space back where the file system can do that. */
static void
erase_block(SMgrRelation reln, ForkNumber fork, BlockNumber blkno)
{
	PGAlignedBlock zeros;

#ifdef FALLOC_FL_PUNCH_HOLE
	BlockNumber segment = blkno / RELSEG_SIZE;
	off_t		offset = (off_t) BLCKSZ * (blkno % RELSEG_SIZE);
	char	   *path = relpath(reln->smgr_rnode, fork);
	char	   *segment_path = segment == 0 ? path : psprintf("%s.%u", path, segment);
	int			fd = OpenTransientFile(segment_path, O_RDWR | PG_BINARY);
	bool		punched = fd >= 0 &&
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, BLCKSZ) == 0;

	if (fd >= 0)
		CloseTransientFile(fd);
	if (segment_path != path)
		pfree(segment_path);
	pfree(path);
	if (punched)
		return;
#endif
	MemSet(zeros.data, 0, BLCKSZ);
	mdwrite(reln, fork, blkno, zeros.data, true);
}

void
overlay_forget(SMgrRelation reln, ForkNumber fork, BlockNumber blkno)
{
	RelFileNode node = reln->smgr_rnode.node;
	LWLock	   *lock = lock_of(node);
	PGAlignedBlock old;

	if (!overlay_exists(node, fork))
		return;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (overlay_exists(node, fork) && read_stored(reln, fork, blkno, old.data))
	{
		uint32		pages = relsize_get(node, fork).overlay_pages;

		erase_block(reln, fork, blkno);
		if (pages != OVERLAY_PAGES_UNKNOWN)
			pages--;
		relsize_set_overlay_pages(node, fork, pages);
	}
	LWLockRelease(lock);
}

bool
overlay_read(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page)
{
	return overlay_exists(reln->smgr_rnode.node, fork) && read_stored(reln, fork, blkno, page);
}

BlockNumber
overlay_nblocks(SMgrRelation reln, ForkNumber fork)
{
	return overlay_exists(reln->smgr_rnode.node, fork) ? mdnblocks(reln, fork) : 0;
}

void
overlay_truncate(SMgrRelation reln, ForkNumber fork, BlockNumber nblocks)
{
	BlockNumber stored = overlay_nblocks(reln, fork);

	if (stored > nblocks)
		mdtruncate(reln, fork, stored, nblocks);
}

void
overlay_drop(RelFileNodeBackend rnode, ForkNumber fork)
{
	/*
	 * A mark of "absent" does not mean that there is no file: see the third invariant. As in redo,
	 * the file may go at once, and need not exist.
	 */
	if (local_file_exists(rnode.node, fork))
		mdunlink(rnode, fork, true);
}
