/*
 * file_cache.c
 *	  The local file cache: pages that left shared buffers, or came from the page server, in a local file.
 *
 * A set-associative cache of 8 kB pages. A page belongs to one bucket, and may be in any of the bucket's
 * WAYS slots; entry (bucket b, way w) describes the page in slot w * buckets + b of the file, so
 * that there is no free list, and a limit is a number of slots: shrinking forgets the slots above
 * it and truncates the file. Consecutive blocks of a fork have consecutive buckets, so they lie
 * in a row in the file, and a relation fills all buckets evenly.
 *
 * Invariants
 *	* A page that is here is the newest version that has left shared buffers, and in no overlay. All that makes
 *	  another version the newest goes through save_page(), truncation or drop in pagestore_smgr.c,
 *	  which replace or forget it. While a process reads a page into a shared buffer nobody can change it; but
 *	  some read past the buffers (pg_prewarm), or ask ahead for pages and store them before they are read into a
 *	  buffer. So what was read is stored only if nothing was stored or forgotten, of pages with the same lock, and
 *	  no fork or database was truncated or dropped, since it was found missing. The process that stores has
 *	  the relation open and locked, as one that reads has.
 *	* An entry and its slot in the file are read and written only with the bucket's lock held: shared for reading,
 *	  exclusively for writing. So nobody sees half a page, or another page's.
 *	* Who takes several locks takes them in ascending order.
 *
 * The cache never fails: after an IO error it is switched off until the server is started again. Its
 * file has no name any more once it is open, so it goes with the last process that uses it, and
 * nothing of an earlier run can be found in it. Processes inherit the descriptor from the postmaster.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "port/pg_iovec.h"
#include "storage/fd.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#include "file_cache.h"
#include "neon.h"

#define WAYS 16
#define LOCKS 512

/* Many more than forks that are in the cache at a time; zero as long as none that hashes there is. */
#define COUNTERS 65536
#define TRANCHE "neon_file_cache"

#define PAGES_PER_MB (1024 * 1024 / BLCKSZ)

typedef struct Entry
{
	BufferTag	tag;			/* rnode.relNode 0: nothing in this slot */
	pg_atomic_uint32 last_used; /* reading of the clock; set under a shared lock too */
	pg_atomic_uint32 accesses;
} Entry;

typedef struct FileCache
{
	pg_atomic_uint32 limit;		/* slots that may be used: all below this one */
	pg_atomic_uint32 failed;	/* an IO error has switched the cache off */
	pg_atomic_uint32 clock;		/* ticks with each new entry */
	pg_atomic_uint32 used;
	pg_atomic_uint64 hits;
	pg_atomic_uint64 misses;
	pg_atomic_uint64 stores;
	pg_atomic_uint64 evictions;
	pg_atomic_uint32 forgotten; /* how many times files or databases, or what is above the limit, were forgotten */
	uint32		buckets;
	pg_atomic_uint32 changes[LOCKS];	/* versions stored or forgotten; set under the lock, exclusively */
	pg_atomic_uint32 pages_held[COUNTERS];	/* of all forks that hash there */
	Entry		entries[FLEXIBLE_ARRAY_MEMBER]; /* [bucket * WAYS + way] */
} FileCache;

static FileCache *cache;
static LWLockPadded *locks;
static int	cache_file = -1;

/* Buckets the settings ask for; 0: no cache. */
static uint32
wanted_buckets(void)
{
	return (uint64) neon_max_file_cache_size_mb * PAGES_PER_MB / WAYS;
}

Size
file_cache_shmem_size(void)
{
	return offsetof(FileCache, entries) + mul_size(mul_size(wanted_buckets(), WAYS), sizeof(Entry));
}

void
file_cache_request_locks(void)
{
	RequestNamedLWLockTranche(TRANCHE, LOCKS);
}

static uint32
limit_in_pages(int limit_mb)
{
	uint32		all = cache->buckets * WAYS;

	return limit_mb < 0 ? all : Min((uint64) limit_mb * PAGES_PER_MB, all);
}

static void
make_file(void)
{
	cache_file = BasicOpenFile(neon_file_cache_path, O_RDWR | O_CREAT | O_TRUNC | PG_BINARY);
	if (cache_file < 0)
		ereport(FATAL,
				(errcode_for_file_access(),
				 errmsg("neon: could not create the file cache \"%s\": %m", neon_file_cache_path)));
	if (unlink(neon_file_cache_path) != 0)
		ereport(FATAL,
				(errcode_for_file_access(),
				 errmsg("neon: could not unlink the file cache \"%s\": %m", neon_file_cache_path)));
	ReserveExternalFD();
}

