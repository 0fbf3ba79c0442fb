/*
 * pageserver_conn.c
 *	  This process's connection to the page server.
 *
 * libpq connects, authenticates and starts the pagestream protocol, never blocking. From then on messages pass through
 * copy_stream.c over libpq's socket, which is never encrypted: no page server offers that.
 *
 * Every wait is a WaitEventSet on latch, socket and postmaster death, with CHECK_FOR_INTERRUPTS, so
 * that a query that waits for the page server can be cancelled. An ERROR may leave any function here that waits: the
 * connection is then either usable or has been closed, and no half message is ever on the wire.
 *
 * The connection is made on first use, and never in the postmaster.
 */
#include "postgres.h"

#include "libpq-fe.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/startup.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "neon.h"
#include "pageserver_conn.h"

/* Delays between attempts to connect. */
#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 1000

/* Longest uninterrupted sleep; bounds how late a deadline is noticed. */
#define WAIT_MS 1000

/* Positions in the wait set. */
#define EVENT_SOCKET 0

static PGconn *conn;			/* NULL or in CopyBoth, except inside try_connect */
static WaitEventSet *wait_set;	/* exists while conn does and the socket is known */

/* Connections lost since the last message received: more than one means that retrying needs a pause. */
static int	lost_in_a_row;

static const char *
option_value(const PQconninfoOption *options, const char *keyword)
{
	for (const PQconninfoOption *option = options; option->keyword != NULL; option++)
	{
		if (strcmp(option->keyword, keyword) == 0)
			return option->val;
	}
	return NULL;
}

const char *
pageserver_connstring_problem(const char *connstring)
{
	PQconninfoOption *options;
	const char *password;
	const char *problem = NULL;

	if (connstring[0] == '\0')
		return NULL;
	options = PQconninfoParse(connstring, NULL);
	if (options == NULL)
		return "It is not a valid connection string.";
	password = option_value(options, "password");
	if (password != NULL && password[0] != '\0' && password[0] != '$')
		problem = "The password must be $NAME, the name of an environment variable.";
	PQconninfoFree(options);
	return problem;
}

void
pageserver_disconnect(void)
{
	if (wait_set != NULL)
		FreeWaitEventSet(wait_set);
	wait_set = NULL;
	if (conn != NULL)
		PQfinish(conn);
	conn = NULL;
	copy_stream_close();
}

static void
disconnect_at_exit(int code, Datum arg)
{
	pageserver_disconnect();
}

bool
pageserver_connected(void)
{
	return conn != NULL;
}

