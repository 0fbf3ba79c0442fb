/*
 * relation_numbers.h
 *	  A number of a relation that exists is never chosen for a new one.
 */
#ifndef NEON_RELATION_NUMBERS_H
#define NEON_RELATION_NUMBERS_H

/* FATAL if the server's way of looking for existing relations is not the one this knows. */
extern void relation_numbers_init(void);

#endif							/* NEON_RELATION_NUMBERS_H */
