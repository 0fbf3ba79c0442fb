/*
 * imports.h
 *	  Binding what the server imports from shared libraries to functions of ours.
 */
#ifndef NEON_IMPORTS_H
#define NEON_IMPORTS_H

/* From now on the main program's calls of `symbol` arrive at `function`. FATAL if it imports no such symbol. */
extern void bind_import(const char *symbol, void *function);

#endif							/* NEON_IMPORTS_H */
