/*
 * neon.c
 *	  Start of the extension: settings, checks, hooks. Everything happens in the postmaster.
 *
 * Order matters. Checks come first: a server that is not exactly the one this was built for is
 * refused before anything is changed. The storage manager table is found while the library is loaded, and replaced
 * when shared memory exists, which is before the first child process. Nothing here is
 * optional: what fails is FATAL.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/guc.h"

#include "auth_guard.h"
#include "backpressure.h"
#include "cluster_state.h"
#include "database_commands.h"
#include "file_cache.h"
#include "last_written_lsn.h"
#include "local_rels.h"
#include "neon.h"
#include "overlay.h"
#include "pageserver_conn.h"
#include "pagestore_smgr.h"
#include "relation_numbers.h"
#include "relsize_cache.h"
#include "size_functions.h"
#include "smgr_hook.h"
#include "standby.h"
#include "walproposer_worker.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

/* A slot of the cache is a number of 32 bits: 8 TiB are within its range. */
#define FILE_CACHE_MAX_MB (8 * 1024 * 1024)

/* Hexadecimal digits of a tenant or timeline id. */
#define ID_CHARS 32

char	   *neon_pageserver_connstring;
char	   *neon_tenant_id;
char	   *neon_timeline_id;
char	   *neon_safekeepers;
char	   *neon_walproposer_path;
char	   *neon_superuser_name;
int			neon_max_cluster_size_mb;
int			neon_flush_output_after;
int			neon_readahead_buffer_size;
int			neon_relsize_hash_size;
int			neon_pageserver_timeout_s;
char	   *neon_file_cache_path;
int			neon_max_file_cache_size_mb;
int			neon_file_cache_size_limit_mb;
int			neon_max_replication_write_lag_mb;
int			neon_max_replication_flush_lag_mb;
int			neon_max_replication_apply_lag_mb;

/* The walproposer reads these from the configuration file; here they only have to be known. */
static char *safekeeper_token_env;
static int	safekeeper_reconnect_timeout_ms;
static int	safekeeper_connect_timeout_ms;
static int	safekeeper_hold_delay_ms;
static int	walproposer_poll_us;

static shmem_request_hook_type next_shmem_request_hook;
static shmem_startup_hook_type next_shmem_startup_hook;

static bool
check_connstring(char **value, void **extra, GucSource source)
{
	const char *problem = pageserver_connstring_problem(*value);

	if (problem == NULL)
		return true;
	/* The usual message would show the value, which may hold a secret. */
	GUC_check_errmsg("invalid value for parameter \"neon.pageserver_connstring\"");
	GUC_check_errdetail("%s", problem);
	return false;
}

static bool
check_id(char **value, void **extra, GucSource source)
{
	Size		length = strlen(*value);

	if (length == 0 || (length == ID_CHARS && strspn(*value, "0123456789abcdefABCDEF") == length))
		return true;
	GUC_check_errdetail("An id has %d hexadecimal digits.", ID_CHARS);
	return false;
}

static void
define_string(const char *name, const char *what, char **variable, const char *value,
			  GucStringCheckHook check)
{
	DefineCustomStringVariable(name, what, NULL, variable, value, PGC_POSTMASTER, 0,
							   check, NULL, NULL);
}

typedef struct IntSetting
{
	const char *name;
	const char *what;
	int		   *variable;
	int			value;
	int			min;
	int			max;
	GucContext	context;
	int			unit;
	GucIntAssignHook assign;
} IntSetting;

