/* madvise is not C11. */
#define _DEFAULT_SOURCE

#include "base/alloc.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <malloc.h>
#elif defined(__linux__)
#include <sys/mman.h>
#endif

#include "base/size.h"

enum { ALIGNMENT = 64 };

/* The test hook's state; all zero outside of tests. */
static atomic_size_t calls;
static atomic_size_t fail_at;
static atomic_bool fail_after;

static bool told_to_fail(void)
{
    const size_t call = atomic_fetch_add(&calls, 1) + 1;
    const size_t n = atomic_load(&fail_at);
    return n != 0 && (call == n || (call > n && atomic_load(&fail_after)));
}

/* Memory that is read in one go wants large pages: with pages of 4 KiB a Zen 4 core reads 16 to 20 GB/s, with
 * pages of 2 MiB 27.  Where the system has none to give, the advice does nothing. */
enum { LARGE_PAGE = 2 << 20 };

static size_t alignment_of(size_t bytes) { return bytes < 2 * LARGE_PAGE ? ALIGNMENT : LARGE_PAGE; }

static void *wish_large_pages(void *memory, size_t bytes, size_t alignment)
{
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
    if (memory && alignment == LARGE_PAGE) (void)madvise(memory, bytes, MADV_HUGEPAGE);
#else
    (void)bytes, (void)alignment;
#endif
    return memory;
}

static void *allocate(size_t bytes, size_t alignment)
{
    size_t rounded;
    if (!oq_size_align(bytes ? bytes : 1, alignment, &rounded)) return NULL;
    if (rounded > PTRDIFF_MAX) return NULL; /* no allocator has it, sanitizers stop the process over it */
#ifdef _WIN32
    return _aligned_malloc(rounded, ALIGNMENT);
#else
    return wish_large_pages(aligned_alloc(alignment, rounded), rounded, alignment);
#endif
}

void *oq_malloc(size_t bytes) { return told_to_fail() ? NULL : allocate(bytes, alignment_of(bytes)); }

void *oq_malloc_kept(size_t bytes) { return allocate(bytes, bytes < LARGE_PAGE / 8 ? ALIGNMENT : LARGE_PAGE); }

/* What madvise wants in wholes; where pages are larger it refuses, and zeros are written. */
enum { PAGE = 4096 };

/* Linux hands out zeros for pages it was told to forget, once they are touched. */
static bool forget(void *memory, size_t bytes)
{
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
    return madvise(memory, bytes / PAGE * PAGE, MADV_DONTNEED) == 0;
#else
    (void)memory;
    (void)bytes;
    return false;
#endif
}

void *oq_zeroed(size_t bytes)
{
    const size_t alignment = alignment_of(bytes) < PAGE ? PAGE : alignment_of(bytes);
    uint8_t *memory = told_to_fail() ? NULL : allocate(bytes, alignment);
    const size_t done = memory && forget(memory, bytes) ? bytes / PAGE * PAGE : 0;
    if (memory) memset(memory + done, 0, bytes - done);
    return memory;
}

void oq_free(void *pointer)
{
#ifdef _WIN32
    _aligned_free(pointer);
#else
    free(pointer);
#endif
}

size_t oq_malloc_fail_at(size_t n, bool persistent)
{
    atomic_store(&fail_at, 0);
    atomic_store(&fail_after, persistent);
    const size_t made = atomic_exchange(&calls, 0);
    atomic_store(&fail_at, n);
    return made;
}
