/* The one malloc of the core, with a hook that lets a test fail the n-th call. */
#ifndef OQ_BASE_ALLOC_H
#define OQ_BASE_ALLOC_H

#include <stdbool.h>
#include <stddef.h>

/* 64-byte aligned; NULL when out of memory. */
void *oq_malloc(size_t bytes);
/* The same for what outlives the call, in large pages from 256 KiB on. The hook below does not count it: whether a call
 * needs it depends on the calls before. */
void *oq_malloc_kept(size_t bytes);
/* As oq_malloc, all zeros; on Linux pages that are never touched take no memory. */
void *oq_zeroed(size_t bytes);
void oq_free(void *pointer);

/* Test hook: the n-th call from now (1-based) fails, and every later one too
 * when persistent. 0 switches it off. Returns the number of calls made since
 * the last use of the hook. */
size_t oq_malloc_fail_at(size_t n, bool persistent);

#endif