void
file_cache_shmem_init(void)
{
	bool		found;

	locks = GetNamedLWLockTranche(TRANCHE);
	cache = ShmemInitStruct("neon file cache", file_cache_shmem_size(), &found);
	if (found)
		return;
	/* Entries and counters: all zeros is what the kernel gives and what they begin with. Writing them takes time. */
	Assert(cache->buckets == 0 && pg_atomic_read_u32(&cache->pages_held[COUNTERS - 1]) == 0);
	cache->buckets = wanted_buckets();
	pg_atomic_init_u32(&cache->forgotten, 0);
	pg_atomic_init_u32(&cache->limit, limit_in_pages(neon_file_cache_size_limit_mb));
	pg_atomic_init_u32(&cache->failed, 0);
	pg_atomic_init_u32(&cache->clock, 1);
	pg_atomic_init_u32(&cache->used, 0);
	pg_atomic_init_u64(&cache->hits, 0);
	pg_atomic_init_u64(&cache->misses, 0);
	pg_atomic_init_u64(&cache->stores, 0);
	pg_atomic_init_u64(&cache->evictions, 0);
	if (cache->buckets > 0)
		make_file();
}

static bool
is_off(void)
{
	return cache->buckets == 0 || pg_atomic_read_u32(&cache->failed) != 0;
}

static uint32
hash_of_fork(RelFileNode node, ForkNumber fork)
{
	return hash_combine(hash_bytes((const unsigned char *) &node, sizeof(RelFileNode)), hash_uint32(fork));
}

static uint32
bucket_of(const BufferTag *tag)
{
	return ((uint64) hash_of_fork(tag->rnode, tag->forkNum) + tag->blockNum) % cache->buckets;
}

/* How many pages the cache has of the fork, and of others that hash to the same counter. */
static pg_atomic_uint32 *
pages_held(RelFileNode node, ForkNumber fork)
{
	return &cache->pages_held[hash_of_fork(node, fork) % COUNTERS];
}

static LWLock *
lock_of(uint32 bucket)
{
	return &locks[bucket % LOCKS].lock;
}

static pg_atomic_uint32 *
changes_of(uint32 bucket)
{
	return &cache->changes[bucket % LOCKS];
}

/* Differs from what it was before if a newer version of a page of this bucket may have come to be since. Wraps around. */
static uint32
changes_so_far(uint32 bucket)
{
	return pg_atomic_read_u32(changes_of(bucket)) + pg_atomic_read_u32(&cache->forgotten);
}

static uint32
slot_number(uint32 bucket, int way)
{
	return way * cache->buckets + bucket;
}

/* How many ways of a bucket are below the limit. The bucket's lock keeps the answer true. */
static int
usable_ways(uint32 bucket)
{
	uint32		limit = pg_atomic_read_u32(&cache->limit);

	return limit <= bucket ? 0 : Min(WAYS, (limit - bucket - 1) / cache->buckets + 1);
}

static Entry *
entry_at(uint32 bucket, int way)
{
	return &cache->entries[(Size) bucket * WAYS + way];
}

static bool
is_free(const Entry *entry)
{
	return !OidIsValid(entry->tag.rnode.relNode);
}

static void
set_free(Entry *entry)
{
	pg_atomic_fetch_sub_u32(pages_held(entry->tag.rnode, entry->tag.forkNum), 1);
	entry->tag.rnode.relNode = InvalidOid;
	pg_atomic_fetch_sub_u32(&cache->used, 1);
}

/* The way of the bucket that holds the page, or -1. */
static int
find(uint32 bucket, const BufferTag *tag)
{
	int			ways = usable_ways(bucket);

	for (int way = 0; way < ways; way++)
	{
		if (BUFFERTAGS_EQUAL(entry_at(bucket, way)->tag, *tag))
			return way;
	}
	return -1;
}

/* An error of the file: nothing in it is used any more, and nothing is lost. */
static void
switch_off(const char *what)
{
	int			saved_errno = errno;

	if (pg_atomic_exchange_u32(&cache->failed, 1) != 0)
		return;
	errno = saved_errno;
	ereport(LOG,
			(errcode_for_file_access(),
			 errmsg("could not %s the file cache, which is switched off: %m", what)));
	/* The disk may be full, and nothing of this is read again. */
	if (ftruncate(cache_file, 0) != 0)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not truncate the file cache: %m")));
}

