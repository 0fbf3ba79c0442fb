/*
 * pagestore_smgr.c
 *	  The storage manager: what the server calls instead of md.c.
 *
 * Writing: a page that leaves shared buffers is not sent anywhere. The WAL describes it, the page
 * server reads the WAL, and only the LSN up to which it does is kept (last_written_lsn.c). What the WAL
 * does not describe is kept in the overlay (overlay.c); page_fate() decides.
 *
 * Reading: overlay first, then the local file cache (file_cache.c), then the page server. Every page that
 * becomes stale passes through save_page(), or goes by truncation or drop.
 *
 * Sizes: the page server learns of a new block only from WAL, possibly later than other backends
 * must see it, so what this compute changes is answered from the shared relation cache.
 *
 * A replica never writes. It reads at a fixed LSN or at the LSN it has replayed.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xloginsert.h"
#include "access/xlogutils.h"
#include "catalog/pg_tablespace_d.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"

#include "backpressure.h"
#include "cluster_state.h"
#include "command_ids.h"
#include "file_cache.h"
#include "last_written_lsn.h"
#include "local_rels.h"
#include "overlay.h"
#include "pagestore_smgr.h"
#include "readahead.h"
#include "relsize_cache.h"
#include "standby.h"

/* The mark at the end of a sequence's only page (SEQ_MAGIC in sequence.c). */
#define SEQUENCE_MAGIC 0x1717

typedef enum PageFate
{
	FATE_ZERO,					/* all zeros: what the page server answers for a block it never heard of */
	FATE_IN_WAL,				/* the WAL up to some LSN has all that matters of it */
	FATE_OVERLAY,				/* keep a copy */
	FATE_OVERLAY_AND_WAL,		/* keep a copy, and log it so that it outlives this compute */

	/*
	 * Keep a copy: the record is 32 values ahead, so that most calls of nextval need none. To log the
	 * page now would be wrong, because nextval would count on that earlier record; see sequences.c.
	 */
	FATE_SEQUENCE,
} PageFate;

/* Is this relation needed to let a connection in? */
static bool
is_shared_catalog(RelFileNode node)
{
	return node.spcNode == GLOBALTABLESPACE_OID;
}

/*
 * Forks and relations of which every written page stays in the overlay, and of which the rest is
 * as it was when the compute started.
 *
 * Visibility map: bits are cleared before the WAL record that says so is written, and without an LSN on
 * the page, so there is no LSN at which it could safely be read back. Free space map: not in the WAL at all.
 * Shared catalogs: the walproposer's own connection reads them; were that read to wait for WAL
 * that only the walproposer can deliver, nothing would ever move again.
 */
static bool
stays_local_once_written(RelFileNode node, ForkNumber fork)
{
	return fork == FSM_FORKNUM || fork == VISIBILITYMAP_FORKNUM || is_shared_catalog(node);
}

/* Has a map page no bit or value set? */
static bool
is_blank(char *page)
{
	char	   *content = PageGetContents((Page) page);
	Size		length = BLCKSZ - (content - page);

	return content[0] == 0 && memcmp(content, content + 1, length - 1) == 0;
}

static bool
is_sequence_page(char *page)
{
	return PageGetSpecialSize((Page) page) == MAXALIGN(sizeof(uint32)) &&
		*(uint32 *) PageGetSpecialPointer((Page) page) == SEQUENCE_MAGIC;
}

/*
 * WAL must not be written from the shutdown checkpoint on, which would end in a PANIC. The
 * checkpointer is the only process left by then.
 */
static bool
may_write_wal(void)
{
	return IsUnderPostmaster && XLogInsertAllowed() &&
		!(MyAuxProcType == CheckpointerProcess && ShutdownRequestPending);
}

