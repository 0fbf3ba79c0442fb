/*
 * command_ids.c
 *	  What a heap page knows of its rows that is not in the WAL, and still matters.
 *
 * A row carries the numbers of the commands that made and deleted it. Its own transaction goes by them: a command must
 * not see what itself or a later one has done, or an UPDATE would meet its own new rows, and a cursor those of after
 * its DECLARE. The WAL does not have them, because after a crash nobody is left who asks; redo writes the first command's number.
 * The same goes for the token of a speculative insertion (INSERT ... ON CONFLICT). A page with such rows cannot
 * be made from the WAL until the transaction has ended.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/transam.h"
#include "storage/procarray.h"

#include "command_ids.h"

/* Would redo make something else of the row's header? Cheap, and true of few rows. */
static bool
redo_differs(HeapTupleHeader tuple)
{
	if (HeapTupleHeaderIsSpeculative(tuple))
		return true;
	if (tuple->t_infomask & HEAP_MOVED)
		return false;
	return HeapTupleHeaderGetRawCommandId(tuple) != FirstCommandId || (tuple->t_infomask & HEAP_COMBOCID) != 0;
}

static bool
maker_is_running(HeapTupleHeader tuple)
{
	return !HeapTupleHeaderXminCommitted(tuple) && !HeapTupleHeaderXminInvalid(tuple) &&
		TransactionIdIsInProgress(HeapTupleHeaderGetRawXmin(tuple));
}

static bool
deleter_is_running(HeapTupleHeader tuple)
{
	TransactionId xmax = HeapTupleHeaderGetRawXmax(tuple);

	if (tuple->t_infomask & (HEAP_XMAX_INVALID | HEAP_XMAX_COMMITTED))
		return false;
	if (tuple->t_infomask & HEAP_XMAX_IS_MULTI)
		return MultiXactIdIsRunning(xmax, HEAP_XMAX_IS_LOCKED_ONLY(tuple->t_infomask));
	return TransactionIdIsNormal(xmax) && TransactionIdIsInProgress(xmax);
}

bool
page_needs_command_ids(Page page)
{
	OffsetNumber last = PageGetMaxOffsetNumber(page);

	/* Pages of the heap have no special space; those of all indexes and of sequences do. */
	if (PageGetSpecialSize(page) != 0)
		return false;
	for (OffsetNumber number = FirstOffsetNumber; number <= last; number++)
	{
		ItemId		item = PageGetItemId(page, number);
		HeapTupleHeader tuple;

		if (!ItemIdIsNormal(item) || ItemIdGetLength(item) < SizeofHeapTupleHeader)
			continue;
		tuple = (HeapTupleHeader) PageGetItem(page, item);
		if (redo_differs(tuple) && (maker_is_running(tuple) || deleter_is_running(tuple)))
			return true;
	}
	return false;
}
