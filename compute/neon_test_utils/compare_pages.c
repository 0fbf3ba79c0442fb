/*
 * compare_pages.c
 *	  The pages of a relation as this server's buffers have them, beside those that the page server
 *	  makes from WAL.
 *
 * Both are masked as PostgreSQL's own wal_consistency_checking does it: hint bits and the like are in no
 * WAL record and may differ. A page of the visibility map may lack bits in the page server, but never have
 * more: where CREATE DATABASE logs a copy of one, the image leaves out all between pd_lower and pd_upper,
 * which is the whole map.
 *
 * Left out are forks and relations whose buffers are rightly ahead of WAL: the free space map, and
 * sequences. The caller sees to it that nobody changes the relation meanwhile.
 */
#include "postgres.h"

#include "access/brin_xlog.h"
#include "access/bufmask.h"
#include "access/generic_xlog.h"
#include "access/ginxlog.h"
#include "access/gistxlog.h"
#include "access/hash_xlog.h"
#include "access/heapam_xlog.h"
#include "access/nbtxlog.h"
#include "access/relation.h"
#include "access/spgist_private.h"
#include "access/spgxlog.h"
#include "access/xlog.h"
#include "catalog/pg_am.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"

#include "cluster_state.h"
#include "pagestream.h"

PG_FUNCTION_INFO_V1(compare_pages);

typedef void (*PageMask) (char *page, BlockNumber blkno);

/* The meta page has a cache of pages with room, which is written without WAL. */
static void
spgist_mask(char *page, BlockNumber blkno)
{
	spg_mask(page, blkno);
	if (blkno == SPGIST_METAPAGE_BLKNO)
	{
		SpGistMetaPageData *meta = SpGistPageGetMeta(page);

		memset(&meta->lastUsedPages, 0, sizeof(meta->lastUsedPages));
	}
}

static PageMask
mask_of(Relation rel)
{
	switch (rel->rd_rel->relkind == RELKIND_INDEX ? rel->rd_rel->relam : HEAP_TABLE_AM_OID)
	{
		case HEAP_TABLE_AM_OID:
			return heap_mask;
		case BTREE_AM_OID:
			return btree_mask;
		case HASH_AM_OID:
			return hash_mask;
		case GIST_AM_OID:
			return gist_mask;
		case GIN_AM_OID:
			return gin_mask;
		case SPGIST_AM_OID:
			return spgist_mask;
		case BRIN_AM_OID:
			return brin_mask;
		default:
			return generic_mask;
	}
}

static void
read_from_buffer(Relation rel, ForkNumber fork, BlockNumber blkno, char *page)
{
	Buffer		buffer = ReadBufferExtended(rel, fork, blkno, RBM_NORMAL, NULL);

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	memcpy(page, BufferGetPage(buffer), BLCKSZ);
	UnlockReleaseBuffer(buffer);
}

static void
read_from_pageserver(Relation rel, ForkNumber fork, BlockNumber blkno, char *page)
{
	PageRequest request = {.kind = REQUEST_GETPAGE, .node = rel->rd_node, .fork = fork,
	.blkno = blkno, .latest = true, .lsn = current_insert_lsn()};

	request.not_before = request.lsn;
	XLogFlush(request.lsn);
	pagestream_get_page(&request, page);
}

/* The first byte with a bit that only `theirs`, a page of a visibility map, has; or -1. */
static int
first_extra_bit(const char *ours, const char *theirs)
{
	for (int byte = SizeOfPageHeaderData; byte < BLCKSZ; byte++)
	{
		if (theirs[byte] & ~ours[byte])
			return byte;
	}
	return -1;
}

/* The first byte at which two pages differ, or -1. The pages are masked in place. */
static int
first_difference(char *ours, char *theirs, PageMask mask, BlockNumber blkno)
{
	/* Pages added in bulk are initialized without WAL. */
	if (PageIsNew(theirs) && (PageIsNew(ours) || PageIsEmpty(ours)))
		return -1;
	if (PageIsNew(ours) || PageIsNew(theirs))
		return PageIsNew(ours) && PageIsNew(theirs) ? -1 : 0;
	mask(ours, blkno);
	mask(theirs, blkno);
	for (int byte = 0; byte < BLCKSZ; byte++)
	{
		if (ours[byte] != theirs[byte])
			return byte;
	}
	return -1;
}

static void
compare_fork(Relation rel, ForkNumber fork, PageMask mask, ReturnSetInfo *result)
{
	PGAlignedBlock ours,
				theirs;
	BlockNumber blocks = RelationGetNumberOfBlocksInFork(rel, fork);

	for (BlockNumber blkno = 0; blkno < blocks; blkno++)
	{
		int			byte;

		CHECK_FOR_INTERRUPTS();
		read_from_buffer(rel, fork, blkno, ours.data);
		read_from_pageserver(rel, fork, blkno, theirs.data);
		byte = fork == VISIBILITYMAP_FORKNUM ? first_extra_bit(ours.data, theirs.data) :
			first_difference(ours.data, theirs.data, mask, blkno);
		if (byte >= 0)
		{
			Datum		values[3] = {CStringGetTextDatum(forkNames[fork]), Int64GetDatum(blkno), Int32GetDatum(byte)};
			bool		nulls[3] = {false, false, false};

			tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		}
	}
}

/* Fork, block number and first differing byte of each page that the page server has otherwise. */
Datum
compare_pages(PG_FUNCTION_ARGS)
{
	Relation	rel;

	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to use neon_test_utils")));
	InitMaterializedSRF(fcinfo, 0);
	rel = relation_open(PG_GETARG_OID(0), AccessShareLock);
	if (!RELKIND_HAS_STORAGE(rel->rd_rel->relkind) || rel->rd_rel->relkind == RELKIND_SEQUENCE ||
		rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is no permanent table or index", RelationGetRelationName(rel))));
	compare_fork(rel, MAIN_FORKNUM, mask_of(rel), (ReturnSetInfo *) fcinfo->resultinfo);
	if (smgrexists(RelationGetSmgr(rel), VISIBILITYMAP_FORKNUM))
		compare_fork(rel, VISIBILITYMAP_FORKNUM, mask_of(rel), (ReturnSetInfo *) fcinfo->resultinfo);
	relation_close(rel, AccessShareLock);
	return (Datum) 0;
}