static PageFate
page_fate(RelFileNode node, ForkNumber fork, char *page)
{
	XLogRecPtr	created_lsn;

	if (PageIsNew((Page) page))
		return FATE_ZERO;
	/* No free space is what an absent page says too, so that need not outlive the compute. */
	if (fork == FSM_FORKNUM && !is_blank(page) && may_write_wal())
		return FATE_OVERLAY_AND_WAL;
	if (stays_local_once_written(node, fork))
		return FATE_OVERLAY;

	/*
	 * A page position in the WAL is newer than the relation, and never in the first segment. Smaller
	 * values are not WAL positions: index builds use 0 and 1, unlogged GiST indexes a counter.
	 */
	created_lsn = relsize_get(node, fork).created_lsn;
	if (PageGetLSN((Page) page) < Max(created_lsn, (XLogRecPtr) wal_segment_size))
		return FATE_OVERLAY;
	if (is_sequence_page(page))
		return FATE_SEQUENCE;
	return fork == MAIN_FORKNUM && page_needs_command_ids((Page) page) ? FATE_OVERLAY : FATE_IN_WAL;
}

/* Disposes of a page that leaves shared buffers. */
static void
save_page(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page)
{
	RelFileNode node = reln->smgr_rnode.node;
	PageFate	fate = page_fate(node, fork, page);
	XLogRecPtr	lsn = PageGetLSN((Page) page);
	BufferTag	tag;

	/*
	 * A zero page may replace a block that was truncated away, and PD_ALL_VISIBLE is set by a record that does not
	 * advance the page's LSN. All that matters of both is in the WAL up to here.
	 */
	if (fate == FATE_ZERO || (fork == MAIN_FORKNUM && PageIsAllVisible((Page) page)))
		lsn = current_insert_lsn();

	if (fate == FATE_OVERLAY_AND_WAL)
	{
		PGAlignedBlock copy;

		/* log_newpage() sets the page's LSN, and we may hold no more than a share lock on the buffer. */
		memcpy(copy.data, page, BLCKSZ);
		lsn = log_newpage(&node, fork, blkno, copy.data, false);
	}

	INIT_BUFFERTAG(tag, node, fork, blkno);
	/* First, so that who misses the page in all caches does not ask for an older version. */
	last_written_lsn_note(&tag, lsn);
	if (fate == FATE_IN_WAL)
	{
		file_cache_store(&tag, page);
		overlay_forget(reln, fork, blkno);
	}
	else if (fate == FATE_ZERO)
	{
		/* As a rule a new block, which is filled before it is read. */
		file_cache_forget(&tag);
		overlay_forget(reln, fork, blkno);
	}
	else
	{
		overlay_store(reln, fork, blkno, page);
		file_cache_forget(&tag);
	}
	if (fate == FATE_SEQUENCE)
		relsize_note_sequence(node, fork);
}

/*
 * Asks for a version from `lsn` on. On a primary that is the newest, and `lsn` tells for how long it has been;
 * on a replica it is the one that has been replayed. What was evicted while the record that changed it is
 * still being replayed is wanted as of the end of that record.
 */
static void
set_version(PageRequest *request, XLogRecPtr lsn)
{
	request->latest = !cluster_state.is_replica || !RecoveryInProgress();
	request->lsn = request->latest ? lsn : Max(lsn, standby_replayed_lsn());
	request->not_before = lsn;
}

/* The page server gets only what a quorum has, and the quorum only what has been flushed. */
static void
flush_what_is_asked_for(const PageRequest *request)
{
	if (request->latest && XLogNeedsFlush(request->not_before))
		XLogFlush(request->not_before);
}

void
pagestore_set_newest_lsn(PageRequest *request)
{
	set_version(request, RecoveryInProgress() ? standby_replayed_lsn() : current_insert_lsn());
	flush_what_is_asked_for(request);
}

static void
set_page_version(PageRequest *request)
{
	BufferTag	tag;

	INIT_BUFFERTAG(tag, request->node, request->fork, request->blkno);
	if (RecoveryInProgress())
		set_version(request, last_written_lsn_get(&tag));
	else if (is_shared_catalog(request->node))
		set_version(request, cluster_state.base_lsn);
	else if (stays_local_once_written(request->node, request->fork))
		set_version(request, last_written_lsn_floor());
	else
		set_version(request, last_written_lsn_get(&tag));
}

