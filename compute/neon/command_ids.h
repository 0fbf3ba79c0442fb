/*
 * command_ids.h
 *	  What a heap page knows of its rows that is not in the WAL, and still matters.
 */
#ifndef NEON_COMMAND_IDS_H
#define NEON_COMMAND_IDS_H

#include "storage/bufpage.h"

/*
 * Has the page rows that a running transaction has made or deleted with another command than its first, or that it may yet
 * take back? The caller holds the page's content lock, and this is no replica.
 */
extern bool page_needs_command_ids(Page page);

#endif							/* NEON_COMMAND_IDS_H */
