/*
 * pagestream.h
 *	  Requests to the page server: pages, relation sizes, database size.
 */
#ifndef NEON_PAGESTREAM_H
#define NEON_PAGESTREAM_H

#include "access/xlogdefs.h"
#include "common/relpath.h"
#include "storage/block.h"
#include "storage/relfilenode.h"

#include "file_cache.h"

/* Tags of requests on the wire. */
typedef enum RequestKind
{
	REQUEST_EXISTS = 0,
	REQUEST_NBLOCKS = 1,
	REQUEST_GETPAGE = 2,
	REQUEST_DBSIZE = 3,
	REQUEST_DBSIZE_IN = 4,
} RequestKind;

typedef struct PageRequest
{
	RequestKind kind;

	/* At which LSN: the newest version (latest) or, on a replica, the version at `lsn`. */
	bool		latest;
	XLogRecPtr	lsn;

	/* An answer to a GETPAGE of an earlier moment will do if its LSN was not before this one. */
	XLogRecPtr	not_before;

	/* GETPAGE: of file_cache_read() or file_cache_contains(), which did not find the page. */
	uint32		cache_changes;

	/* DBSIZE uses only node.dbNode, DBSIZE_IN also node.spcNode; only GETPAGE uses blkno. */
	RelFileNode node;
	ForkNumber	fork;
	BlockNumber blkno;
} PageRequest;

/* Asks ahead for a page that will be read soon. May do nothing. Never waits. */
extern void pagestream_prefetch(const PageRequest *request);

/*
 * What is asked ahead for in between goes out together, however many it is. An error in between does no harm: whoever waits
 * for an answer sends what is queued.
 */
extern void pagestream_begin_batch(void);
extern void pagestream_end_batch(void);

/* May this block have been asked for ahead, in whatever version? */
extern bool pagestream_expects_block(BlockNumber blkno);

/*
 * Has the page been asked for ahead, in a version that will do? Then request->cache_changes becomes what it was when
 * that was done.
 */
extern bool pagestream_expects(PageRequest *request);

/* Each waits for its answer; ERROR if the page server refuses or is away for too long. */
extern void pagestream_get_page(const PageRequest *request, char *page);

/*
 * The same, and what the file cache is to store: this page, and those that follow it and have come already; nothing
 * if it was to store this page before. Valid until the next call of a function here.
 */
extern void pagestream_get_page_to_store(const PageRequest *request, char *page, FileCacheRun *to_store);
extern bool pagestream_exists(const PageRequest *request);
extern BlockNumber pagestream_nblocks(const PageRequest *request);

/* Bytes in the default tablespace (DBSIZE), or in a given one (DBSIZE_IN). */
extern int64 pagestream_database_size(const PageRequest *request);

#endif							/* NEON_PAGESTREAM_H */
