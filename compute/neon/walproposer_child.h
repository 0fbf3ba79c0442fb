/*
 * walproposer_child.h
 *	  The walproposer binary as a child process.
 */
#ifndef NEON_WALPROPOSER_CHILD_H
#define NEON_WALPROPOSER_CHILD_H

/* Exit status of the binary when a newer term has fenced it off. */
#define WALPROPOSER_FENCED 3

typedef struct WalproposerChild
{
	pid_t		pid;			/* of its keeper; see walproposer_child.c */
	int			output;			/* read end of the binary's standard output, not blocking */
} WalproposerChild;

/* Starts it; ERROR if no process can be made. */
extern WalproposerChild walproposer_child_start(void);

/* Stops it if it runs, and waits until it has gone. For a keeper that may be another worker's child. */
extern void walproposer_child_stop(pid_t keeper);

#endif							/* NEON_WALPROPOSER_CHILD_H */
