/*
 * pagestream.c
 *	  Requests to the page server: pipelining and read-ahead over one connection.
 *
 * Responses come in the order of the requests. All requests, waited for or sent ahead, pass through one ring:
 *
 *		tail ........ received ........ head
 *		 answered,      in flight
 *		 not used yet
 *
 * An ERROR (a cancelled query, say) while waiting leaves the ring valid: the answer is filed under
 * its request when it comes, and dropped when room is needed. When the connection breaks, the ring
 * is emptied and the one request being waited for is sent again.
 *
 * Responses are received when one is waited for or the ring is full, many at once, and lie where they were received until
 * they are used (copy_stream.c).
 *
 * A page that was asked for ahead is used only if the request's LSN is no lower than the LSN from which on the
 * page must now be read: in between it may have been read, changed and evicted.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/pg_bswap.h"

#include "neon.h"
#include "pageserver_conn.h"
#include "pagestream.h"

/* Upper limit of neon.readahead_buffer_size. */
#define RING_SLOTS 1024

/* Tags of responses on the wire: 100 more than the request's, but for errors and both kinds of database size. */
#define RESPONSE_TAG_ERROR 103
#define RESPONSE_TAG_DBSIZE 104
#define RESPONSE_TAG(kind) ((kind) >= REQUEST_DBSIZE ? RESPONSE_TAG_DBSIZE : (kind) + 100)

/* Longest request: tag, latest, lsn, relation, fork, block. */
#define REQUEST_LEN_MAX (1 + 1 + 8 + 12 + 1 + 4)

typedef struct RingSlot
{
	PageRequest request;
	ReceivedMessage response;	/* data is NULL until it came, and after it was used */
	bool		used;			/* its response was taken or dropped */
	bool		to_store;		/* it is a page that was not handed to the file cache yet */
} RingSlot;

static RingSlot ring[RING_SLOTS];

/*
 * How many slots, not used yet, have a block number of this remainder. The ring is looked through only for blocks that may be
 * there; those of a run never share a counter.
 */
static uint16 expected[RING_SLOTS];

/* Positions only grow; the slot is the position modulo RING_SLOTS. tail <= received <= head. */
static uint64 ring_tail;
static uint64 ring_received;
static uint64 ring_head;

/* Requests queued since the last flush. */
static int	unflushed;

/* Somebody asks for many pages ahead, and says when that is all. */
static bool in_batch;

static RingSlot *
slot_at(uint64 position)
{
	return &ring[position % RING_SLOTS];
}

static uint16 *
expected_of(BlockNumber blkno)
{
	return &expected[blkno % RING_SLOTS];
}

/* The slot's response is not wanted any more, or has been handed out. */
static void
set_used(RingSlot *slot)
{
	if (slot->used)
		return;
	slot->used = true;
	if (slot->request.kind == REQUEST_GETPAGE)
		--*expected_of(slot->request.blkno);
}

static void
empty_ring(void)
{
	for (; ring_tail < ring_head; ring_tail++)
	{
		RingSlot   *slot = slot_at(ring_tail);

		set_used(slot);
		copy_stream_release(&slot->response);
	}
	ring_received = ring_head;
	unflushed = 0;
}

static char *
put_uint32(char *to, uint32 value)
{
	uint32		network = pg_hton32(value);

	memcpy(to, &network, sizeof(network));
	return to + sizeof(network);
}

/* Writes the request as it goes over the wire; returns its length in bytes. */
static int
encode_request(const PageRequest *request, char *out)
{
	char	   *to = out;
	uint64		lsn = pg_hton64(request->lsn);

	*to++ = (char) request->kind;
	*to++ = request->latest ? 1 : 0;
	memcpy(to, &lsn, sizeof(lsn));
	to += sizeof(lsn);
	if (request->kind == REQUEST_DBSIZE)
		return put_uint32(to, request->node.dbNode) - out;
	to = put_uint32(to, request->node.spcNode);
	to = put_uint32(to, request->node.dbNode);
	if (request->kind == REQUEST_DBSIZE_IN)
		return to - out;
	to = put_uint32(to, request->node.relNode);
	*to++ = (char) request->fork;
	if (request->kind == REQUEST_GETPAGE)
		to = put_uint32(to, request->blkno);
	return to - out;
}

/* Queues the request at the head of the ring, which has room. */
static void
enqueue(const PageRequest *request)
{
	char		message[REQUEST_LEN_MAX];
	int			length = encode_request(request, message);
	RingSlot   *slot = slot_at(ring_head);

	pageserver_send(message, length);
	slot->request = *request;
	slot->response = (ReceivedMessage) {0};
	slot->used = false;
	slot->to_store = request->kind == REQUEST_GETPAGE;
	if (request->kind == REQUEST_GETPAGE)
		++*expected_of(request->blkno);
	ring_head++;
	unflushed++;
}

