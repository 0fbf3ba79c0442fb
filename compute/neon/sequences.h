/*
 * sequences.h
 *	  The true position of sequences, saved at a clean shutdown.
 */
#ifndef NEON_SEQUENCES_H
#define NEON_SEQUENCES_H

/*
 * Writes the positions of all sequences into the WAL, if every session ends soon. For the walproposer's worker, once the
 * server has begun to shut down and a checkpoint has written all pages.
 */
extern void log_sequences_at_shutdown(void);

/* Waits until no process is connected to a database any more; false if that takes too long. */
extern bool wait_for_sessions_to_end(void);

#endif							/* NEON_SEQUENCES_H */