static const IntSetting int_settings[] = {
	{"neon.max_cluster_size", "Largest logical size of the cluster; -1 for no limit.",
	&neon_max_cluster_size_mb, -1, -1, INT_MAX, PGC_SIGHUP, GUC_UNIT_MB},
	{"neon.flush_output_after", "Requests sent ahead are flushed after this many.",
	&neon_flush_output_after, 8, 1, 1024, PGC_USERSET, 0},
	{"neon.readahead_buffer_size", "Pages asked for ahead, or in flight, at most.",
	&neon_readahead_buffer_size, 128, 16, 1024, PGC_USERSET, 0},
	{"neon.relsize_hash_size", "Relation forks whose size is cached, at most.",
	&neon_relsize_hash_size, 262144, 1024, INT_MAX / 2, PGC_POSTMASTER, 0},
	{"neon.max_file_cache_size", "Largest size the local file cache may be given; 0 for no cache.",
	&neon_max_file_cache_size_mb, 0, 0, FILE_CACHE_MAX_MB, PGC_POSTMASTER, GUC_UNIT_MB},
	{"neon.file_cache_size_limit", "Size of the local file cache; -1 for the largest.",
		&neon_file_cache_size_limit_mb, -1, -1, FILE_CACHE_MAX_MB, PGC_SIGHUP, GUC_UNIT_MB,
	file_cache_assign_limit},
	{"neon.pageserver_timeout", "A request the page server has not answered by then fails.",
	&neon_pageserver_timeout_s, 300, 1, INT_MAX / 1000, PGC_USERSET, GUC_UNIT_S},
	{"neon.max_replication_write_lag", "WAL the page server has not received, at most; 0 for no limit.",
	&neon_max_replication_write_lag_mb, 0, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MB},
	{"neon.max_replication_flush_lag", "WAL the page server has not on disk, at most; 0 for no limit.",
	&neon_max_replication_flush_lag_mb, 0, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MB},
	{"neon.max_replication_apply_lag", "WAL not in remote storage, at most; 0 for no limit.",
	&neon_max_replication_apply_lag_mb, 0, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MB},
	{"neon.safekeeper_reconnect_timeout", "Time between attempts to reach a safekeeper.",
	&safekeeper_reconnect_timeout_ms, 1000, 0, INT_MAX, PGC_POSTMASTER, GUC_UNIT_MS},
	{"neon.safekeeper_connect_timeout", "A silent safekeeper is given up after this.",
	&safekeeper_connect_timeout_ms, 5000, 0, INT_MAX, PGC_POSTMASTER, GUC_UNIT_MS},
	{"neon.safekeeper_hold_delay", "Safekeepers not needed for a quorum get WAL up to this much later; 0: at once.",
	&safekeeper_hold_delay_ms, 4, 0, 1000, PGC_POSTMASTER, GUC_UNIT_MS},
	{"neon.walproposer_poll_us", "Microseconds to wait around a commit without sleeping; 0: none.",
	&walproposer_poll_us, 500, 0, 1000, PGC_POSTMASTER, 0},
};

static void
define_settings(void)
{
	define_string("neon.pageserver_connstring", "Where the page server is.",
				  &neon_pageserver_connstring, "", check_connstring);
	define_string("neon.tenant_id", "The tenant.", &neon_tenant_id, "", check_id);
	define_string("neon.timeline_id", "The timeline.", &neon_timeline_id, "", check_id);
	define_string("neon.safekeepers", "host:port of each safekeeper; empty for a read-only compute.",
				  &neon_safekeepers, "", NULL);
	define_string("neon.safekeeper_token_env", "$NAME of the environment variable with the token.",
				  &safekeeper_token_env, NULL, NULL);
	define_string("neon.walproposer_path", "The walproposer program.",
				  &neon_walproposer_path, "walproposer", NULL);
	define_string("neon.superuser_name", "The role as which the walproposer reads this server's WAL.",
				  &neon_superuser_name, "cloud_admin", NULL);
	define_string("neon.file_cache_path", "Where the file of the local file cache is made.",
				  &neon_file_cache_path, "neon_file_cache", NULL);
	for (int i = 0; i < lengthof(int_settings); i++)
	{
		const IntSetting *setting = &int_settings[i];

		DefineCustomIntVariable(setting->name, setting->what, NULL, setting->variable,
								setting->value, setting->min, setting->max, setting->context,
								setting->unit, NULL, setting->assign, NULL);
	}
	MarkGUCPrefixReserved("neon");
}

