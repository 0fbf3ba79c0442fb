/*
 * relsize_cache.c
 *	  What this compute knows about relation forks, in shared memory.
 *
 * A set-associative cache: a fork hashes to a bucket of a few entries, and a full bucket gives up
 * the entry that is cheapest to lose (see LossCost), among equals the one used longest ago. Its
 * memory is bounded (neon.relsize_hash_size entries) and there are no chains.
 *
 * Losing an entry is always allowed. What this compute changed reaches the page server as WAL. The
 * drop of a fork has been written by then, so forks without an entry are asked for at the insert
 * position of that moment or later (relsize_lost_drops_lsn). A fork that lives may go on changing, so
 * once one was lost they are asked for at the insert position of now (relsize_lost_changes). Only trailing zero pages that no WAL mentions can be forgotten that way;
 * nothing refers to them but the free space map, which PostgreSQL checks against the relation size.
 *
 * The functions that record changes neither allocate nor fail: truncation runs in a critical section.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#include "cluster_state.h"
#include "neon.h"
#include "relsize_cache.h"

#define BUCKET_ENTRIES 8
#define LOCKS 128
#define TRANCHE "neon_relsize"

typedef struct Entry
{
	RelFileNode node;			/* relNode 0: a free entry */
	ForkNumber	fork;
	pg_atomic_uint32 last_used; /* reading of the clock; set under a shared lock too */
	ForkState	state;
} Entry;

typedef struct Bucket
{
	Entry		entries[BUCKET_ENTRIES];
} Bucket;

typedef struct RelsizeCache
{
	pg_atomic_uint32 clock;		/* ticks with each new entry */
	pg_atomic_uint64 lost_changes_lsn;
	pg_atomic_uint64 lost_drops_lsn;
	uint32		buckets_count;
	Bucket		buckets[FLEXIBLE_ARRAY_MEMBER];
} RelsizeCache;

static RelsizeCache *cache;
static LWLockPadded *locks;

static const ForkState nothing_known = {
	.existence = NOT_KNOWN,
	.nblocks = InvalidBlockNumber,
	.overlay = NOT_KNOWN,
	.overlay_pages = OVERLAY_PAGES_UNKNOWN,
	.created_lsn = InvalidXLogRecPtr,
	.has_unlogged_sequence = false,
	.changed_here = false,
};

static uint32
buckets_count(void)
{
	return (neon_relsize_hash_size + BUCKET_ENTRIES - 1) / BUCKET_ENTRIES;
}

Size
relsize_cache_shmem_size(void)
{
	return offsetof(RelsizeCache, buckets) + mul_size(buckets_count(), sizeof(Bucket));
}

void
relsize_cache_request_locks(void)
{
	RequestNamedLWLockTranche(TRANCHE, LOCKS);
}

void
relsize_cache_shmem_init(void)
{
	bool		found;

	locks = GetNamedLWLockTranche(TRANCHE);
	cache = ShmemInitStruct("neon relation sizes", relsize_cache_shmem_size(), &found);
	if (found)
		return;
	/*
	 * All zeros is an empty bucket, and what the kernel gives: shared memory is made anew at each start, of which
	 * writing all of this would be a part that one notices.
	 */
	Assert(cache->buckets[0].entries[0].node.relNode == 0);
	pg_atomic_init_u32(&cache->clock, 1);
	pg_atomic_init_u64(&cache->lost_changes_lsn, InvalidXLogRecPtr);
	pg_atomic_init_u64(&cache->lost_drops_lsn, InvalidXLogRecPtr);
	cache->buckets_count = buckets_count();
}

static uint32
bucket_number(RelFileNode node, ForkNumber fork)
{
	uint32		hash = hash_combine(hash_bytes((const unsigned char *) &node, sizeof(node)),
									hash_uint32(fork));

	return hash % cache->buckets_count;
}

static LWLock *
lock_of(uint32 bucket)
{
	return &locks[bucket % LOCKS].lock;
}

static Entry *
find(Bucket *bucket, RelFileNode node, ForkNumber fork)
{
	for (int i = 0; i < BUCKET_ENTRIES; i++)
	{
		Entry	   *entry = &bucket->entries[i];

		if (RelFileNodeEquals(entry->node, node) && entry->fork == fork)
		{
			pg_atomic_write_u32(&entry->last_used, pg_atomic_read_u32(&cache->clock));
			return entry;
		}
	}
	return NULL;
}

