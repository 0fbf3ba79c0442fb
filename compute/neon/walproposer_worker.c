/*
 * walproposer_worker.c
 *	  The background worker that runs the walproposer binary and listens to it.
 *
 * Each line on the binary's standard output is an event: "streaming X/X" opens the server to clients,
 * "feedback <size> <write> <flush> <apply>" is the page server's progress.
 *
 * The binary's exit status decides what happens next. 0: the server is stopping. 3: a newer term
 * owns the timeline. This compute must not answer another query, so the worker leaves with a
 * status above 1, which PostgreSQL treats as a crash and, with restart_after_crash = off, stops.
 * Anything else: safekeepers away, and the like; the binary is started again after a pause, while commits wait.
 *
 * At a fast shutdown the worker asks for one more ordinary checkpoint, during which the free space
 * maps can still be logged, and logs the sequences and the files that the next compute needs. In the shutdown checkpoint no WAL may be written.
 */
#include "postgres.h"

#include <sys/wait.h>
#include <unistd.h>

#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/bgwriter.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "access/xlog.h"

#include "auth_guard.h"
#include "aux_files.h"
#include "backpressure.h"
#include "neon.h"
#include "sequences.h"
#include "walproposer_child.h"
#include "walproposer_worker.h"

/* Pause before the binary is started again. */
#define RESTART_DELAY_MS 1000

/* How often a binary whose output is silent is checked for having ended. */
#define CHILD_CHECK_MS 100

/* Longest line of output that is understood; a longer one is skipped. */
#define LINE_MAX_CHARS 256

/* Exit status of the worker that stops the whole server; anything above 1 does. */
#define EXIT_STOP_SERVER 3

typedef struct LineBuffer
{
	char		text[LINE_MAX_CHARS];
	int			length;
	bool		overlong;
} LineBuffer;

/* Keeper of the running binary, 0 if none: it may be the child of a worker that ended. */
static pid_t *keeper_pid;

Size
walproposer_worker_shmem_size(void)
{
	return sizeof(pid_t);
}

void
walproposer_worker_shmem_init(void)
{
	bool		found;

	keeper_pid = ShmemInitStruct("neon walproposer", sizeof(pid_t), &found);
	if (!found)
		*keeper_pid = 0;
}

void
walproposer_worker_init(void)
{
	BackgroundWorker worker = {
		.bgw_name = "walproposer",
		.bgw_type = "walproposer",
		.bgw_flags = BGWORKER_SHMEM_ACCESS,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = 1,
		.bgw_library_name = "neon",
		.bgw_function_name = "walproposer_worker_main",
	};

	if (neon_has_safekeepers())
		RegisterBackgroundWorker(&worker);
}

/* Acts on one line of the binary's output. */
static void
handle_line(const char *line)
{
	uint32		high,
				low;
	PageserverFeedback feedback;

	if (sscanf(line, "streaming %X/%X", &high, &low) == 2)
	{
		ereport(LOG, (errmsg("walproposer streams from %X/%X", high, low)));
		auth_guard_open();
	}
	else if (sscanf(line, "feedback " UINT64_FORMAT " " UINT64_FORMAT " " UINT64_FORMAT " " UINT64_FORMAT,
					&feedback.timeline_size_bytes, &feedback.received_lsn,
					&feedback.disk_consistent_lsn, &feedback.remote_consistent_lsn) == 4)
		backpressure_set_feedback(&feedback);
	else
		ereport(LOG, (errmsg("walproposer said something not understood: \"%s\"", line)));
}

static void
add_output(LineBuffer *line, const char *bytes, int length)
{
	for (int i = 0; i < length; i++)
	{
		if (bytes[i] != '\n')
		{
			if (line->length < LINE_MAX_CHARS - 1)
				line->text[line->length++] = bytes[i];
			else
				line->overlong = true;
			continue;
		}
		line->text[line->length] = '\0';
		if (!line->overlong)
			handle_line(line->text);
		line->length = 0;
		line->overlong = false;
	}
}

/* Waits for output; false at its end. */
static bool
read_output(const WalproposerChild *child, LineBuffer *line)
{
	char		bytes[1024];
	ssize_t		length;

	(void) WaitLatchOrSocket(MyLatch,
							 WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 child->output, CHILD_CHECK_MS, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	length = read(child->output, bytes, sizeof(bytes));
	if (length > 0)
		add_output(line, bytes, length);
	return length > 0 || (length < 0 && (errno == EAGAIN || errno == EINTR));
}

/* PostgreSQL is stopping, or somebody terminated this worker. The binary goes on: see walproposer_child.c. */
static void
leave(void)
{
	bool		sessions_ended = wait_for_sessions_to_end();

	RequestCheckpoint(CHECKPOINT_IMMEDIATE | CHECKPOINT_FORCE | CHECKPOINT_WAIT);
	if (sessions_ended)
		log_sequences_at_shutdown();
	aux_files_keep_at_shutdown();
	proc_exit(1);
}

/* Runs the binary until it ends; its exit status. */
static int
run_walproposer(void)
{
	WalproposerChild child = walproposer_child_start();
	LineBuffer	line = {.length = 0};
	int			status;

	*keeper_pid = child.pid;
	for (;;)
	{
		bool		more = read_output(&child, &line);

		if (ShutdownRequestPending)
			leave();
		aux_files_keep();
		/* What the binary said last is read before its end is acted upon. */
		if (waitpid(child.pid, &status, WNOHANG) == child.pid)
		{
			while (more && read_output(&child, &line) && line.length > 0)
				;
			break;
		}
	}
	*keeper_pid = 0;
	close(child.output);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void
walproposer_worker_main(Datum argument)
{
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	/* An earlier worker's binary must not compete with ours for the timeline. */
	walproposer_child_stop(*keeper_pid);

	for (;;)
	{
		int			status = run_walproposer();

		if (status == WALPROPOSER_FENCED)
		{
			ereport(LOG,
					(errmsg("another compute has taken over this timeline: stopping the server")));
			proc_exit(EXIT_STOP_SERVER);
		}
		ereport(LOG,
				(errmsg("walproposer ended with exit status %d, starting it again", status)));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 RESTART_DELAY_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		if (ShutdownRequestPending)
			leave();
	}
}
