/*
 * auth_guard.h
 *	  Nobody gets in before commits are safe.
 */
#ifndef NEON_AUTH_GUARD_H
#define NEON_AUTH_GUARD_H

/* The application name with which the walproposer connects, which is also its name as a standby. */
#define WALPROPOSER_APPLICATION_NAME "walproposer"

extern Size auth_guard_shmem_size(void);
extern void auth_guard_shmem_init(void);
extern void auth_guard_init(void);

/* The walproposer has won its election and streams. Stays true, even if it loses the connection later. */
extern void auth_guard_open(void);

#endif							/* NEON_AUTH_GUARD_H */