static bool
read_slot(uint32 slot, char *page)
{
	errno = 0;
	if (pg_pread(cache_file, page, BLCKSZ, (off_t) slot * BLCKSZ) == BLCKSZ)
		return true;
	switch_off("read from");
	return false;
}

/* Writes slots in a row. */
static bool
write_slots(uint32 first, struct iovec *pages, int n)
{
	/* A short write sets no errno. */
	errno = ENOSPC;
	if (pg_pwritev(cache_file, pages, n, (off_t) first * BLCKSZ) == (ssize_t) n * BLCKSZ)
		return true;
	switch_off("write to");
	return false;
}

bool
file_cache_read(const BufferTag *tag, char *page, uint32 *changes)
{
	uint32		bucket;
	int			way;
	bool		hit = false;

	*changes = 0;
	if (is_off())
		return false;
	bucket = bucket_of(tag);
	LWLockAcquire(lock_of(bucket), LW_SHARED);
	*changes = changes_so_far(bucket);
	way = find(bucket, tag);
	if (way >= 0)
	{
		Entry	   *entry = entry_at(bucket, way);

		hit = read_slot(slot_number(bucket, way), page);
		pg_atomic_write_u32(&entry->last_used, pg_atomic_read_u32(&cache->clock));
		pg_atomic_fetch_add_u32(&entry->accesses, 1);
	}
	LWLockRelease(lock_of(bucket));
	pg_atomic_fetch_add_u64(hit ? &cache->hits : &cache->misses, 1);
	return hit;
}

void
file_cache_count_miss(void)
{
	if (!is_off())
		pg_atomic_fetch_add_u64(&cache->misses, 1);
}

bool
file_cache_contains(const BufferTag *tag, uint32 *changes)
{
	uint32		bucket;
	bool		found;

	*changes = 0;
	if (is_off())
		return false;
	bucket = bucket_of(tag);
	LWLockAcquire(lock_of(bucket), LW_SHARED);
	*changes = changes_so_far(bucket);
	found = find(bucket, tag) >= 0;
	LWLockRelease(lock_of(bucket));
	return found;
}

/* The way that a new page of this bucket gets: a free one, or that of the page used longest ago. -1: there are none. */
static int
choose_way(uint32 bucket)
{
	uint32		now = pg_atomic_read_u32(&cache->clock);
	int			ways = usable_ways(bucket);
	int			oldest = ways > 0 ? 0 : -1;

	for (int way = 0; way < ways; way++)
	{
		Entry	   *entry = entry_at(bucket, way);

		if (is_free(entry))
			return way;
		/* Differences, not values: the clock wraps around. */
		if (now - pg_atomic_read_u32(&entry->last_used) >
			now - pg_atomic_read_u32(&entry_at(bucket, oldest)->last_used))
			oldest = way;
	}
	return oldest;
}

static void
evict(Entry *entry)
{
	if (is_free(entry))
		return;
	set_free(entry);
	pg_atomic_fetch_add_u64(&cache->evictions, 1);
}

/* Makes a free entry that of the page, which is in its slot. */
static void
publish(Entry *entry, const BufferTag *tag)
{
	pg_atomic_fetch_add_u32(&cache->used, 1);
	pg_atomic_fetch_add_u32(pages_held(tag->rnode, tag->forkNum), 1);
	entry->tag = *tag;
	pg_atomic_write_u32(&entry->accesses, 0);
}

static void
touch(Entry *entry)
{
	pg_atomic_write_u32(&entry->last_used, pg_atomic_fetch_add_u32(&cache->clock, 1));
}

/* Puts the page into its bucket, whose lock is held exclusively. */
static void
store(uint32 bucket, const BufferTag *tag, const char *page)
{
	struct iovec written = {.iov_base = (char *) page,.iov_len = BLCKSZ};
	int			way = find(bucket, tag);
	bool		new = way < 0;
	Entry	   *entry;

	pg_atomic_fetch_add_u64(&cache->stores, 1);
	if (new)
		way = choose_way(bucket);
	if (way < 0)
		return;
	entry = entry_at(bucket, way);
	if (new)
		evict(entry);
	if (!write_slots(slot_number(bucket, way), &written, 1))
	{
		if (!new)
			set_free(entry);
		return;
	}
	if (new)
		publish(entry, tag);
	touch(entry);
}