/* Connection parameters: of the setting only host, port, user and password count. */
static PGconn *
start_connecting(void)
{
	PQconninfoOption *options = PQconninfoParse(neon_pageserver_connstring, NULL);
	const char *keywords[] = {"host", "port", "user", "password", "application_name", "sslmode", "gssencmode", NULL};
	const char *values[lengthof(keywords)] = {0};
	PGconn	   *started;

	/* The setting was checked at start. */
	if (options == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	for (int i = 0; i < 4; i++)
		values[i] = option_value(options, keywords[i]);
	values[4] = "neon";
	/* The socket is read and written past libpq. */
	values[5] = values[6] = "disable";
	/* A secret is not written into the configuration: the setting names its environment variable. */
	if (values[3] != NULL && values[3][0] == '$')
		values[3] = getenv(values[3] + 1);
	started = PQconnectStartParams(keywords, values, 0);
	PQconninfoFree(options);
	return started;
}

/* The startup process, which replays WAL, is not told to end in the way others are. */
static void
check_interrupts(void)
{
	if (AmStartupProcess())
		HandleStartupProcInterrupts();
	CHECK_FOR_INTERRUPTS();
}

/* Sleeps until the socket is ready for `events`, the latch is set, or some time has passed. */
static void
wait_for_socket(uint32 events, TimestampTz deadline)
{
	WaitEvent	event;
	long		left_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

	if (wait_set == NULL)
	{
		wait_set = CreateWaitEventSet(TopMemoryContext, 3);
		AddWaitEventToSet(wait_set, events, PQsocket(conn), NULL, NULL);
		AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	}
	ModifyWaitEvent(wait_set, EVENT_SOCKET, events, NULL);
	if (WaitEventSetWait(wait_set, Min(left_ms, WAIT_MS), &event, 1, PG_WAIT_EXTENSION) == 1 &&
		(event.events & WL_LATCH_SET))
		ResetLatch(MyLatch);
	check_interrupts();
}

/* Sleeps a while between two attempts to connect. */
static void
wait_before_retry(long delay_ms, TimestampTz deadline)
{
	long		left_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 Min(delay_ms, left_ms), PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	check_interrupts();
}

/* The first half of connecting: up to a session that takes commands. */
static bool
login(TimestampTz deadline)
{
	int			socket_before = PGINVALID_SOCKET;

	for (PostgresPollingStatusType status = PGRES_POLLING_WRITING; status != PGRES_POLLING_OK;)
	{
		if (status == PGRES_POLLING_FAILED || PQstatus(conn) == CONNECTION_BAD ||
			GetCurrentTimestamp() >= deadline)
			return false;
		/* libpq may go on to the host's next address with another socket. */
		if (PQsocket(conn) != socket_before && wait_set != NULL)
		{
			FreeWaitEventSet(wait_set);
			wait_set = NULL;
		}
		socket_before = PQsocket(conn);
		wait_for_socket(status == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_CONNECTED,
						deadline);
		status = PQconnectPoll(conn);
	}
	/* The socket may have changed in the last step; and the connected event differs from writeable. */
	FreeWaitEventSet(wait_set);
	wait_set = NULL;
	return true;
}

/*
 * The page server answers requests, and there were none yet. Of a message that was there all the same libpq
 * would have the beginning, so that what follows could not be told from anything else.
 */
static bool
nothing_came_early(void)
{
	char	   *message;
	int			length = PQgetCopyData(conn, &message, 1);

	if (length > 0)
		PQfreemem(message);
	return length == 0;
}

/* The second half: the command after which pagestream messages flow. */
static bool
start_pagestream(TimestampTz deadline)
{
	char		command[128];
	PGresult   *result;
	bool		started;

	snprintf(command, sizeof(command), "pagestream %s %s", neon_tenant_id, neon_timeline_id);
	if (PQsetnonblocking(conn, 1) != 0 || !PQsendQuery(conn, command))
		return false;
	for (;;)
	{
		int			unsent = PQflush(conn);

		if (unsent < 0 || !PQconsumeInput(conn) || GetCurrentTimestamp() >= deadline)
			return false;
		if (unsent == 0 && !PQisBusy(conn))
			break;
		wait_for_socket(WL_SOCKET_READABLE | (unsent ? WL_SOCKET_WRITEABLE : 0), deadline);
	}
	result = PQgetResult(conn);
	started = PQresultStatus(result) == PGRES_COPY_BOTH;
	PQclear(result);
	return started && nothing_came_early();
}

/* One attempt. On failure the connection object remains, for its error message. */
static bool
try_connect(TimestampTz deadline)
{
	pageserver_disconnect();
	conn = start_connecting();
	if (conn == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	if (PQstatus(conn) == CONNECTION_BAD || !login(deadline) || !start_pagestream(deadline))
		return false;
	Assert(!PQsslInUse(conn) && !PQgssEncInUse(conn));
	copy_stream_open(PQsocket(conn));
	return true;
}

static void
connect_retrying(TimestampTz deadline)
{
	long		delay_ms = BACKOFF_MIN_MS;

	if (lost_in_a_row > 1)
		wait_before_retry(BACKOFF_MAX_MS, deadline);
	while (!try_connect(deadline))
	{
		char	   *reason = pchomp(PQerrorMessage(conn));

		/* Once per outage is enough. */
		if (delay_ms == BACKOFF_MIN_MS)
			ereport(LOG,
					(errmsg("could not connect to the page server, will go on trying: %s", reason)));
		pageserver_disconnect();
		wait_before_retry(delay_ms, deadline);
		if (GetCurrentTimestamp() >= deadline)
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("could not connect to the page server within %d s: %s",
							neon_pageserver_timeout_s, reason)));
		pfree(reason);
		delay_ms = Min(delay_ms * 2, BACKOFF_MAX_MS);
	}
}

void
pageserver_connect(TimestampTz deadline)
{
	static bool exit_callback_registered = false;

	if (conn != NULL)
		return;
	if (!exit_callback_registered)
	{
		on_proc_exit(disconnect_at_exit, 0);
		exit_callback_registered = true;
	}
	PG_TRY();
	{
		connect_retrying(deadline);
	}
	PG_CATCH();
	{
		pageserver_disconnect();
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* Says once why the connection is gone, and closes it. */
static void
connection_lost(void)
{
	ereport(LOG,
			(errmsg("lost the connection to the page server: %s", copy_stream_problem())));
	pageserver_disconnect();
	lost_in_a_row++;
}

void
pageserver_send(const char *message, int length)
{
	copy_stream_put(message, length);
}

bool
pageserver_flush(void)
{
	if (copy_stream_flush() != FLUSH_FAILED)
		return true;
	connection_lost();
	return false;
}

bool
pageserver_take(ReceivedMessage *message)
{
	return conn != NULL && copy_stream_take(message);
}

ReceiveResult
pageserver_receive(ReceivedMessage *message)
{
	ReceiveResult result = copy_stream_receive(message);

	if (result == RECEIVED)
		lost_in_a_row = 0;
	else if (result == DISCONNECTED)
		connection_lost();
	return result;
}

ReceiveResult
pageserver_receive_wait(ReceivedMessage *message, TimestampTz deadline)
{
	for (;;)
	{
		FlushResult flushed = copy_stream_flush();
		ReceiveResult result;

		if (flushed == FLUSH_FAILED)
		{
			connection_lost();
			return DISCONNECTED;
		}
		result = pageserver_receive(message);
		if (result != NOTHING_YET)
			return result;
		if (GetCurrentTimestamp() >= deadline)
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("the page server did not answer within %d s", neon_pageserver_timeout_s)));
		wait_for_socket(WL_SOCKET_READABLE | (flushed == FLUSH_BLOCKED ? WL_SOCKET_WRITEABLE : 0), deadline);
	}
}
