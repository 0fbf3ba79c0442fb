/*
 * readahead.h
 *	  Detecting sequential reads, and asking for the pages that come next.
 */
#ifndef NEON_READAHEAD_H
#define NEON_READAHEAD_H

#include "storage/smgr.h"

/* A block has been read; `nblocks` is the size of its fork. May ask for blocks behind it. */
extern void readahead_note(SMgrRelation reln, ForkNumber fork, BlockNumber blkno, BlockNumber nblocks);

/* The block came from somewhere near. The run it may belong to goes on. */
extern void readahead_skip(SMgrRelation reln, ForkNumber fork, BlockNumber blkno);

#endif							/* NEON_READAHEAD_H */
