/*
 * last_written_lsn.c
 *	  Lower bounds for the LSN at which a page may be read back from the page server.
 *
 * A fixed array of slots in shared memory. A page belongs to the slot its tag hashes to, and the
 * slot holds the highest LSN of any page of that slot. So the answer for a page is never too low,
 * and too high only when another page of the same slot was evicted later: the read may then wait
 * for WAL it does not need. There is nothing to evict, and no lock.
 *
 * The floor is the lower bound for everything. It starts at the LSN of the base backup, and rises
 * when relations change without passing through the storage manager (CREATE DATABASE by file copy).
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "port/atomics.h"
#include "storage/shmem.h"

#include "cluster_state.h"
#include "last_written_lsn.h"

/* 2 MiB of shared memory; 16 slots for each buffer of the default shared_buffers. */
#define SLOTS (1U << 18)

typedef struct LastWrittenLsn
{
	pg_atomic_uint64 floor;
	pg_atomic_uint64 slots[SLOTS];
} LastWrittenLsn;

static LastWrittenLsn *shared;

Size
last_written_lsn_shmem_size(void)
{
	return sizeof(LastWrittenLsn);
}

void
last_written_lsn_shmem_init(void)
{
	bool		found;

	shared = ShmemInitStruct("neon last-written LSNs", sizeof(LastWrittenLsn), &found);
	if (found)
		return;
	pg_atomic_init_u64(&shared->floor, cluster_state.base_lsn);
	for (uint32 i = 0; i < SLOTS; i++)
		pg_atomic_init_u64(&shared->slots[i], InvalidXLogRecPtr);
}

static void
raise_to(pg_atomic_uint64 *place, XLogRecPtr lsn)
{
	uint64		seen = pg_atomic_read_u64(place);

	while (seen < lsn && !pg_atomic_compare_exchange_u64(place, &seen, lsn))
		;
}

/* Consecutive blocks have consecutive slots: a scan finds many in each cache line. */
static pg_atomic_uint64 *
slot_of(const BufferTag *tag)
{
	uint32		hash = hash_combine(hash_bytes((const unsigned char *) &tag->rnode, sizeof(RelFileNode)),
									hash_uint32(tag->forkNum));

	StaticAssertStmt(sizeof(RelFileNode) == 12, "a RelFileNode with padding must not be hashed as bytes");
	return &shared->slots[(hash + tag->blockNum) % SLOTS];
}

void
last_written_lsn_note(const BufferTag *tag, XLogRecPtr lsn)
{
	raise_to(slot_of(tag), lsn);
}

XLogRecPtr
last_written_lsn_get(const BufferTag *tag)
{
	return Max(pg_atomic_read_u64(slot_of(tag)), pg_atomic_read_u64(&shared->floor));
}

void
last_written_lsn_raise_floor(XLogRecPtr lsn)
{
	raise_to(&shared->floor, lsn);
}

XLogRecPtr
last_written_lsn_floor(void)
{
	return pg_atomic_read_u64(&shared->floor);
}
