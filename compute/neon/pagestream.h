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

	/* DBSIZE uses only node.dbNode, DBSIZE_IN also node.spcNode; only GETPAGE uses blkno. */
	RelFileNode node;
	ForkNumber	fork;
	BlockNumber blkno;
} PageRequest;

/* Asks ahead for a page that will be read soon. May do nothing. Never waits. */
extern void pagestream_prefetch(const PageRequest *request);

/* Each waits for its answer; ERROR if the page server refuses or is away for too long. */
extern void pagestream_get_page(const PageRequest *request, char *page);
extern bool pagestream_exists(const PageRequest *request);
extern BlockNumber pagestream_nblocks(const PageRequest *request);

/* Bytes in the default tablespace (DBSIZE), or in a given one (DBSIZE_IN). */
extern int64 pagestream_database_size(const PageRequest *request);

#endif							/* NEON_PAGESTREAM_H */
