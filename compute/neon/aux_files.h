/*
 * aux_files.h
 *	  Files of the data directory that the next compute must find again: statistics and replication slots.
 */
#ifndef NEON_AUX_FILES_H
#define NEON_AUX_FILES_H

/* Puts what changed into the WAL. Called often by the walproposer's worker; does nothing most of the time. */
extern void aux_files_keep(void);

/* The same a last time, when all sessions have ended and WAL may still be written. */
extern void aux_files_keep_at_shutdown(void);

#endif							/* NEON_AUX_FILES_H */
