/*
 * walproposer_child.c
 *	  The walproposer binary as a child process, and the keeper between it and the worker.
 *
 * The binary has to outlive the background worker: at a shutdown PostgreSQL ends workers first,
 * then writes the shutdown checkpoint, and then its walsenders wait until all WAL has been
 * replicated. If the binary went with the worker, transactions that did not wait for the quorum
 * (synchronous_commit = off) would be lost by a clean shutdown. It must not outlive the postmaster, though.
 *
 * So the worker forks a keeper, and the keeper the binary. The keeper is not attached to shared
 * memory, runs nothing of PostgreSQL, and waits for whichever comes first: the end of the
 * binary, whose status it passes on; the end of the postmaster; or SIGTERM. In the last two cases it stops
 * the binary. The kernel sends the binary SIGTERM should the keeper itself be killed.
 *
 * The pids of keepers are kept in shared memory (walproposer_worker.c) for a worker that follows.
 */
#include "postgres.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/stringinfo.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "storage/pg_shmem.h"
#include "utils/guc.h"
#include "utils/ps_status.h"

#include "cluster_state.h"
#include "neon.h"
#include "walproposer_child.h"

/* How often the keeper looks whether the binary has ended. */
#define KEEPER_CHECK_MS 50

/* From SIGTERM to SIGKILL. */
#define STOP_GRACE_MS 5000

/* Exit status of the keeper when the binary cannot be executed: a restartable failure. */
#define CANNOT_EXECUTE 127

static volatile sig_atomic_t keeper_stop;

static void
on_keeper_sigterm(SIGNAL_ARGS)
{
	keeper_stop = true;
}

/* A value of a connection string. */
static char *
quoted_value(const char *value)
{
	StringInfoData quoted;

	initStringInfo(&quoted);
	appendStringInfoChar(&quoted, '\'');
	for (; *value != '\0'; value++)
	{
		if (*value == '\'' || *value == '\\')
			appendStringInfoChar(&quoted, '\\');
		appendStringInfoChar(&quoted, *value);
	}
	appendStringInfoChar(&quoted, '\'');
	return quoted.data;
}

/* Where the local server accepts connections: "host=... port=... user=...". */
static char *
local_connection_string(void)
{
	const char *listen = GetConfigOption("listen_addresses", false, false);
	const char *sockets = GetConfigOption("unix_socket_directories", false, false);
	int			length = strcspn(listen, ", ");
	const char *host = pnstrdup(listen, length);

	if (length == 0)
		host = pnstrdup(sockets, strcspn(sockets, ", "));
	else if (strcmp(host, "*") == 0 || strcmp(host, "0.0.0.0") == 0)
		host = "127.0.0.1";
	return psprintf("host=%s port=%s user=%s", host, GetConfigOption("port", false, false),
					quoted_value(neon_superuser_name));
}

/* Back to what a program expects to find: signals and descriptors. */
static void
reset_process(void)
{
	sigset_t	none;

	for (int signo = 1; signo < NSIG; signo++)
	{
		if (signo != SIGKILL && signo != SIGSTOP)
			pqsignal(signo, SIG_DFL);
	}
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* In the keeper's child: becomes the binary. */
static void
execute(char *const *arguments, int output, pid_t keeper)
{
	reset_process();
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != keeper)
		_exit(CANNOT_EXECUTE);
	dup2(output, STDOUT_FILENO);
	setenv("PGDATA", DataDir, 1);
	/* Sockets and files of the server are not for this program. */
	for (int fd = STDERR_FILENO + 1; fd < sysconf(_SC_OPEN_MAX) && fd < 65536; fd++)
		close(fd);
	execv(arguments[0], arguments);
	_exit(CANNOT_EXECUTE);
}

static bool
postmaster_is_gone(void)
{
	struct pollfd alive = {.fd = postmaster_alive_fds[POSTMASTER_FD_WATCH], .events = POLLIN};

	return poll(&alive, 1, KEEPER_CHECK_MS) == 1;
}

/* In the keeper: the status to exit with. */
static int
keep(pid_t binary)
{
	int			status;
	int			stopping_ms = -1;	/* since SIGTERM was sent; -1: it was not */

	while (waitpid(binary, &status, WNOHANG) == 0)
	{
		if (stopping_ms < 0)
		{
			if (!postmaster_is_gone() && !keeper_stop)
				continue;
			kill(binary, SIGTERM);
			stopping_ms = 0;
		}
		pg_usleep(KEEPER_CHECK_MS * 1000);
		stopping_ms += KEEPER_CHECK_MS;
		if (stopping_ms >= STOP_GRACE_MS)
			kill(binary, SIGKILL);
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void
run_keeper(char *const *arguments, int output)
{
	pid_t		keeper = getpid();
	pid_t		binary;

	reset_process();
	/* The postmaster signals its children's process groups. */
	setsid();
	pqsignal(SIGTERM, on_keeper_sigterm);
	set_ps_display("keeper");
	/* The server's interlock against a second postmaster counts who is attached. */
	PGSharedMemoryDetach();
	binary = fork();
	if (binary == 0)
		execute(arguments, output, keeper);
	_exit(binary < 0 ? CANNOT_EXECUTE : keep(binary));
}

WalproposerChild
walproposer_child_start(void)
{
	char	   *arguments[] = {
		neon_walproposer_path,
		"--connect", local_connection_string(),
		"--start-lsn", psprintf("%X/%X", LSN_FORMAT_ARGS(cluster_state.start_lsn)),
		"--system-id", psprintf(UINT64_FORMAT, cluster_state.system_id),
		"--pg-version", psprintf("%d", PG_VERSION_NUM),
		NULL
	};
	WalproposerChild child;
	int			pipe_fds[2];

	if (pipe(pipe_fds) != 0 || fcntl(pipe_fds[0], F_SETFL, O_NONBLOCK) != 0)
		ereport(ERROR, (errmsg("could not create a pipe for the walproposer: %m")));
	fflush(NULL);
	child.output = pipe_fds[0];
	child.pid = fork();
	if (child.pid < 0)
		ereport(ERROR, (errmsg("could not fork the walproposer: %m")));
	if (child.pid == 0)
		/* It holds both ends, so that the binary can write even when the worker has gone. */
		run_keeper(arguments, pipe_fds[1]);
	close(pipe_fds[1]);
	return child;
}

void
walproposer_child_stop(pid_t keeper)
{
	if (keeper == 0 || kill(keeper, SIGTERM) != 0)
		return;
	for (int waited_ms = 0; waited_ms < 2 * STOP_GRACE_MS; waited_ms += KEEPER_CHECK_MS)
	{
		/* It is ours to reap, or somebody else's; either way it is gone when no signal reaches it. */
		if (waitpid(keeper, NULL, WNOHANG) == keeper || kill(keeper, 0) != 0)
			return;
		pg_usleep(KEEPER_CHECK_MS * 1000);
	}
}
