/*
 * readahead.c
 *	  Detecting sequential reads, and asking for the pages that come next.
 *
 * A stock server leaves this to the kernel. Here each page read alone would cost a round trip. Once a
 * process has read a few blocks of a fork in a row, requests for the next ones are kept in flight;
 * the distance doubles with the length of the run, so that a short scan wastes little.
 *
 * Only one run is followed: a scan reads one relation at a time, and what comes in between
 * (index lookups for its rows, say) is rare enough, or random, or both.
 */
#include "postgres.h"

#include "storage/bufmgr.h"

#include "neon.h"
#include "pagestream.h"
#include "readahead.h"

/* Blocks read in a row before any is asked for ahead. */
#define RUN_MIN 3

/* What is followed: the run's fork, the block expected next, and how far requests were sent. */
static RelFileNode run_node;
static ForkNumber run_fork;
static BlockNumber run_next;
static BlockNumber run_length;
static BlockNumber run_sent;

static bool
is_next_of_run(SMgrRelation reln, ForkNumber fork, BlockNumber blkno)
{
	/* Blocks between that were in shared buffers do not break a run. */
	return RelFileNodeEquals(run_node, reln->smgr_rnode.node) && run_fork == fork &&
		blkno >= run_next && blkno <= Max(run_next, run_sent);
}

void
readahead_skip(SMgrRelation reln, ForkNumber fork, BlockNumber blkno)
{
	if (is_next_of_run(reln, fork, blkno))
		run_next = blkno + 1;
}

void
readahead_note(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, BlockNumber nblocks)
{
	BlockNumber distance;
	BlockNumber end;

	if (!is_next_of_run(reln, fork, blkno))
	{
		run_node = reln->smgr_rnode.node;
		run_fork = fork;
		run_length = 0;
		run_sent = blkno + 1;
	}
	run_next = blkno + 1;
	if (++run_length < RUN_MIN || nblocks == InvalidBlockNumber)
		return;

	distance = Min(run_length * 2, neon_readahead_buffer_size / 2);
	end = Min(nblocks, run_next + distance);
	run_sent = Max(run_sent, run_next);
	/* In batches: one system call sends many requests. */
	if (end < run_sent + Min(distance / 2, end - run_next))
		return;
	pagestream_begin_batch();
	for (; run_sent < end; run_sent++)
		(void) PrefetchSharedBuffer(reln, fork, run_sent);
	pagestream_end_batch();
}