static PageRequest
fork_request(RequestKind kind, RelFileNode node, ForkNumber fork)
{
	PageRequest request = {.kind = kind, .node = node, .fork = fork};

	if (RecoveryInProgress())
		set_version(&request, last_written_lsn_floor());
	else if (is_shared_catalog(node))
		set_version(&request, cluster_state.base_lsn);
	else if (kind == REQUEST_EXISTS && fork == MAIN_FORKNUM)
		/* Once per relation made. Its record is written at once, so what was forgotten was in the WAL by then. */
		set_version(&request, Max(last_written_lsn_floor(),
								  Max(relsize_lost_drops_lsn(), relsize_lost_changes_lsn())));
	else if (relsize_lost_changes())
		pagestore_set_newest_lsn(&request);
	else
		set_version(&request, Max(last_written_lsn_floor(), relsize_lost_drops_lsn()));
	flush_what_is_asked_for(&request);
	return request;
}

static bool
pagestore_exists(SMgrRelation reln, ForkNumber fork)
{
	RelFileNode node = reln->smgr_rnode.node;
	ForkState	state;
	PageRequest request;
	bool		exists;

	/* ANALYZE of a foreign table asks for the visibility map of a relation that has no storage. */
	if (!OidIsValid(node.relNode))
		return false;
	if (is_local_fork(reln->smgr_rnode, fork))
		return mdexists(reln, fork);
	state = relsize_get(node, fork);
	if (state.existence != NOT_KNOWN)
		return state.existence == KNOWN_PRESENT;

	request = fork_request(REQUEST_EXISTS, node, fork);
	exists = pagestream_exists(&request) || overlay_exists(node, fork);
	relsize_learn_existence(node, fork, exists);
	return exists;
}

bool
pagestore_relation_exists(RelFileNode node)
{
	return pagestore_exists(smgropen(node, InvalidBackendId), MAIN_FORKNUM);
}

static void
pagestore_create(SMgrRelation reln, ForkNumber fork, bool isRedo)
{
	RelFileNode node = reln->smgr_rnode.node;

	if (fork == INIT_FORKNUM && !SmgrIsTemp(reln))
		make_relation_local(reln);
	if (is_local_fork(reln->smgr_rnode, fork))
	{
		mdcreate(reln, fork, isRedo);
		if (!SmgrIsTemp(reln))
			relsize_created(node, fork, GetXLogInsertRecPtr());
		return;
	}
	/* Replay creates a fork before each change of it. */
	if (isRedo && pagestore_exists(reln, fork))
		return;
	/* See relation_numbers.c, which keeps it from coming to this. */
	if (fork == MAIN_FORKNUM && !isRedo && pagestore_exists(reln, fork))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_FILE),
				 errmsg("could not create relation %s: it exists", relpath(reln->smgr_rnode, fork)),
				 errhint("Try again: another relation number will be chosen.")));
	/*
	 * Outside its database's tablespace an empty file stands for the relation: DROP TABLESPACE, and what copies
	 * databases, look whether there is one. Those of older relations are in the base backup.
	 */
	if (!is_shared_catalog(node) &&
		node.spcNode != (OidIsValid(MyDatabaseTableSpace) ? MyDatabaseTableSpace : DEFAULTTABLESPACE_OID))
		mdcreate(reln, fork, true);
	relsize_created(node, fork, isRedo ? InvalidXLogRecPtr : GetXLogInsertRecPtr());
}

static void
unlink_fork(RelFileNodeBackend rnode, ForkNumber fork, bool isRedo)
{
	if (RelFileNodeBackendIsTemp(rnode))
	{
		mdunlink(rnode, fork, isRedo);
		return;
	}
	/* The init fork, which marks the relation as local, is the last to go. */
	if (is_local_fork(rnode, fork))
	{
		mdunlink(rnode, fork, isRedo);
		/* From the time before it was known to be local; how large it was then is not. */
		file_cache_forget_blocks(rnode.node, fork, 0, InvalidBlockNumber);
	}
	else
	{
		overlay_drop(rnode, fork);
		file_cache_forget_blocks(rnode.node, fork, 0, relsize_get(rnode.node, fork).nblocks);
	}
	relsize_dropped(rnode.node, fork);
}

static void
pagestore_unlink(RelFileNodeBackend rnode, ForkNumber fork, bool isRedo)
{
	if (fork != InvalidForkNumber)
	{
		unlink_fork(rnode, fork, isRedo);
		return;
	}
	for (fork = MAIN_FORKNUM; fork <= MAX_FORKNUM; fork++)
		unlink_fork(rnode, fork, isRedo);
}

