/*
 * aux_files.c
 *	  Files of the data directory that the next compute must find again.
 *
 * Statistics and logical replication slots are in files that no WAL record describes. They are put into the
 * WAL as logical messages, which the page server keeps, and lays into the next base backup. The prefix is
 * "neon-files:" and the name of a group; the message is the group's files, each as path, 0 byte, length
 * (4 bytes, little endian), contents. It replaces the group as a whole; an empty one removes it. The messages belong to
 * no database, which tells them from users' messages.
 *
 * Groups:
 *	  slot/NAME		a logical slot, and the snapshot from which decoding starts anew at its restart_lsn. Logged
 *					within AUX_FILES_CHECK_MS of PostgreSQL's writing the state file, and at shutdown. What
 *					changed after that is lost with a compute that is killed, as on a stock server everything
 *					since the last checkpoint is.
 *	  mappings		how rewritten catalogs are read by logical decoding; rarely there
 *	  statistics	cumulative statistics. PostgreSQL writes them at the very end of a shutdown, when WAL is
 *					over, so they are written earlier here; and now and then, as a killed compute's
 *					statistics of a while ago are better than none
 *
 * Everything runs in the walproposer's worker. If that is started again, all groups are logged again.
 */
#include "postgres.h"

#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_crc32c.h"
#include "replication/message.h"
#include "replication/slot.h"
#include "storage/fd.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/pgstat_internal.h"
#include "utils/timestamp.h"

#include "aux_files.h"

/* How often slots are looked at. */
#define AUX_FILES_CHECK_MS 500

/* Statistics are logged this often, if there was that much WAL meanwhile: an idle compute writes nothing. */
#define STATISTICS_INTERVAL_MS (5 * 60 * 1000)
#define STATISTICS_WAL_BYTES_MIN (1024 * 1024)

/* A larger group of files is not kept. */
#define GROUP_BYTES_MAX (256 * 1024 * 1024)

#define MESSAGE_PREFIX "neon-files:"
#define GROUP_NAME_CHARS (NAMEDATALEN + 8)

#define MAPPINGS_DIRECTORY "pg_logical/mappings"

/* A slot's state file: magic number, checksum, version and length precede the persistent data. */
#define SLOT_STATE_HEADER_BYTES (4 * sizeof(uint32))

/* What was logged last of a group. */
typedef struct KnownGroup
{
	char		name[GROUP_NAME_CHARS];
	pg_crc32c	crc;

	/* Number of the check that found it. */
	uint64		check;
} KnownGroup;

static HTAB *known_groups;
static uint64 current_check;
static MemoryContext work_context;

static void
set_up(void)
{
	HASHCTL		info = {.keysize = GROUP_NAME_CHARS, .entrysize = sizeof(KnownGroup)};

	if (known_groups != NULL)
		return;
	known_groups = hash_create("neon groups of files", 16, &info, HASH_ELEM | HASH_STRINGS);
	work_context = AllocSetContextCreate(TopMemoryContext, "neon auxiliary files", ALLOCSET_DEFAULT_SIZES);
}

static void
log_message(const char *group, const char *message, Size length)
{
	char		prefix[sizeof(MESSAGE_PREFIX) + GROUP_NAME_CHARS];
	XLogRecPtr	end;

	snprintf(prefix, sizeof(prefix), "%s%s", MESSAGE_PREFIX, group);
	end = LogLogicalMessage(prefix, message, length, false);
	/* It matters only once the safekeepers have it. */
	XLogFlush(end);
}

/* Logs a group unless it is what was logged last. */
static void
keep_group(const char *group, StringInfo files)
{
	pg_crc32c	crc;
	bool		found;
	KnownGroup *known;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, files->data, files->len);
	FIN_CRC32C(crc);
	known = hash_search(known_groups, group, HASH_ENTER, &found);
	known->check = current_check;
	if (found && EQ_CRC32C(known->crc, crc))
		return;
	known->crc = crc;
	log_message(group, files->data, files->len);
}

/* Removes groups with this prefix that the current check has not found. */
static void
remove_lost_groups(const char *prefix)
{
	HASH_SEQ_STATUS scan;
	KnownGroup *known;

	hash_seq_init(&scan, known_groups);
	while ((known = hash_seq_search(&scan)) != NULL)
	{
		if (known->check != current_check && strncmp(known->name, prefix, strlen(prefix)) == 0)
		{
			log_message(known->name, "", 0);
			hash_search(known_groups, known->name, HASH_REMOVE, NULL);
		}
	}
}

/* Reads `length` bytes; false, and logged, if it cannot. */
static bool
read_bytes(int file, const char *path, char *bytes, Size length)
{
	ssize_t		got = read(file, bytes, length);

	if (got < 0)
		ereport(LOG,
				(errcode_for_file_access(), errmsg("could not read file \"%s\": %m", path)));
	else if (got != length)
		ereport(LOG, (errmsg("file \"%s\" became shorter while it was read", path)));
	return got == length;
}

