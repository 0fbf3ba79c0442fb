/*
 * copy_stream.c
 *	  CopyData messages over a socket, in both directions, without waiting.
 *
 * libpq gives each message memory of its own and copies it there, and its buffer is read in small pieces. Here many
 * pages are read at once into a chunk, and a message is where it came to lie in there:
 *
 *		chunk:	[ taken | taken, released | complete | beginning of a message |    free    ]
 *													 ^ parsed				  ^ filled
 *
 * A chunk with messages that somebody holds stays; when nobody does it is used again. A message does not continue in another
 * chunk: its beginning is moved there.
 *
 * Format: type (1 byte), length (4 bytes, big endian, counts itself), payload; "Frontend/Backend Protocol"
 * of PostgreSQL's documentation, section "Message Formats".
 */
#include "postgres.h"

#include <sys/socket.h>

#include "lib/stringinfo.h"
#include "port/pg_bswap.h"
#include "utils/memutils.h"

#include "copy_stream.h"

#define CHUNK_SIZE (256 * 1024)

/* The free rest of a chunk is used if it is this large. */
#define READ_MIN (32 * 1024)

/* Longest message that is accepted, in bytes. An answer has a page at most, or the text of an error. */
#define MESSAGE_MAX (64 * 1024)

/* Chunks kept for the next messages. */
#define SPARE_MAX 2

#define HEADER_LEN 5

typedef struct Chunk
{
	struct Chunk *next_spare;
	int			messages;		/* taken and not released */
	char		data[CHUNK_SIZE];
} Chunk;

static pgsocket stream_socket = PGINVALID_SOCKET;

/* Messages to be sent, from `sent` on. */
static StringInfoData out;
static int	sent;

/* The chunk that is read into, or NULL. */
static Chunk *current;
static int	filled;
static int	parsed;

static Chunk *spares;
static int	spare_count;

static char problem[512];

static Chunk *
get_chunk(void)
{
	Chunk	   *chunk = spares;

	if (chunk == NULL)
		chunk = MemoryContextAlloc(TopMemoryContext, sizeof(Chunk));
	else
	{
		spares = chunk->next_spare;
		spare_count--;
	}
	chunk->messages = 0;
	return chunk;
}

static void
put_chunk_back(Chunk *chunk)
{
	if (spare_count == SPARE_MAX)
	{
		pfree(chunk);
		return;
	}
	chunk->next_spare = spares;
	spares = chunk;
	spare_count++;
}

void
copy_stream_release(ReceivedMessage *message)
{
	Chunk	   *chunk = message->chunk;

	if (chunk == NULL)
		return;
	Assert(chunk->messages > 0);
	if (--chunk->messages == 0 && chunk != current)
		put_chunk_back(chunk);
	message->chunk = NULL;
	message->data = NULL;
}

void
copy_stream_close(void)
{
	if (current != NULL && current->messages == 0)
		put_chunk_back(current);
	current = NULL;
	filled = parsed = 0;
	sent = 0;
	if (out.data != NULL)
		resetStringInfo(&out);
	stream_socket = PGINVALID_SOCKET;
}

void
copy_stream_open(pgsocket socket)
{
	if (out.data == NULL)
	{
		MemoryContext caller = MemoryContextSwitchTo(TopMemoryContext);

		initStringInfo(&out);
		MemoryContextSwitchTo(caller);
	}
	copy_stream_close();
	problem[0] = '\0';
	stream_socket = socket;
}

const char *
copy_stream_problem(void)
{
	return problem;
}

void
copy_stream_put(const char *message, int length)
{
	char		header[HEADER_LEN] = {'d'};
	uint32		network = pg_hton32(length + sizeof(uint32));

	/* Room for all of it first: an error must not leave half a message. */
	enlargeStringInfo(&out, HEADER_LEN + length);
	memcpy(header + 1, &network, sizeof(network));
	appendBinaryStringInfo(&out, header, HEADER_LEN);
	appendBinaryStringInfo(&out, message, length);
}

/* The peer does not take anything any more. It may have said why. */
static FlushResult
sending_failed(int error)
{
	ReceivedMessage message;
	ReceiveResult result;

	while ((result = copy_stream_receive(&message)) == RECEIVED)
		copy_stream_release(&message);
	if (result == NOTHING_YET)
		snprintf(problem, sizeof(problem), "could not send: %s", strerror(error));
	return FLUSH_FAILED;
}

