/*
 * size_functions.h
 *	  pg_relation_size and its family.
 */
#ifndef NEON_SIZE_FUNCTIONS_H
#define NEON_SIZE_FUNCTIONS_H

/* Replaces the built-in functions. For the postmaster, before it has children. */
extern void size_functions_init(void);

#endif							/* NEON_SIZE_FUNCTIONS_H */
