/*
 * sequences.c
 *	  The true position of sequences, saved at a clean shutdown.
 *
 * nextval() logs a sequence 32 values ahead and then takes those without a record. Between, the
 * true position is only in the page, and so in this compute. Without it the next compute would go on
 * up to 32 values further, as a stock server does after a crash, but not after a clean restart.
 *
 * An image of the page with the true position is safe in the WAL only if nobody takes a value
 * afterwards that counts on the earlier record: after a crash such values would be given twice. So it is written when
 * all sessions have ended. The next compute's first nextval() then finds the page older than its
 * checkpoint, and logs anew.
 */
#include "postgres.h"

#include "access/xloginsert.h"
#include "miscadmin.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/procarray.h"
#include "storage/smgr.h"

#include "local_rels.h"
#include "overlay.h"
#include "relsize_cache.h"
#include "sequences.h"

/* Sessions that do not end within this time are not waited for: perhaps nobody told them to. */
#define SESSIONS_END_MS 5000
#define SESSIONS_CHECK_MS 10

/* Is anybody there but walsenders, which end last of all? This worker has no session itself. */
static bool
any_session(void)
{
	int			walsenders = 0;

	for (int i = 0; i < max_wal_senders; i++)
	{
		if (((volatile WalSndCtlData *) WalSndCtl)->walsnds[i].pid != 0)
			walsenders++;
	}
	return CountDBBackends(InvalidOid) > walsenders;
}

bool
wait_for_sessions_to_end(void)
{
	for (int waited_ms = 0; any_session(); waited_ms += SESSIONS_CHECK_MS)
	{
		if (waited_ms >= SESSIONS_END_MS)
			return false;
		pg_usleep(SESSIONS_CHECK_MS * 1000);
	}
	return true;
}

void
log_sequences_at_shutdown(void)
{
	uint32		position = 0;
	RelFileNode node;
	ForkNumber	fork;

	while (relsize_next_sequence(&position, &node, &fork))
	{
		SMgrRelation reln = smgropen(node, InvalidBackendId);
		PGAlignedBlock page;

		if (!is_local_fork(reln->smgr_rnode, fork) && overlay_read(reln, fork, 0, page.data))
			log_newpage(&node, fork, 0, page.data, true);
		smgrclose(reln);
	}
}