FlushResult
copy_stream_flush(void)
{
	while (sent < out.len)
	{
		ssize_t		n = send(stream_socket, out.data + sent, out.len - sent, MSG_NOSIGNAL);

		if (n >= 0)
			sent += n;
		else if (errno == EAGAIN || errno == EWOULDBLOCK)
			return FLUSH_BLOCKED;
		else if (errno != EINTR)
			return sending_failed(errno);
	}
	resetStringInfo(&out);
	sent = 0;
	return FLUSHED;
}

/* Sees to it that there is room to read into, and that a message that has begun can end there. */
static void
make_room(void)
{
	int			rest = filled - parsed;
	Chunk	   *next;

	if (current != NULL && current->messages == 0 && rest == 0)
		filled = parsed = 0;
	if (current != NULL && CHUNK_SIZE - filled >= READ_MIN && CHUNK_SIZE - parsed >= MESSAGE_MAX)
		return;
	next = get_chunk();
	if (current != NULL)
	{
		memcpy(next->data, current->data + parsed, rest);
		if (current->messages == 0)
			put_chunk_back(current);
	}
	current = next;
	filled = rest;
	parsed = 0;
}

static ReceiveResult
read_socket(void)
{
	ssize_t		n;

	make_room();
	do
	{
		n = recv(stream_socket, current->data + filled, CHUNK_SIZE - filled, 0);
	} while (n < 0 && errno == EINTR);
	if (n > 0)
	{
		filled += n;
		return RECEIVED;
	}
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return NOTHING_YET;
	if (n == 0)
		strlcpy(problem, "it closed the connection", sizeof(problem));
	else
		snprintf(problem, sizeof(problem), "could not receive: %s", strerror(errno));
	return DISCONNECTED;
}

/* What has been read of the next message. */
typedef struct Header
{
	bool		there;			/* all five bytes of it */
	char		type;
	uint32		length;			/* of the payload, in bytes; more than any message may have if it is wrong */
} Header;

static Header
next_header(void)
{
	Header		header = {0};
	uint32		network;

	if (filled - parsed < HEADER_LEN)
		return header;
	header.there = true;
	header.type = current->data[parsed];
	memcpy(&network, current->data + parsed + 1, sizeof(network));
	/* A length below its own four bytes becomes a very large one. */
	header.length = pg_ntoh32(network) - sizeof(network);
	return header;
}

static bool
is_complete(Header header)
{
	return header.there && header.length <= MESSAGE_MAX - HEADER_LEN &&
		filled - parsed >= HEADER_LEN + header.length;
}

bool
copy_stream_take(ReceivedMessage *message)
{
	Header		header = next_header();

	if (!is_complete(header) || header.type != 'd')
		return false;
	message->data = current->data + parsed + HEADER_LEN;
	message->length = header.length;
	message->chunk = current;
	current->messages++;
	parsed += HEADER_LEN + header.length;
	return true;
}

/* Copies the text of an ErrorResponse, which is a list of fields: type (1 byte), text, zero; a zero type ends it. */
static void
note_error(const char *fields, uint32 length)
{
	const char *end = fields + length;

	strlcpy(problem, "it sent an error without a text", sizeof(problem));
	while (fields < end && *fields != '\0')
	{
		Size		field_length = strnlen(fields, end - fields);

		if (*fields == 'M')
		{
			snprintf(problem, sizeof(problem), "%.*s", (int) field_length - 1, fields + 1);
			return;
		}
		fields += field_length + 1;
	}
}

/* Disposes of a message that is not CopyData. False if the stream ends with it. */
static bool
pass_other(Header header)
{
	if (header.type == 'N' || header.type == 'S')
	{
		parsed += HEADER_LEN + header.length;
		return true;
	}
	if (header.type == 'E')
		note_error(current->data + parsed + HEADER_LEN, header.length);
	else if (header.type == 'c')
		strlcpy(problem, "it ended the stream", sizeof(problem));
	else
		snprintf(problem, sizeof(problem), "it sent an unexpected message of type %d", (uint8) header.type);
	return false;
}

ReceiveResult
copy_stream_receive(ReceivedMessage *message)
{
	while (!copy_stream_take(message))
	{
		Header		header = next_header();

		if (header.length > MESSAGE_MAX - HEADER_LEN)
		{
			snprintf(problem, sizeof(problem), "it sent a message of type %d with a wrong length, %u bytes",
					 (uint8) header.type, header.length);
			return DISCONNECTED;
		}
		if (!is_complete(header))
		{
			ReceiveResult result = read_socket();

			if (result != RECEIVED)
				return result;
		}
		else if (!pass_other(header))
			return DISCONNECTED;
	}
	return RECEIVED;
}