/* Adds a file to a group; its contents, or NULL if it is not there or cannot be read. */
static char *
add_file(StringInfo files, const char *path)
{
	int			file = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	struct stat status;
	char	   *contents = NULL;

	if (file < 0)
	{
		if (errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(), errmsg("could not open file \"%s\": %m", path)));
		return NULL;
	}
	if (fstat(file, &status) != 0)
		ereport(LOG,
				(errcode_for_file_access(), errmsg("could not stat file \"%s\": %m", path)));
	else if (status.st_size + files->len > GROUP_BYTES_MAX)
		ereport(LOG, (errmsg("file \"%s\" is too large to be kept for the next start", path)));
	else
	{
		contents = palloc(status.st_size + 1);
		if (read_bytes(file, path, contents, status.st_size))
		{
			uint32		length = status.st_size;

			appendBinaryStringInfo(files, path, strlen(path) + 1);
			appendBinaryStringInfo(files, (char *) &length, sizeof(length));
			appendBinaryStringInfo(files, contents, length);
			contents[length] = '\0';
		}
		else
			contents = NULL;
	}
	CloseTransientFile(file);
	return contents;
}

/* Names of the logical slots that are to outlive this server. */
static int
logical_slots(NameData *names)
{
	int			count = 0;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];

		SpinLockAcquire(&slot->mutex);
		if (slot->in_use && SlotIsLogical(slot) && slot->data.persistency == RS_PERSISTENT)
			names[count++] = slot->data.name;
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(ReplicationSlotControlLock);
	return count;
}

/*
 * The snapshot is the one that the state file names, not the one that the slot in memory would: both are then of
 * the same moment. A slot that has not found a snapshot yet has none, and needs none.
 */
static void
keep_slot(const char *name)
{
	char		path[MAXPGPATH];
	char		group[GROUP_NAME_CHARS];
	StringInfoData files;
	char	   *state;
	ReplicationSlotPersistentData data;

	initStringInfo(&files);
	snprintf(path, sizeof(path), "pg_replslot/%s/state", name);
	state = add_file(&files, path);
	/* It was dropped this very moment. */
	if (state == NULL || files.len < SLOT_STATE_HEADER_BYTES + sizeof(data))
		return;
	memcpy(&data, state + SLOT_STATE_HEADER_BYTES, sizeof(data));
	snprintf(path, sizeof(path), "pg_logical/snapshots/%X-%X.snap", LSN_FORMAT_ARGS(data.restart_lsn));
	(void) add_file(&files, path);
	snprintf(group, sizeof(group), "slot/%s", name);
	keep_group(group, &files);
}

static void
keep_slots(void)
{
	NameData   *names = palloc(max_replication_slots * sizeof(NameData));
	int			count = logical_slots(names);

	for (int i = 0; i < count; i++)
		keep_slot(NameStr(names[i]));
	remove_lost_groups("slot/");
}

static void
keep_mappings(void)
{
	DIR		   *directory = AllocateDir(MAPPINGS_DIRECTORY);
	struct dirent *entry;
	StringInfoData files;

	initStringInfo(&files);
	while ((entry = ReadDirExtended(directory, MAPPINGS_DIRECTORY, LOG)) != NULL)
	{
		char		path[MAXPGPATH];

		snprintf(path, sizeof(path), MAPPINGS_DIRECTORY "/%s", entry->d_name);
		if (strncmp(entry->d_name, "map-", 4) == 0)
			(void) add_file(&files, path);
	}
	FreeDir(directory);
	if (files.len > 0)
		keep_group("mappings", &files);
	else
		remove_lost_groups("mappings");
}

/*
 * The function that writes the file at shutdown does so at any time, but marks shared memory, for assertions that
 * nobody counts any more.
 */
static void
keep_statistics(void)
{
	StringInfoData files;

	pgstat_before_server_shutdown(0, (Datum) 0);
	pgStatLocal.shmem->is_shutdown = false;
	initStringInfo(&files);
	if (add_file(&files, PGSTAT_STAT_PERMANENT_FILENAME) != NULL)
		keep_group("statistics", &files);
	(void) unlink(PGSTAT_STAT_PERMANENT_FILENAME);
}

static void
keep_slots_and_mappings(void)
{
	current_check++;
	keep_slots();
	keep_mappings();
}

void
aux_files_keep(void)
{
	static TimestampTz checked_at,
				statistics_at;
	static XLogRecPtr statistics_lsn;
	TimestampTz now = GetCurrentTimestamp();
	MemoryContext caller_context;

	if (!TimestampDifferenceExceeds(checked_at, now, AUX_FILES_CHECK_MS))
		return;
	checked_at = now;
	set_up();
	caller_context = MemoryContextSwitchTo(work_context);
	keep_slots_and_mappings();
	if (statistics_at == 0)
		statistics_at = now;
	if (TimestampDifferenceExceeds(statistics_at, now, STATISTICS_INTERVAL_MS) &&
		GetXLogInsertRecPtr() - statistics_lsn >= STATISTICS_WAL_BYTES_MIN)
	{
		keep_statistics();
		statistics_at = now;
		statistics_lsn = GetXLogInsertRecPtr();
	}
	MemoryContextSwitchTo(caller_context);
	MemoryContextReset(work_context);
}

void
aux_files_keep_at_shutdown(void)
{
	set_up();
	MemoryContextSwitchTo(work_context);
	keep_slots_and_mappings();
	keep_statistics();
}
