/*
 * standby.h
 *	  A hot standby: a replica that follows the primary by streaming WAL from the safekeepers.
 */
#ifndef NEON_STANDBY_H
#define NEON_STANDBY_H

#include "access/xlogdefs.h"

/* Is this replica to follow the primary, and not to stay at one LSN? For the postmaster, once settings are read. */
extern bool standby_follows(void);

/* What replay does that needs more, or less, than on a stock server. */
extern void standby_init(void);

/* Makes recovery begin where the base backup ends. For the postmaster, when shared memory exists. */
extern void standby_prepare_recovery(void);

/* The LSN of what a replica has replayed, and with the record being replayed now; in the page server's form. */
extern XLogRecPtr standby_replayed_lsn(void);
extern XLogRecPtr standby_replaying_lsn(void);

#endif							/* NEON_STANDBY_H */