static void
pagestore_extend(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page, bool skipFsync)
{
	if (is_local_fork(reln->smgr_rnode, fork))
	{
		mdextend(reln, fork, blkno, page, skipFsync);
		return;
	}
	if (blkno == InvalidBlockNumber)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("cannot extend relation %s beyond %u blocks",
						relpath(reln->smgr_rnode, fork), InvalidBlockNumber)));
	if (!RecoveryInProgress())
	{
		check_cluster_size();
		throttle_briefly();
		save_page(reln, fork, blkno, page);
	}
	relsize_extended(reln->smgr_rnode.node, fork, blkno + 1);
}

/*
 * Disposes of a replica's page. What is in it is in the WAL up to what has been replayed; if the record that is
 * being replayed has changed it already, its LSN is that record's end. It must not be read back as of that end
 * otherwise: replay may be waiting there for queries that still need what the record removes. A page of the
 * visibility map does not tell whether the record has changed it, so it is kept.
 */
static void
save_replayed_page(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page)
{
	BufferTag	tag;

	INIT_BUFFERTAG(tag, reln->smgr_rnode.node, fork, blkno);
	last_written_lsn_note(&tag, Max(PageGetLSN((Page) page), standby_replayed_lsn()));
	if (fork == VISIBILITYMAP_FORKNUM && !PageIsNew((Page) page))
	{
		overlay_store(reln, fork, blkno, page);
		file_cache_forget(&tag);
	}
	else
		file_cache_store(&tag, page);
}

static void
pagestore_write(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page, bool skipFsync)
{
	RelFileNode node = reln->smgr_rnode.node;
	BlockNumber nblocks;

	if (is_local_fork(reln->smgr_rnode, fork))
	{
		mdwrite(reln, fork, blkno, page, skipFsync);
		return;
	}
	if (RecoveryInProgress())
	{
		save_replayed_page(reln, fork, blkno, page);
		return;
	}
	save_page(reln, fork, blkno, page);
	/* A size that was forgotten and asked for again may not cover a page that was in a buffer all the time. */
	nblocks = relsize_get(node, fork).nblocks;
	if (nblocks != InvalidBlockNumber && nblocks <= blkno)
		relsize_extended(node, fork, blkno + 1);
}

static bool
pagestore_prefetch(SMgrRelation reln, ForkNumber fork, BlockNumber blkno)
{
	RelFileNode node = reln->smgr_rnode.node;
	PageRequest request = {.kind = REQUEST_GETPAGE, .node = node, .fork = fork, .blkno = blkno};
	BufferTag	tag;

	if (is_local_fork(reln->smgr_rnode, fork))
		return mdprefetch(reln, fork, blkno);
	INIT_BUFFERTAG(tag, node, fork, blkno);
	if (!overlay_exists(node, fork) && !file_cache_contains(&tag, &request.cache_changes))
	{
		set_page_version(&request);
		flush_what_is_asked_for(&request);
		pagestream_prefetch(&request);
	}
	return true;
}

/*
 * Was the page asked for ahead? If so it is as new as what the file cache may have got since, if not newer, and needs
 * no search there.
 */
static bool
was_asked_for(PageRequest *request)
{
	if (!pagestream_expects_block(request->blkno))
		return false;
	set_page_version(request);
	return pagestream_expects(request);
}

/*
 * Reads a page from wherever its newest version is. Whether it came from the page server. The overlay is what was
 * known of the fork's after the page's buffer had been claimed: from then on nobody can store the page there.
 */
static bool
read_page(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, Knowledge overlay, char *page)
{
	RelFileNode node = reln->smgr_rnode.node;
	PageRequest request = {.kind = REQUEST_GETPAGE, .node = node, .fork = fork, .blkno = blkno};
	BufferTag	tag;
	FileCacheRun received;

	INIT_BUFFERTAG(tag, node, fork, blkno);
	if (overlay != KNOWN_ABSENT && overlay_read(reln, fork, blkno, page))
		return false;
	if (was_asked_for(&request))
		file_cache_count_miss();
	else if (file_cache_read(&tag, page, &request.cache_changes))
		return false;
	else
	{
		/* After the file cache was looked at: what leaves it now is noted with a later LSN. */
		set_page_version(&request);
		flush_what_is_asked_for(&request);
	}
	pagestream_get_page_to_store(&request, page, &received);
	file_cache_store_read(&tag, &received);
	return true;
}

