/* madvise is not C11. */
#define _DEFAULT_SOURCE

#include "base/pages.h"

#if defined(__unix__) || defined(__APPLE__)
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

/* Every page that holds one of the bytes.  Advice is not an obligation: a refusal changes nothing. */
static void advise(const void *start, size_t bytes, int advice)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)start, first = at / page * page;
    if (bytes) (void)madvise((void *)first, (size_t)(at - first) + bytes, advice);
}

void oq_pages_want(const void *start, size_t bytes) { advise(start, bytes, MADV_WILLNEED); }

void oq_pages_drop(const void *start, size_t bytes) { advise(start, bytes, MADV_DONTNEED); }
#else
void oq_pages_want(const void *start, size_t bytes) { (void)start, (void)bytes; }

void oq_pages_drop(const void *start, size_t bytes) { (void)start, (void)bytes; }
#endif
