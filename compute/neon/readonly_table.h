/*
 * readonly_table.h
 *	  Changing constant tables and code of the running server.
 */
#ifndef NEON_READONLY_TABLE_H
#define NEON_READONLY_TABLE_H

/* Overwrites `length` bytes at `target`, which may be write-protected. FATAL if that is refused. */
extern void overwrite_protected(void *target, const void *bytes, size_t length);

/*
 * Finds the only place in the main program's initialized data where the `count` pointers `pattern` stand in a
 * row. NULL if there is none, or more than one.
 */
extern void *find_pointer_table(void *const *pattern, int count);

#endif							/* NEON_READONLY_TABLE_H */
