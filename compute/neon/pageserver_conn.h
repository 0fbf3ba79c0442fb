/*
 * pageserver_conn.h
 *	  This process's connection to the page server: messages out, messages in, waiting.
 */
#ifndef NEON_PAGESERVER_CONN_H
#define NEON_PAGESERVER_CONN_H

#include "utils/timestamp.h"

#include "copy_stream.h"

/* Checks neon.pageserver_connstring without connecting: the reason it is refused, or NULL. */
extern const char *pageserver_connstring_problem(const char *connstring);

/*
 * Connects and starts the pagestream protocol, retrying with growing delays until `deadline`, then ERROR.
 * Does nothing if connected.
 */
extern void pageserver_connect(TimestampTz deadline);

extern bool pageserver_connected(void);

/* Queues one message. */
extern void pageserver_send(const char *message, int length);

/* Sends what is queued as far as the socket takes it without waiting. False if the connection is broken; it is closed then. */
extern bool pageserver_flush(void);

/* One message without waiting; release it with copy_stream_release(). After DISCONNECTED the connection is closed. */
extern ReceiveResult pageserver_receive(ReceivedMessage *message);

/* Takes a message that has been read from the socket already. */
extern bool pageserver_take(ReceivedMessage *message);

/* Waits for a message, sending what is queued; ERROR at `deadline` or when the query is cancelled. */
extern ReceiveResult pageserver_receive_wait(ReceivedMessage *message, TimestampTz deadline);

extern void pageserver_disconnect(void);

#endif							/* NEON_PAGESERVER_CONN_H */