/* Files a response under the oldest unanswered request. */
static void
file_response(ReceivedMessage message)
{
	if (ring_received == ring_head)
	{
		copy_stream_release(&message);
		pageserver_disconnect();
		empty_ring();
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the page server sent a response that nobody asked for")));
	}
	slot_at(ring_received)->response = message;
	ring_received++;
}

/* Waits for one more response. False if the connection broke. */
static bool
receive_one(TimestampTz deadline)
{
	ReceivedMessage message;

	unflushed = 0;
	if (pageserver_receive_wait(&message, deadline) == DISCONNECTED)
	{
		empty_ring();
		return false;
	}
	file_response(message);
	return true;
}

/* Files what has been read from the socket already. */
static void
file_buffered(void)
{
	ReceivedMessage message;

	while (ring_received < ring_head && pageserver_take(&message))
		file_response(message);
}

/* Takes responses that are there already. False if the connection broke. */
static bool
receive_available(void)
{
	while (ring_received < ring_head)
	{
		ReceivedMessage message;
		ReceiveResult result = pageserver_receive(&message);

		if (result == NOTHING_YET)
			return true;
		if (result == DISCONNECTED)
		{
			empty_ring();
			return false;
		}
		file_response(message);
	}
	return true;
}

static bool
ring_is_full(void)
{
	return ring_head - ring_tail >= Min(neon_readahead_buffer_size, RING_SLOTS);
}

/* Drops answers from the tail that were used, and unused ones while the ring is full. */
static void
shrink_ring(void)
{
	while (ring_tail < ring_received && (slot_at(ring_tail)->used || ring_is_full()))
	{
		RingSlot   *slot = slot_at(ring_tail);

		set_used(slot);
		copy_stream_release(&slot->response);
		ring_tail++;
	}
}

/* Is this slot's page, there or on its way, the one that is wanted now? */
static bool
slot_serves(const RingSlot *slot, const PageRequest *wanted)
{
	const PageRequest *sent = &slot->request;

	return sent->kind == REQUEST_GETPAGE && sent->blkno == wanted->blkno &&
		sent->fork == wanted->fork && RelFileNodeEquals(sent->node, wanted->node) &&
		sent->latest == wanted->latest && sent->lsn >= wanted->not_before &&
		(wanted->latest || sent->lsn <= wanted->lsn);
}

/* Position of a page asked for ahead, or ring_head if there is none. */
static uint64
find_prefetched(const PageRequest *wanted)
{
	uint64		position = ring_tail;

	if (*expected_of(wanted->blkno) == 0)
		return ring_head;
	for (; position < ring_head; position++)
	{
		RingSlot   *slot = slot_at(position);

		if (!slot->used && slot_serves(slot, wanted))
			break;
	}
	return position;
}

static void
flush_requests(void)
{
	unflushed = 0;
	if (!pageserver_flush())
		empty_ring();
}

bool
pagestream_expects_block(BlockNumber blkno)
{
	return *expected_of(blkno) > 0;
}

bool
pagestream_expects(PageRequest *request)
{
	uint64		position = find_prefetched(request);

	if (position == ring_head)
		return false;
	request->cache_changes = slot_at(position)->request.cache_changes;
	return true;
}

void
pagestream_prefetch(const PageRequest *request)
{
	/* Reading ahead is not worth waiting for a connection. */
	if (!pageserver_connected() || find_prefetched(request) < ring_head)
		return;
	if (ring_is_full() && !receive_available())
		return;
	shrink_ring();
	if (ring_is_full())
		return;
	enqueue(request);
	if (!in_batch && unflushed >= neon_flush_output_after)
		flush_requests();
}

void
pagestream_begin_batch(void)
{
	in_batch = true;
}

void
pagestream_end_batch(void)
{
	in_batch = false;
	if (unflushed > 0)
		flush_requests();
}

/* A request that is waited for, and what came of it. */
typedef struct Call
{
	const PageRequest *request;
	ReceivedMessage response;
	uint64		position;		/* where in the ring it was */
	bool		to_store;		/* the slot's */
} Call;

/* Sends the request, and waits until its response has arrived. False if the connection broke. */
static bool
try_call(Call *call, TimestampTz deadline)
{
	const PageRequest *request = call->request;
	RingSlot   *slot;
	uint64		position = request->kind == REQUEST_GETPAGE ? find_prefetched(request) : ring_head;

	if (position == ring_head)
	{
		for (shrink_ring(); ring_is_full(); shrink_ring())
		{
			if (!receive_one(deadline))
				return false;
		}
		position = ring_head;
		enqueue(request);
	}
	while (ring_received <= position)
	{
		if (!receive_one(deadline))
			return false;
	}
	slot = slot_at(position);
	call->position = position;
	call->response = slot->response;
	call->to_store = slot->to_store;
	slot->response = (ReceivedMessage) {0};
	set_used(slot);
	shrink_ring();
	return true;
}

