/*
 * local_rels.h
 *	  Relations that live in local files: temporary and unlogged ones.
 */
#ifndef NEON_LOCAL_RELS_H
#define NEON_LOCAL_RELS_H

#include "storage/smgr.h"

/* Is every fork of this relation in local files? */
extern bool is_local_relation(RelFileNodeBackend rnode);

/* Is this fork in a local file? Init forks always are. */
extern bool is_local_fork(RelFileNodeBackend rnode, ForkNumber fork);

/* The init fork is being created: what has been written of the other forks becomes local. */
extern void make_relation_local(SMgrRelation reln);

/* Does the fork's first file exist? */
extern bool local_file_exists(RelFileNode node, ForkNumber fork);

/*
 * Bytes of the files in a database's directory that are not overlays: local relations but for
 * their forks `skipped`, and what belongs to no relation. 0 if there is no such directory.
 */
extern int64 local_files_size(const char *directory, ForkNumber skipped);

/* Removes what an earlier run left of overlay files. For the postmaster, at start and at exit. */
extern void remove_overlay_files(void);

#endif							/* NEON_LOCAL_RELS_H */
