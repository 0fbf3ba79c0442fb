/*
 * backpressure.h
 *	  Feedback of the page server: size of the timeline, and how far it has come with the WAL.
 */
#ifndef NEON_BACKPRESSURE_H
#define NEON_BACKPRESSURE_H

#include "access/xlogdefs.h"

/* What a safekeeper last reported of the page server. */
typedef struct PageserverFeedback
{
	uint64		timeline_size_bytes;
	XLogRecPtr	received_lsn;	/* neon.max_replication_write_lag counts from here */
	XLogRecPtr	disk_consistent_lsn;	/* ..._flush_lag */
	XLogRecPtr	remote_consistent_lsn;	/* ..._apply_lag; 0 without remote storage */
} PageserverFeedback;

extern Size backpressure_shmem_size(void);
extern void backpressure_shmem_init(void);

/* Chains into the server's hooks: transactions that wrote wait before they commit. */
extern void backpressure_init(void);

extern void backpressure_set_feedback(const PageserverFeedback *feedback);
extern PageserverFeedback backpressure_get_feedback(void);

/* Slows a writer that may hold locks: a short sleep if the page server is too far behind. */
extern void throttle_briefly(void);

/* ERROR if the cluster has reached neon.max_cluster_size. */
extern void check_cluster_size(void);

#endif							/* NEON_BACKPRESSURE_H */
