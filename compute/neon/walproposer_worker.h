/*
 * walproposer_worker.h
 *	  The background worker that runs the walproposer.
 */
#ifndef NEON_WALPROPOSER_WORKER_H
#define NEON_WALPROPOSER_WORKER_H

extern Size walproposer_worker_shmem_size(void);
extern void walproposer_worker_shmem_init(void);

/* Registers the worker, if there are safekeepers. */
extern void walproposer_worker_init(void);

extern PGDLLEXPORT void walproposer_worker_main(Datum argument);

#endif							/* NEON_WALPROPOSER_WORKER_H */
