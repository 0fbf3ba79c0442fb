/*
 * pageserver_conn.h
 *	  This process's connection to the page server: messages out, messages in, waiting.
 */
#ifndef NEON_PAGESERVER_CONN_H
#define NEON_PAGESERVER_CONN_H

#include "utils/timestamp.h"

/* Checks neon.pageserver_connstring without connecting: the reason it is refused, or NULL. */
extern const char *pageserver_connstring_problem(const char *connstring);

/*
 * Connects and starts the pagestream protocol, retrying with growing delays until `deadline`, then ERROR.
 * Does nothing if connected.
 */
extern void pageserver_connect(TimestampTz deadline);

extern bool pageserver_connected(void);

/* Queues one message. False if the connection is broken; it is closed then. */
extern bool pageserver_send(const char *message, int length);

/* Sends what is queued as far as the socket takes it without waiting. False as above. */
extern bool pageserver_flush(void);

typedef enum ReceiveResult
{
	RECEIVED,
	NOTHING_YET,				/* only without waiting */
	DISCONNECTED,				/* closed; what was in flight is lost */
} ReceiveResult;

/* One message; release it with PQfreemem. */
typedef struct ReceivedMessage
{
	char	   *data;
	int			length;
} ReceivedMessage;

extern ReceiveResult pageserver_receive(ReceivedMessage *message);

/* Waits for a message, sending what is queued; ERROR at `deadline` or when the query is cancelled. */
extern ReceiveResult pageserver_receive_wait(ReceivedMessage *message, TimestampTz deadline);

extern void pageserver_disconnect(void);

#endif							/* NEON_PAGESERVER_CONN_H */
