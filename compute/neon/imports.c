/*
 * imports.c
 *	  Binding what the server imports from shared libraries to functions of ours.
 *
 * The main program calls a library's function through a slot of its global offset table. The dynamic
 * section says which slot belongs to which symbol (ELF specification, "dynamic linking"). Calls
 * of other libraries, this one included, have slots of their own and are not affected.
 */
#include "postgres.h"

#include <link.h>

#include "imports.h"
#include "readonly_table.h"

#if defined(__x86_64__)
#define IS_FUNCTION_SLOT(type) ((type) == R_X86_64_JUMP_SLOT || (type) == R_X86_64_GLOB_DAT)
#elif defined(__aarch64__)
#define IS_FUNCTION_SLOT(type) ((type) == R_AARCH64_JUMP_SLOT || (type) == R_AARCH64_GLOB_DAT)
#else
#error "the relocations of imported functions are not known for this architecture"
#endif

/* What the dynamic section of the main program tells. The loader has made its addresses absolute. */
typedef struct DynamicSection
{
	ElfW(Addr) base;
	const ElfW(Sym) *symbols;
	const char *names;
	const ElfW(Rela) *relocations[2];
	size_t		counts[2];
} DynamicSection;

static void
read_entry(const ElfW(Dyn) *entry, DynamicSection *section)
{
	switch (entry->d_tag)
	{
		case DT_SYMTAB:
			section->symbols = (const void *) entry->d_un.d_ptr;
			break;
		case DT_STRTAB:
			section->names = (const void *) entry->d_un.d_ptr;
			break;
		case DT_RELA:
			section->relocations[0] = (const void *) entry->d_un.d_ptr;
			break;
		case DT_RELASZ:
			section->counts[0] = entry->d_un.d_val / sizeof(ElfW(Rela));
			break;
		case DT_JMPREL:
			section->relocations[1] = (const void *) entry->d_un.d_ptr;
			break;
		case DT_PLTRELSZ:
			section->counts[1] = entry->d_un.d_val / sizeof(ElfW(Rela));
			break;
		default:
			break;
	}
}

/* For dl_iterate_phdr, which calls it for the main program first: ends there. */
static int
read_main_program(struct dl_phdr_info *info, size_t size, void *argument)
{
	DynamicSection *section = argument;

	section->base = info->dlpi_addr;
	for (int i = 0; i < info->dlpi_phnum; i++)
	{
		const ElfW(Dyn) *entry = (const void *) (info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);

		if (info->dlpi_phdr[i].p_type != PT_DYNAMIC)
			continue;
		for (; entry->d_tag != DT_NULL; entry++)
			read_entry(entry, section);
	}
	return 1;
}

void
bind_import(const char *symbol, void *function)
{
	DynamicSection section = {0};
	int			bound = 0;

	dl_iterate_phdr(read_main_program, &section);
	for (int list = 0; section.symbols != NULL && section.names != NULL && list < 2; list++)
	{
		for (size_t i = 0; section.relocations[list] != NULL && i < section.counts[list]; i++)
		{
			const ElfW(Rela) *relocation = &section.relocations[list][i];
			const ElfW(Sym) *imported = &section.symbols[ELF64_R_SYM(relocation->r_info)];

			if (!IS_FUNCTION_SLOT(ELF64_R_TYPE(relocation->r_info)) ||
				strcmp(section.names + imported->st_name, symbol) != 0)
				continue;
			overwrite_protected((void *) (section.base + relocation->r_offset), &function,
								sizeof(function));
			bound++;
		}
	}
	if (bound == 0)
		ereport(FATAL,
				(errmsg("neon: this server (%s) does not import %s()", PG_VERSION_STR, symbol),
				 errhint("This build of PostgreSQL is not supported.")));
}