void
file_cache_store(const BufferTag *tag, const char *page)
{
	uint32		bucket;

	if (is_off())
		return;
	bucket = bucket_of(tag);
	LWLockAcquire(lock_of(bucket), LW_EXCLUSIVE);
	pg_atomic_fetch_add_u32(changes_of(bucket), 1);
	store(bucket, tag, page);
	LWLockRelease(lock_of(bucket));
}

/* Part of a run that is in buckets in a row, with locks in a row. */
typedef struct Stretch
{
	uint32		bucket;			/* of the first page */
	BufferTag	first;
	int			length;
	struct iovec pages[FILE_CACHE_RUN_MAX];
	int			ways[FILE_CACHE_RUN_MAX];	/* where each goes; -1: nowhere */
} Stretch;

/* The way for a page that was read, freed; -1 if it is not to be stored. Its lock is held exclusively. */
static int
claim_way(uint32 bucket, const BufferTag *tag, uint32 changes)
{
	int			way;

	/* What is here already is the same version, stored by another that has read it. */
	if (changes_so_far(bucket) != changes || find(bucket, tag) >= 0)
		return -1;
	way = choose_way(bucket);
	if (way >= 0)
		evict(entry_at(bucket, way));
	return way;
}

/* Writes pages `from` up to `to`, which go to the same way, and makes them known. */
static void
write_and_publish(Stretch *stretch, int from, int to)
{
	int			way = stretch->ways[from];
	BufferTag	tag = stretch->first;

	if (!write_slots(slot_number(stretch->bucket + from, way), stretch->pages + from, to - from))
		return;
	pg_atomic_fetch_add_u64(&cache->stores, to - from);
	for (int i = from; i < to; i++)
	{
		Entry	   *entry = entry_at(stretch->bucket + i, way);

		tag.blockNum = stretch->first.blockNum + i;
		publish(entry, &tag);
		touch(entry);
	}
}

/* Stores a stretch whose locks are held. Neighbours that go to the same way are neighbours in the file. */
static void
store_stretch(Stretch *stretch)
{
	int			end;

	for (int from = 0; from < stretch->length; from = end)
	{
		for (end = from + 1; end < stretch->length && stretch->ways[end] == stretch->ways[from];)
			end++;
		if (stretch->ways[from] >= 0)
			write_and_publish(stretch, from, end);
	}
}

int
file_cache_run_limit(const BufferTag *first)
{
	/* Of buckets, not slots: their numbers in the file have the same remainder unless the cache's size is odd. */
	return is_off() ? 1 : FILE_CACHE_RUN_MAX - bucket_of(first) % FILE_CACHE_RUN_MAX;
}

void
file_cache_store_read(const BufferTag *first, const FileCacheRun *run)
{
	Stretch		stretch = {.first = *first};

	if (is_off())
		return;
	for (int done = 0; done < run->length; done += stretch.length)
	{
		BufferTag	tag = *first;

		tag.blockNum = stretch.first.blockNum = first->blockNum + done;
		stretch.bucket = bucket_of(&tag);
		/* Neither buckets nor locks begin again in it, so that the locks are taken in ascending order. */
		stretch.length = Min(run->length - done,
							 Min(LOCKS - stretch.bucket % LOCKS, cache->buckets - stretch.bucket));
		for (int i = 0; i < stretch.length; i++)
			LWLockAcquire(lock_of(stretch.bucket + i), LW_EXCLUSIVE);
		for (int i = 0; i < stretch.length; i++, tag.blockNum++)
		{
			stretch.pages[i].iov_base = (char *) run->blocks[done + i].page;
			stretch.pages[i].iov_len = BLCKSZ;
			stretch.ways[i] = claim_way(stretch.bucket + i, &tag, run->blocks[done + i].changes);
		}
		store_stretch(&stretch);
		for (int i = 0; i < stretch.length; i++)
			LWLockRelease(lock_of(stretch.bucket + i));
	}
}

void
file_cache_forget(const BufferTag *tag)
{
	uint32		bucket;
	int			way;

	if (is_off())
		return;
	bucket = bucket_of(tag);
	LWLockAcquire(lock_of(bucket), LW_EXCLUSIVE);
	pg_atomic_fetch_add_u32(changes_of(bucket), 1);
	way = find(bucket, tag);
	if (way >= 0)
		set_free(entry_at(bucket, way));
	LWLockRelease(lock_of(bucket));
}

/* Which entries are to go. */
typedef struct Victims
{
	Oid			dbnode;			/* this database's, InvalidOid for any */
	Oid			spcnode;		/* in this tablespace, InvalidOid for any */
	Oid			relnode;		/* of this relation, InvalidOid for any */
	ForkNumber	fork;			/* and fork */
	BlockNumber from;			/* from this block on */
	uint32		from_slot;		/* and in slots from here on */
} Victims;