/* What losing an entry costs, ascending. */
typedef enum LossCost
{
	LOSE_NOTHING,				/* a free entry */
	LOSE_ANSWER,				/* the page server can be asked again */
	LOSE_DROP,					/* asking again has to wait until it knows of the drop */
	LOSE_CHANGES,				/* asking again has to wait for all WAL so far */
	LOSE_POSITION,				/* a sequence will skip values at the next clean restart */
} LossCost;

static LossCost
loss_cost(const Entry *entry)
{
	if (entry->node.relNode == 0)
		return LOSE_NOTHING;
	if (!entry->state.changed_here)
		return LOSE_ANSWER;
	if (entry->state.existence == KNOWN_ABSENT)
		return LOSE_DROP;
	return entry->state.has_unlogged_sequence ? LOSE_POSITION : LOSE_CHANGES;
}

/* Whether `a` is the cheaper of two entries to lose. */
static bool
cheaper_to_lose(Entry *a, Entry *b)
{
	uint32		now = pg_atomic_read_u32(&cache->clock);

	if (loss_cost(a) != loss_cost(b))
		return loss_cost(a) < loss_cost(b);
	/* Differences, not values: the clock wraps around. */
	return now - pg_atomic_read_u32(&a->last_used) > now - pg_atomic_read_u32(&b->last_used);
}

/* Remembers what readers must know of an entry that is being pushed out. */
static void
note_loss(const Entry *entry)
{
	pg_atomic_uint64 *place = loss_cost(entry) >= LOSE_CHANGES ? &cache->lost_changes_lsn : &cache->lost_drops_lsn;
	uint64		now;
	uint64		seen;

	if (loss_cost(entry) < LOSE_DROP)
		return;
	now = current_insert_lsn();
	seen = pg_atomic_read_u64(place);
	while (seen < now && !pg_atomic_compare_exchange_u64(place, &seen, now))
		;
}

/* Finds the fork's entry or makes one. The caller holds the bucket's lock exclusively. */
static Entry *
find_or_make(Bucket *bucket, RelFileNode node, ForkNumber fork)
{
	Entry	   *entry = find(bucket, node, fork);

	if (entry != NULL)
		return entry;

	entry = &bucket->entries[0];
	for (int i = 1; i < BUCKET_ENTRIES; i++)
	{
		if (cheaper_to_lose(&bucket->entries[i], entry))
			entry = &bucket->entries[i];
	}
	note_loss(entry);
	entry->node = node;
	entry->fork = fork;
	entry->state = nothing_known;
	pg_atomic_write_u32(&entry->last_used, pg_atomic_fetch_add_u32(&cache->clock, 1));
	return entry;
}

ForkState
relsize_get(RelFileNode node, ForkNumber fork)
{
	ForkState	state = nothing_known;
	uint32		bucket = bucket_number(node, fork);
	Entry	   *entry;

	LWLockAcquire(lock_of(bucket), LW_SHARED);
	entry = find(&cache->buckets[bucket], node, fork);
	if (entry != NULL)
		state = entry->state;
	LWLockRelease(lock_of(bucket));
	return state;
}

/* The state of a fork, to be changed: locked until LWLockRelease(*lock). */
static ForkState *
lock_state(RelFileNode node, ForkNumber fork, LWLock **lock)
{
	uint32		bucket = bucket_number(node, fork);

	*lock = lock_of(bucket);
	LWLockAcquire(*lock, LW_EXCLUSIVE);
	return &find_or_make(&cache->buckets[bucket], node, fork)->state;
}

void
relsize_learn_existence(RelFileNode node, ForkNumber fork, bool exists)
{
	LWLock	   *lock;
	ForkState  *state = lock_state(node, fork, &lock);

	if (state->existence == NOT_KNOWN)
		state->existence = exists ? KNOWN_PRESENT : KNOWN_ABSENT;
	LWLockRelease(lock);
}

void
relsize_learn_nblocks(RelFileNode node, ForkNumber fork, BlockNumber nblocks)
{
	LWLock	   *lock;
	ForkState  *state = lock_state(node, fork, &lock);

	if (state->nblocks == InvalidBlockNumber)
		state->nblocks = nblocks;
	LWLockRelease(lock);
}

void
relsize_learn_overlay(RelFileNode node, ForkNumber fork, bool present)
{
	LWLock	   *lock;
	ForkState  *state = lock_state(node, fork, &lock);

	if (state->overlay == NOT_KNOWN)
	{
		state->overlay = present ? KNOWN_PRESENT : KNOWN_ABSENT;
		state->overlay_pages = present ? OVERLAY_PAGES_UNKNOWN : 0;
	}
	LWLockRelease(lock);
}