static const char *
request_name(const PageRequest *request)
{
	if (request->kind == REQUEST_DBSIZE)
		return psprintf("the size of database %u", request->node.dbNode);
	if (request->kind == REQUEST_GETPAGE)
		return psprintf("block %u of relation %s", request->blkno,
						relpathperm(request->node, request->fork));
	return psprintf("the size of relation %s", relpathperm(request->node, request->fork));
}

/* Raises what the page server answered instead of a result of `length` bytes. */
static void
report_bad_response(const PageRequest *request, ReceivedMessage response)
{
	if (response.length >= 1 && (uint8) response.data[0] == RESPONSE_TAG_ERROR)
	{
		char	   *text = pnstrdup(response.data + 1, response.length - 1);

		copy_stream_release(&response);
		ereport(ERROR,
				(errcode(ERRCODE_IO_ERROR),
				 errmsg("could not read %s from the page server at LSN %X/%X: %s",
						request_name(request), LSN_FORMAT_ARGS(request->lsn), text)));
	}
	copy_stream_release(&response);
	/* The stream may be out of step: start over with a new one. */
	pageserver_disconnect();
	empty_ring();
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("the page server sent a malformed response to the request for %s",
					request_name(request))));
}

static bool
is_result(const PageRequest *request, const ReceivedMessage *response, int length)
{
	return response->length == 1 + length && (uint8) response->data[0] == RESPONSE_TAG(request->kind);
}

/* One request with its answer: `length` bytes into `result`. */
static void
perform(Call *call, char *result, int length)
{
	/* Replay that gave up would end the server, with all its sessions. */
	TimestampTz deadline = AmStartupProcess() ? DT_NOEND :
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), neon_pageserver_timeout_s * INT64CONST(1000));

	do
	{
		pageserver_connect(deadline);
	} while (!try_call(call, deadline));

	if (!is_result(call->request, &call->response, length))
		report_bad_response(call->request, call->response);
	memcpy(result, call->response.data + 1, length);
	copy_stream_release(&call->response);
}

static void
add_to_run(FileCacheRun *run, const char *page, uint32 changes)
{
	run->blocks[run->length].page = page;
	run->blocks[run->length].changes = changes;
	run->length++;
}

/* Does the slot hold the block that continues the run which `first` has begun? */
static bool
continues_run(const RingSlot *slot, const PageRequest *first, const FileCacheRun *run)
{
	const PageRequest *sent = &slot->request;

	return slot->to_store && !slot->used && sent->blkno == first->blkno + run->length && sent->fork == first->fork &&
		RelFileNodeEquals(sent->node, first->node) && is_result(sent, &slot->response, BLCKSZ);
}

void
pagestream_get_page_to_store(const PageRequest *request, char *page, FileCacheRun *to_store)
{
	Call		call = {.request = request};
	BufferTag	tag;
	int			limit;

	Assert(request->kind == REQUEST_GETPAGE);
	perform(&call, page, BLCKSZ);
	to_store->length = 0;
	if (!call.to_store)
		return;
	file_buffered();
	INIT_BUFFERTAG(tag, request->node, request->fork, request->blkno);
	limit = file_cache_run_limit(&tag);
	add_to_run(to_store, page, request->cache_changes);
	for (uint64 position = call.position + 1;
		 position < ring_received && to_store->length < limit; position++)
	{
		RingSlot   *slot = slot_at(position);

		if (!continues_run(slot, request, to_store))
			break;
		add_to_run(to_store, slot->response.data + 1, slot->request.cache_changes);
		slot->to_store = false;
	}
}

/* A request whose answer is a result of fixed length. */
static void
ask(const PageRequest *request, void *result, int length)
{
	Call		call = {.request = request};

	perform(&call, result, length);
}

void
pagestream_get_page(const PageRequest *request, char *page)
{
	Assert(request->kind == REQUEST_GETPAGE);
	ask(request, page, BLCKSZ);
}

bool
pagestream_exists(const PageRequest *request)
{
	char		result;

	Assert(request->kind == REQUEST_EXISTS);
	ask(request, &result, sizeof(result));
	return result != 0;
}

BlockNumber
pagestream_nblocks(const PageRequest *request)
{
	uint32		result;

	Assert(request->kind == REQUEST_NBLOCKS);
	ask(request, &result, sizeof(result));
	return pg_ntoh32(result);
}

int64
pagestream_database_size(const PageRequest *request)
{
	uint64		result;

	Assert(request->kind == REQUEST_DBSIZE || request->kind == REQUEST_DBSIZE_IN);
	ask(request, &result, sizeof(result));
	return (int64) pg_ntoh64(result);
}
