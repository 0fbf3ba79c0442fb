/*
 * database_commands.h
 *	  Commands that change relations behind the storage manager's back.
 */
#ifndef NEON_DATABASE_COMMANDS_H
#define NEON_DATABASE_COMMANDS_H

extern void database_commands_init(void);

#endif							/* NEON_DATABASE_COMMANDS_H */