static void
pagestore_read(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, char *page)
{
	ForkState	state;
	BlockNumber nblocks;

	if (is_local_fork(reln->smgr_rnode, fork))
	{
		mdread(reln, fork, blkno, page);
		return;
	}
	state = relsize_get(reln->smgr_rnode.node, fork);
	nblocks = state.nblocks;
	if (nblocks != InvalidBlockNumber && nblocks <= blkno)
	{
		if (!zero_damaged_pages && !InRecovery)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("could not read block %u of relation %s: it has only %u blocks",
							blkno, relpath(reln->smgr_rnode, fork), nblocks)));
		MemSet(page, 0, BLCKSZ);
		return;
	}
	if (!RecoveryInProgress())
		throttle_briefly();
	if (read_page(reln, fork, blkno, state.overlay, page))
		readahead_note(reln, fork, blkno, nblocks);
	else
		readahead_skip(reln, fork, blkno);
}

static void
pagestore_writeback(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, BlockNumber nblocks)
{
	if (is_local_fork(reln->smgr_rnode, fork))
		mdwriteback(reln, fork, blkno, nblocks);
}

/*
 * The size of a fork as the page server knows it. The creation of a map fork is in no WAL record: the
 * page server may not know one that this compute has made, until a page of it is logged.
 */
static BlockNumber
remote_nblocks(RelFileNode node, ForkNumber fork)
{
	PageRequest request = fork_request(REQUEST_EXISTS, node, fork);

	if (fork != MAIN_FORKNUM && !pagestream_exists(&request))
		return 0;
	request.kind = REQUEST_NBLOCKS;
	/* While replay extends the fork, others may ask for its size: the new one is no lie. */
	if (RecoveryInProgress() && !AmStartupProcess())
		request.lsn = Max(request.lsn, standby_replaying_lsn());
	return pagestream_nblocks(&request);
}

static BlockNumber
pagestore_nblocks(SMgrRelation reln, ForkNumber fork)
{
	RelFileNode node = reln->smgr_rnode.node;
	BlockNumber nblocks;

	if (is_local_fork(reln->smgr_rnode, fork))
		return mdnblocks(reln, fork);
	nblocks = relsize_get(node, fork).nblocks;
	if (nblocks != InvalidBlockNumber)
		return nblocks;

	nblocks = Max(remote_nblocks(node, fork), overlay_nblocks(reln, fork));
	/* A hot standby's relations grow by replay too, which keeps the cache up to date. */
	relsize_learn_nblocks(node, fork, nblocks);
	return nblocks;
}

static void
pagestore_truncate(SMgrRelation reln, ForkNumber fork, BlockNumber old_blocks, BlockNumber nblocks)
{
	if (is_local_fork(reln->smgr_rnode, fork))
	{
		mdtruncate(reln, fork, old_blocks, nblocks);
		return;
	}
	if (nblocks > old_blocks)
		return;
	overlay_truncate(reln, fork, nblocks);
	/* Blocks that come to be there again without being written must not be read as they were. */
	if (RecoveryInProgress())
		last_written_lsn_raise_floor(standby_replaying_lsn());
	file_cache_forget_blocks(reln->smgr_rnode.node, fork, nblocks, old_blocks);
	relsize_truncated(reln->smgr_rnode.node, fork, nblocks);
}

static void
pagestore_immedsync(SMgrRelation reln, ForkNumber fork)
{
	/* Nothing local has to survive a crash of the machine. */
}

const SmgrCallbacks pagestore_callbacks = {
	.init = mdinit,
	.shutdown = NULL,
	/* md.c's state of an SMgrRelation is used for local files. */
	.open = mdopen,
	.close = mdclose,
	.create = pagestore_create,
	.exists = pagestore_exists,
	.unlink = pagestore_unlink,
	.extend = pagestore_extend,
	.prefetch = pagestore_prefetch,
	.read = pagestore_read,
	.write = pagestore_write,
	.writeback = pagestore_writeback,
	.nblocks = pagestore_nblocks,
	.truncate = pagestore_truncate,
	.immedsync = pagestore_immedsync,
};
