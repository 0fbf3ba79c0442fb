/*
 * neon.h
 *	  What every file of the extension shares: settings and the start state of this compute.
 *
 * The extension replaces the storage manager of a stock server: pages of permanent relations come
 * from a page server, and what makes them durable is the WAL alone. See docs/compute.md.
 */
#ifndef NEON_H
#define NEON_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "storage/relfilenode.h"

/* Settings; units in the names where the unit is not obvious. Defined in neon.c. */
extern char *neon_pageserver_connstring;
extern char *neon_tenant_id;
extern char *neon_timeline_id;
extern char *neon_safekeepers;
extern char *neon_walproposer_path;
extern char *neon_superuser_name;
extern int	neon_max_cluster_size_mb;
extern int	neon_flush_output_after;
extern int	neon_readahead_buffer_size;
extern int	neon_relsize_hash_size;
extern int	neon_pageserver_timeout_s;
extern char *neon_file_cache_path;
extern int	neon_max_file_cache_size_mb;
extern int	neon_file_cache_size_limit_mb;
extern int	neon_max_replication_write_lag_mb;
extern int	neon_max_replication_flush_lag_mb;
extern int	neon_max_replication_apply_lag_mb;

/* Does this compute write, with safekeepers behind it? */
#define neon_has_safekeepers() (neon_safekeepers != NULL && neon_safekeepers[0] != '\0')

#endif							/* NEON_H */
