/*
 * readonly_table.c
 *	  Changing constant tables and code of the running server.
 *
 * For the postmaster, before it has children: they inherit what was changed. The pages are private
 * copies of this process, so the server's file and other clusters on the machine are not touched.
 */
#include "postgres.h"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include "readonly_table.h"

/* Protection of the mapping that contains an address, from the kernel's list of mappings. */
static int
protection_of(const void *address)
{
	FILE	   *maps = fopen("/proc/self/maps", "r");
	char		line[MAXPGPATH + 128];
	int			protection = -1;

	if (maps == NULL)
		return -1;
	while (protection < 0 && fgets(line, sizeof(line), maps) != NULL)
	{
		unsigned long start,
					end;
		char		flags[5];

		if (sscanf(line, "%lx-%lx %4s", &start, &end, flags) != 3)
			continue;
		if ((unsigned long) address < start || (unsigned long) address >= end)
			continue;
		protection = (flags[0] == 'r' ? PROT_READ : 0) |
			(flags[1] == 'w' ? PROT_WRITE : 0) |
			(flags[2] == 'x' ? PROT_EXEC : 0);
	}
	fclose(maps);
	return protection;
}

void
overwrite_protected(void *target, const void *bytes, size_t length)
{
	uintptr_t	page_size = sysconf(_SC_PAGESIZE);
	uintptr_t	start = (uintptr_t) target & ~(page_size - 1);
	size_t		span = (uintptr_t) target + length - start;
	int			protection = protection_of(target);

	if (protection < 0)
		ereport(FATAL,
				(errmsg("neon: cannot tell how the server's memory at %p is protected", target)));
	/* Nothing else runs in the postmaster now, so code need not stay executable meanwhile. */
	if (mprotect((void *) start, span, PROT_READ | PROT_WRITE) != 0)
		ereport(FATAL,
				(errmsg("neon: cannot make the server's memory writable: %m"),
				 errhint("A security policy of this machine forbids what the extension depends on.")));
	memcpy(target, bytes, length);
	if (mprotect((void *) start, span, protection) != 0)
		ereport(FATAL,
				(errmsg("neon: cannot protect the server's memory again: %m")));
	__builtin___clear_cache((char *) target, (char *) target + length);
}

typedef struct TableSearch
{
	void	   *const *pattern;
	int			count;
	void	   *found;
	int			matches;
} TableSearch;

/* Looks through the data segments of the main program, which comes first in the list. */
static int
search_program(struct dl_phdr_info *info, size_t size, void *argument)
{
	TableSearch *search = argument;
	size_t		bytes = search->count * sizeof(void *);

	for (int i = 0; i < info->dlpi_phnum; i++)
	{
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];
		char	   *start = (char *) (info->dlpi_addr + header->p_vaddr);

		/* p_filesz: a constant table is initialized data, never bss. */
		if (header->p_type != PT_LOAD || (header->p_flags & PF_X) || !(header->p_flags & PF_R))
			continue;
		for (size_t offset = 0; offset + bytes <= header->p_filesz; offset += sizeof(void *))
		{
			if (memcmp(start + offset, search->pattern, bytes) == 0)
			{
				search->found = start + offset;
				search->matches++;
			}
		}
	}
	return 1;
}

void *
find_pointer_table(void *const *pattern, int count)
{
	TableSearch search = {.pattern = pattern, .count = count};

	dl_iterate_phdr(search_program, &search);
	return search.matches == 1 ? search.found : NULL;
}