static bool
is_victim(const Victims *victims, const BufferTag *tag, uint32 slot)
{
	return (victims->relnode == InvalidOid ||
			(tag->rnode.relNode == victims->relnode && tag->forkNum == victims->fork)) &&
		(victims->dbnode == InvalidOid || tag->rnode.dbNode == victims->dbnode) &&
		(victims->spcnode == InvalidOid || tag->rnode.spcNode == victims->spcnode) &&
		tag->blockNum >= victims->from && slot >= victims->from_slot;
}

/* Looks at all entries. */
static void
forget_all(const Victims *victims)
{
	pg_atomic_fetch_add_u32(&cache->forgotten, 1);
	for (uint32 bucket = 0; bucket < cache->buckets; bucket++)
	{
		LWLockAcquire(lock_of(bucket), LW_EXCLUSIVE);
		for (int way = 0; way < WAYS; way++)
		{
			Entry	   *entry = entry_at(bucket, way);

			if (!is_free(entry) && is_victim(victims, &entry->tag, slot_number(bucket, way)))
				set_free(entry);
		}
		LWLockRelease(lock_of(bucket));
	}
}

void
file_cache_forget_blocks(RelFileNode node, ForkNumber fork, BlockNumber from, BlockNumber nblocks)
{
	BufferTag	tag;

	if (is_off())
		return;
	pg_atomic_fetch_add_u32(&cache->forgotten, 1);
	/* Of most forks that are dropped there is nothing, and what is unknown of their size would cost a look at all entries. */
	if (pg_atomic_read_u32(pages_held(node, fork)) == 0)
		return;
	if (nblocks == InvalidBlockNumber || nblocks > cache->buckets)
	{
		Victims		victims = {
			.dbnode = node.dbNode,
			.spcnode = node.spcNode,
			.relnode = node.relNode,
			.fork = fork,
			.from = from,
		};

		forget_all(&victims);
		return;
	}
	for (BlockNumber blkno = from; blkno < nblocks; blkno++)
	{
		INIT_BUFFERTAG(tag, node, fork, blkno);
		file_cache_forget(&tag);
	}
}

void
file_cache_forget_database(Oid dbnode, Oid spcnode)
{
	Victims		victims = {.dbnode = dbnode,.spcnode = spcnode};

	if (!is_off())
		forget_all(&victims);
}

/*
 * All processes learn of a new setting; the checkpointer, of which there is one, puts it into effect.
 * Whoever holds a bucket's lock after forget_all() has passed sees the new limit, so that nothing is written
 * beyond it any more.
 */
void
file_cache_assign_limit(int limit_mb, void *extra)
{
	uint32		limit;
	Victims		victims = {0};

	if (cache == NULL || MyAuxProcType != CheckpointerProcess || is_off())
		return;
	limit = limit_in_pages(limit_mb);
	victims.from_slot = limit;
	pg_atomic_write_u32(&cache->limit, limit);
	forget_all(&victims);
	if (ftruncate(cache_file, (off_t) limit * BLCKSZ) != 0)
		switch_off("truncate");
}

bool
file_cache_next(uint32 *position, FileCacheEntry *entry)
{
	uint32		entries = is_off() ? 0 : cache->buckets * WAYS;

	for (; *position < entries; (*position)++)
	{
		uint32		bucket = *position / WAYS;
		int			way = *position % WAYS;
		Entry	   *found = entry_at(bucket, way);
		bool		used;

		LWLockAcquire(lock_of(bucket), LW_SHARED);
		used = !is_free(found);
		entry->tag = found->tag;
		LWLockRelease(lock_of(bucket));
		entry->slot = slot_number(bucket, way);
		entry->accesses = pg_atomic_read_u32(&found->accesses);
		if (used)
		{
			(*position)++;
			return true;
		}
	}
	return false;
}

FileCacheStats
file_cache_stats(void)
{
	FileCacheStats stats = {
		.hits = pg_atomic_read_u64(&cache->hits),
		.misses = pg_atomic_read_u64(&cache->misses),
		.stores = pg_atomic_read_u64(&cache->stores),
		.evictions = pg_atomic_read_u64(&cache->evictions),
		.used_pages = pg_atomic_read_u32(&cache->used),
		.limit_pages = is_off() ? 0 : pg_atomic_read_u32(&cache->limit),
	};

	return stats;
}
