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

/* Reads the page if it is there. If not, `*changes` is for file_cache_store_read(). */
extern bool file_cache_read(const BufferTag *tag, char *page, uint32 *changes);
extern bool file_cache_contains(const BufferTag *tag);

/* The newest version of the page is this one. Replaces an older version; may push out another page. */
extern void file_cache_store(const BufferTag *tag, const char *page);

/*
 * The page was read elsewhere, after file_cache_read() had missed it. It is kept unless pages were stored or forgotten
 * since: a newer version may have been among them.
 */
extern void file_cache_store_read(const BufferTag *tag, const char *page, uint32 changes);

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
