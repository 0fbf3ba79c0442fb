/*
 * pagestore_smgr.h
 *	  The storage manager: what the server calls instead of md.c.
 */
#ifndef NEON_PAGESTORE_SMGR_H
#define NEON_PAGESTORE_SMGR_H

#include "pagestream.h"
#include "smgr_hook.h"

extern const SmgrCallbacks pagestore_callbacks;

/* Fills in which version of the relation data a request wants, for things other than pages. */
extern void pagestore_set_request_lsn(PageRequest *request);

#endif							/* NEON_PAGESTORE_SMGR_H */
