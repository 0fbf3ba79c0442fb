/*
 * auth_guard.c
 *	  Nobody gets in before commits are safe.
 *
 * Early in start-up PostgreSQL lets commits through without waiting for a synchronous standby,
 * because synchronous_standby_names is put into effect by the checkpointer, some time after the
 * first connection is possible. And before the walproposer has won its election another compute may own the
 * timeline. So connections wait at authentication until both are settled. The walproposer's own
 * replication connection passes.
 */
#include "postgres.h"

/* The Kerberos headers are not needed: libpq-be.h keeps the layout of Port the same without them. */
#undef ENABLE_GSS

#include "libpq/auth.h"
#include "libpq/libpq-be.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "auth_guard.h"
#include "neon.h"

/* A connection waits this long, less than the default authentication_timeout of 60 s. */
#define GUARD_WAIT_MS 30000
#define GUARD_CHECK_MS 20

static pg_atomic_uint32 *streaming;
static ClientAuthentication_hook_type next_hook;

Size
auth_guard_shmem_size(void)
{
	return sizeof(pg_atomic_uint32);
}

void
auth_guard_shmem_init(void)
{
	bool		found;

	streaming = ShmemInitStruct("neon auth guard", sizeof(pg_atomic_uint32), &found);
	if (!found)
		pg_atomic_init_u32(streaming, 0);
}

void
auth_guard_open(void)
{
	pg_atomic_write_u32(streaming, 1);
}

static bool
commits_are_safe(void)
{
	const bits8 settled = SYNC_STANDBY_INIT | SYNC_STANDBY_DEFINED;

	return pg_atomic_read_u32(streaming) != 0 &&
		(((volatile WalSndCtlData *) WalSndCtl)->sync_standbys_status & settled) == settled;
}

static bool
is_walproposer(const Port *port)
{
	return am_walsender && !am_db_walsender && port->application_name != NULL &&
		strcmp(port->application_name, WALPROPOSER_APPLICATION_NAME) == 0;
}

static void
wait_until_commits_are_safe(void)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), GUARD_WAIT_MS);

	while (!commits_are_safe())
	{
		if (GetCurrentTimestamp() >= deadline)
			ereport(FATAL,
					(errcode(ERRCODE_CANNOT_CONNECT_NOW),
					 errmsg("the database system is not accepting connections yet"),
					 errdetail("It has not reached a quorum of its safekeepers.")));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 GUARD_CHECK_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
guard_connection(Port *port, int status)
{
	if (next_hook != NULL)
		next_hook(port, status);
	/* A rejected client is told so at once, and a replica has nothing to commit. */
	if (status == STATUS_OK && !RecoveryInProgress() && !is_walproposer(port))
		wait_until_commits_are_safe();
}

void
auth_guard_init(void)
{
	if (!neon_has_safekeepers())
		return;
	next_hook = ClientAuthentication_hook;
	ClientAuthentication_hook = guard_connection;
}
