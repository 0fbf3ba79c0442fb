/*
 * copy_stream.h
 *	  CopyData messages over a socket, in both directions, without waiting.
 */
#ifndef NEON_COPY_STREAM_H
#define NEON_COPY_STREAM_H

typedef enum ReceiveResult
{
	RECEIVED,
	NOTHING_YET,				/* only without waiting */
	DISCONNECTED,				/* what was in flight is lost */
} ReceiveResult;

/* The payload of one message: bytes of the buffer it came in. Release it with copy_stream_release(). */
typedef struct ReceivedMessage
{
	const char *data;
	int			length;
	struct Chunk *chunk;
} ReceivedMessage;

/* Begins on a connected, non-blocking socket that has just been told that the copy starts. */
extern void copy_stream_open(pgsocket socket);

/* Forgets what was not sent or not taken yet. Messages taken before stay valid until released. */
extern void copy_stream_close(void);

/* Queues a message. */
extern void copy_stream_put(const char *message, int length);

typedef enum FlushResult
{
	FLUSHED,
	FLUSH_BLOCKED,				/* the socket takes no more now */
	FLUSH_FAILED,
} FlushResult;

/* Sends what is queued as far as the socket takes it. */
extern FlushResult copy_stream_flush(void);

/* Takes the next message if it has been read from the socket already. */
extern bool copy_stream_take(ReceivedMessage *message);

/* The same, reading from the socket if need be. */
extern ReceiveResult copy_stream_receive(ReceivedMessage *message);

extern void copy_stream_release(ReceivedMessage *message);

/* Why the stream has ended: FLUSH_FAILED, DISCONNECTED. */
extern const char *copy_stream_problem(void);

#endif							/* NEON_COPY_STREAM_H */
