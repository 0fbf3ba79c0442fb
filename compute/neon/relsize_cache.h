/*
 * relsize_cache.h
 *	  What this compute knows about relation forks: existence, size, overlay. In shared memory.
 */
#ifndef NEON_RELSIZE_CACHE_H
#define NEON_RELSIZE_CACHE_H

#include "access/xlogdefs.h"
#include "common/relpath.h"
#include "storage/block.h"
#include "storage/relfilenode.h"

typedef enum Knowledge
{
	NOT_KNOWN = 0,
	KNOWN_ABSENT,
	KNOWN_PRESENT,
} Knowledge;

#define OVERLAY_PAGES_UNKNOWN PG_UINT32_MAX

typedef struct ForkState
{
	/* Does the fork exist? */
	Knowledge	existence;

	/* Its size in blocks, InvalidBlockNumber if not known. */
	BlockNumber nblocks;

	/* Are there pages of it in a local overlay file? */
	Knowledge	overlay;

	/* How many pages, or OVERLAY_PAGES_UNKNOWN. */
	uint32		overlay_pages;

	/* Insert position when this compute created the fork; 0 if it did not, or forgot. */
	XLogRecPtr	created_lsn;

	/* Its page is that of a sequence, and the newest version of it is in no WAL record. */
	bool		has_unlogged_sequence;

	/* This compute created, extended, truncated or dropped it: the page server may lag behind. */
	bool		changed_here;
} ForkState;

extern Size relsize_cache_shmem_size(void);
extern void relsize_cache_request_locks(void);
extern void relsize_cache_shmem_init(void);

/* A copy of what is known; everything unknown if there is no entry. */
extern ForkState relsize_get(RelFileNode node, ForkNumber fork);

/* Facts from the page server or the disk. They never replace what is known already. */
extern void relsize_learn_existence(RelFileNode node, ForkNumber fork, bool exists);
extern void relsize_learn_nblocks(RelFileNode node, ForkNumber fork, BlockNumber nblocks);
extern void relsize_learn_overlay(RelFileNode node, ForkNumber fork, bool present);

/* Changes this compute made. They replace what was known. */
extern void relsize_created(RelFileNode node, ForkNumber fork, XLogRecPtr insert_lsn);
extern void relsize_extended(RelFileNode node, ForkNumber fork, BlockNumber nblocks);
extern void relsize_truncated(RelFileNode node, ForkNumber fork, BlockNumber nblocks);
extern void relsize_dropped(RelFileNode node, ForkNumber fork);
extern void relsize_set_overlay_pages(RelFileNode node, ForkNumber fork, uint32 pages);

/* The fork's only page is a sequence's, and was stored in the overlay. */
extern void relsize_note_sequence(RelFileNode node, ForkNumber fork);

/* Steps through the forks noted so: start with *position = 0; false at the end. */
extern bool relsize_next_sequence(uint32 *position, RelFileNode *node, ForkNumber *fork);

/* The database left a tablespace, or all (InvalidOid): nothing is known of its relations there. */
extern void relsize_forget_database(Oid dbnode, Oid spcnode);

/* Were entries of living forks this compute changed pushed out? Then others are asked for at the newest LSN. */
extern bool relsize_lost_changes(void);

/* What was forgotten of changes was forgotten before this LSN; invalid if nothing was. */
extern XLogRecPtr relsize_lost_changes_lsn(void);

/* From which LSN on does the page server know of all drops whose entries were pushed out? */
extern XLogRecPtr relsize_lost_drops_lsn(void);

#endif							/* NEON_RELSIZE_CACHE_H */
