/*
 * cluster_state.h
 *	  Where this compute started: facts read once, before any child process exists.
 */
#ifndef NEON_CLUSTER_STATE_H
#define NEON_CLUSTER_STATE_H

#include "access/xlogdefs.h"

/* Set by cluster_state_init() in the postmaster and inherited by every child. */
typedef struct ClusterState
{
	uint64		system_id;

	/* Start of the shutdown checkpoint record the server starts from. New WAL begins with it. */
	XLogRecPtr	start_lsn;

	/* End of the WAL before that record: the LSN of the base backup, which the page server has. */
	XLogRecPtr	base_lsn;

	/* End of that record: a replica that has replayed nothing more is still at base_lsn. */
	XLogRecPtr	start_record_end_lsn;

	/* A read-only compute: started with standby.signal or recovery.signal. */
	bool		is_replica;
} ClusterState;

extern ClusterState cluster_state;

/* Reads pg_control; FATAL if the server would need crash recovery. */
extern void cluster_state_init(void);

/* An LSN just behind the header of a WAL page names the same place as the start of that page. */
extern XLogRecPtr lsn_skip_back_page_header(XLogRecPtr lsn);

/* End of the last WAL record inserted so far, in the form the page server uses. */
extern XLogRecPtr current_insert_lsn(void);

#endif							/* NEON_CLUSTER_STATE_H */
