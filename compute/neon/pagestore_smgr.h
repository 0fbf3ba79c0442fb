/*
 * pagestore_smgr.h
 *	  The storage manager: what the server calls instead of md.c.
 */
#ifndef NEON_PAGESTORE_SMGR_H
#define NEON_PAGESTORE_SMGR_H

#include "pagestream.h"
#include "smgr_hook.h"

extern const SmgrCallbacks pagestore_callbacks;

/* Does the relation exist, here or on the page server? */
extern bool pagestore_relation_exists(RelFileNode node);

/* Has a request answered as of now: everything logged so far, or on a replica replayed so far, counts. */
extern void pagestore_set_newest_lsn(PageRequest *request);

#endif							/* NEON_PAGESTORE_SMGR_H */
