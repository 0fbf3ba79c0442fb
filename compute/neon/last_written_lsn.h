/*
 * last_written_lsn.h
 *	  Lower bounds for the LSN at which a page may be read back from the page server.
 */
#ifndef NEON_LAST_WRITTEN_LSN_H
#define NEON_LAST_WRITTEN_LSN_H

#include "storage/buf_internals.h"

extern Size last_written_lsn_shmem_size(void);
extern void last_written_lsn_shmem_init(void);

/* The page left shared buffers; its content is in the WAL up to `lsn`. */
extern void last_written_lsn_note(const BufferTag *tag, XLogRecPtr lsn);

/* A read of the page must see the WAL up to the result. Never below the start of the compute. */
extern XLogRecPtr last_written_lsn_get(const BufferTag *tag);

/* From now on every page and size must be read at `lsn` or later. */
extern void last_written_lsn_raise_floor(XLogRecPtr lsn);

extern XLogRecPtr last_written_lsn_floor(void);

#endif							/* NEON_LAST_WRITTEN_LSN_H */