/* The internals used here may differ between minor versions too. */
static void
check_server_version(void)
{
	const char *running = GetConfigOption("server_version_num", false, false);

	if (atoi(running) != PG_VERSION_NUM)
		ereport(FATAL,
				(errmsg("neon: built for PostgreSQL %s, but this server is version %s",
						PG_VERSION, GetConfigOption("server_version", false, false)),
				 errhint("Rebuild the extension with this server's pg_config.")));
}

static void
check_settings(void)
{
	if (neon_tenant_id[0] == '\0' || neon_timeline_id[0] == '\0')
		ereport(FATAL,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("neon.tenant_id and neon.timeline_id must be set")));
	/* A value that was refused has become the default, with a warning. */
	if (neon_pageserver_connstring[0] == '\0')
		ereport(FATAL,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("neon.pageserver_connstring must be set")));
	if (!neon_has_safekeepers())
		return;
	if (wal_level < WAL_LEVEL_REPLICA)
		ereport(FATAL,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("neon: wal_level must be replica or logical"),
				 errdetail("Otherwise PostgreSQL leaves pages of new relations out of the WAL.")));
	if (SyncRepStandbyNames == NULL || SyncRepStandbyNames[0] == '\0')
		ereport(FATAL,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("neon: synchronous_standby_names must be \"%s\"", WALPROPOSER_APPLICATION_NAME),
				 errdetail("Otherwise commits would not wait for the safekeepers.")));
	if (enableFsync)
		ereport(LOG,
				(errmsg("fsync is on, but this server's files need not survive a crash"),
				 errhint("Set fsync = off: the safekeepers keep the WAL.")));
}

static void
request_shared_memory(void)
{
	if (next_shmem_request_hook)
		next_shmem_request_hook();
	RequestAddinShmemSpace(last_written_lsn_shmem_size());
	RequestAddinShmemSpace(relsize_cache_shmem_size());
	RequestAddinShmemSpace(file_cache_shmem_size());
	RequestAddinShmemSpace(backpressure_shmem_size());
	RequestAddinShmemSpace(auth_guard_shmem_size());
	RequestAddinShmemSpace(walproposer_worker_shmem_size());
	relsize_cache_request_locks();
	file_cache_request_locks();
	overlay_request_locks();
}

/* A second start of shared memory follows a crash: see cluster_state.c why that cannot work. */
static void
refuse_restart_after_crash(void)
{
	static bool started = false;

	if (started)
		ereport(FATAL,
				(errmsg("neon: a server that crashed cannot go on"),
				 errhint("Set restart_after_crash = off, and start the compute from a fresh base backup.")));
	started = true;
}

static void
start_shared_memory(void)
{
	if (next_shmem_startup_hook)
		next_shmem_startup_hook();
	refuse_restart_after_crash();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	last_written_lsn_shmem_init();
	relsize_cache_shmem_init();
	file_cache_shmem_init();
	overlay_shmem_init();
	backpressure_shmem_init();
	auth_guard_shmem_init();
	walproposer_worker_shmem_init();
	LWLockRelease(AddinShmemInitLock);

	standby_prepare_recovery();
	smgr_selftest();
	smgr_hook_install(&pagestore_callbacks);
}

/* Nothing of ours stays in the data directory. Every process inherits the callback. */
static void
clean_up_at_exit(int code, Datum arg)
{
	if (MyProcPid == PostmasterPid)
		remove_overlay_files();
}

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("neon must be loaded via shared_preload_libraries")));
	check_server_version();
	define_settings();
	check_settings();
	cluster_state_init();
	smgr_hook_find_table();
	size_functions_init();
	relation_numbers_init();
	standby_init();
	remove_overlay_files();
	on_proc_exit(clean_up_at_exit, 0);

	auth_guard_init();
	backpressure_init();
	database_commands_init();
	walproposer_worker_init();
	next_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shared_memory;
	next_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = start_shared_memory;
}