void
relsize_created(RelFileNode node, ForkNumber fork, XLogRecPtr insert_lsn)
{
	LWLock	   *lock;
	ForkState  *state = lock_state(node, fork, &lock);

	/* Creating a fork that exists is allowed during redo: its size stands. */
	if (state->existence != KNOWN_PRESENT)
	{
		state->nblocks = 0;
		state->created_lsn = insert_lsn;
	}
	state->existence = KNOWN_PRESENT;
	state->changed_here = true;
	LWLockRelease(lock);
}

void
relsize_extended(RelFileNode node, ForkNumber fork, BlockNumber nblocks)
{
	LWLock	   *lock;
	ForkState  *state = lock_state(node, fork, &lock);

	/* The caller extends at or beyond the end, so an unknown size becomes known. */
	if (state->nblocks == InvalidBlockNumber || state->nblocks < nblocks)
		state->nblocks = nblocks;
	state->existence = KNOWN_PRESENT;
	state->changed_here = true;
	LWLockRelease(lock);
}

void
relsize_truncated(RelFileNode node, ForkNumber fork, BlockNumber nblocks)
{
	LWLock	   *lock;
	ForkState  *state = lock_state(node, fork, &lock);

	state->nblocks = nblocks;
	state->existence = KNOWN_PRESENT;
	state->changed_here = true;
	if (state->overlay == KNOWN_PRESENT)
		state->overlay_pages = OVERLAY_PAGES_UNKNOWN;
	LWLockRelease(lock);
}

void
relsize_dropped(RelFileNode node, ForkNumber fork)
{
	LWLock	   *lock;
	ForkState  *state = lock_state(node, fork, &lock);

	*state = nothing_known;
	state->existence = KNOWN_ABSENT;
	state->nblocks = 0;
	state->overlay = KNOWN_ABSENT;
	state->overlay_pages = 0;
	state->changed_here = true;
	LWLockRelease(lock);
}

void
relsize_set_overlay_pages(RelFileNode node, ForkNumber fork, uint32 pages)
{
	LWLock	   *lock;
	ForkState  *state = lock_state(node, fork, &lock);

	state->overlay = pages == 0 ? KNOWN_ABSENT : KNOWN_PRESENT;
	state->overlay_pages = pages;
	state->changed_here = true;
	LWLockRelease(lock);
}

void
relsize_note_sequence(RelFileNode node, ForkNumber fork)
{
	LWLock	   *lock;
	ForkState  *state = lock_state(node, fork, &lock);

	state->has_unlogged_sequence = true;
	LWLockRelease(lock);
}

bool
relsize_next_sequence(uint32 *position, RelFileNode *node, ForkNumber *fork)
{
	for (; *position < cache->buckets_count * BUCKET_ENTRIES; (*position)++)
	{
		uint32		bucket = *position / BUCKET_ENTRIES;
		Entry	   *entry = &cache->buckets[bucket].entries[*position % BUCKET_ENTRIES];
		bool		found;

		LWLockAcquire(lock_of(bucket), LW_SHARED);
		found = entry->node.relNode != 0 && entry->state.has_unlogged_sequence;
		*node = entry->node;
		*fork = entry->fork;
		LWLockRelease(lock_of(bucket));
		if (found)
		{
			(*position)++;
			return true;
		}
	}
	return false;
}

void
relsize_forget_database(Oid dbnode, Oid spcnode)
{
	for (uint32 bucket = 0; bucket < cache->buckets_count; bucket++)
	{
		LWLockAcquire(lock_of(bucket), LW_EXCLUSIVE);
		for (int i = 0; i < BUCKET_ENTRIES; i++)
		{
			Entry	   *entry = &cache->buckets[bucket].entries[i];

			if (entry->node.relNode != 0 && entry->node.dbNode == dbnode &&
				(spcnode == InvalidOid || entry->node.spcNode == spcnode))
				MemSet(&entry->node, 0, sizeof(entry->node));
		}
		LWLockRelease(lock_of(bucket));
	}
}

bool
relsize_lost_changes(void)
{
	return relsize_lost_changes_lsn() != InvalidXLogRecPtr;
}

XLogRecPtr
relsize_lost_changes_lsn(void)
{
	return pg_atomic_read_u64(&cache->lost_changes_lsn);
}

XLogRecPtr
relsize_lost_drops_lsn(void)
{
	return pg_atomic_read_u64(&cache->lost_drops_lsn);
}
