/*
 * file_cache.h
 *	  The local file cache: pages that left shared buffers, or came from the page server, in a local file.
 */
#ifndef NEON_FILE_CACHE_H
#define NEON_FILE_CACHE_H

#include "storage/buf_internals.h"

extern Size file_cache_shmem_size(void);
extern void file_cache_request_locks(void);

/* Also makes the file. */
extern void file_cache_shmem_init(void);

/* Assign hook of neon.file_cache_size_limit. */
extern void file_cache_assign_limit(int limit_mb, void *extra);

/* Is the page here? `*changes` is for file_cache_store_read() if it is not. */
extern bool file_cache_contains(const BufferTag *tag, uint32 *changes);

/* The same, and reads it. Counts as a hit or a miss. */
extern bool file_cache_read(const BufferTag *tag, char *page, uint32 *changes);

/* Somebody reads a page elsewhere that was not here when it was asked for ahead. */
extern void file_cache_count_miss(void);

/* The newest version of the page is this one. Replaces an older version; may push out another page. */
extern void file_cache_store(const BufferTag *tag, const char *page);

/* Longest run that is stored at a time, in pages. */
#define FILE_CACHE_RUN_MAX 16

/* Consecutive blocks that were read elsewhere. */
typedef struct FileCacheRun
{
	int			length;
	struct
	{
		const char *page;
		uint32		changes;	/* as it was when the page was found missing, before it was asked for */
	}			blocks[FILE_CACHE_RUN_MAX];
} FileCacheRun;

/* How long a run that begins at `first` should be: the next one then begins where the kernel puts all of it into one folio. */
extern int	file_cache_run_limit(const BufferTag *first);

/*
 * Stores a run that begins at `first`. A block is passed over if pages were stored or forgotten since it was found missing:
 * a newer version may have been among them.
 */
extern void file_cache_store_read(const BufferTag *first, const FileCacheRun *run);

/* What is here of these pages is no longer the newest version. Neither waits for IO of ours, nor fails. */
extern void file_cache_forget(const BufferTag *tag);

/* All from block `from` on; `nblocks` is the size of the fork until now, InvalidBlockNumber if not known. */
extern void file_cache_forget_blocks(RelFileNode node, ForkNumber fork, BlockNumber from, BlockNumber nblocks);

/* Everything of a database in one tablespace, or in all (InvalidOid). */
extern void file_cache_forget_database(Oid dbnode, Oid spcnode);

typedef struct FileCacheEntry
{
	BufferTag	tag;
	uint32		slot;			/* position in the file, in pages */
	uint32		accesses;
} FileCacheEntry;

/* Steps through all entries: start with *position = 0; false at the end. */
extern bool file_cache_next(uint32 *position, FileCacheEntry *entry);

typedef struct FileCacheStats
{
	uint64		hits;
	uint64		misses;
	uint64		stores;
	uint64		evictions;
	uint32		used_pages;
	uint32		limit_pages;
} FileCacheStats;

extern FileCacheStats file_cache_stats(void);

#endif							/* NEON_FILE_CACHE_H */
