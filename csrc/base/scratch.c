/* Keys of threads are POSIX, not C11. */
#define _POSIX_C_SOURCE 200809L

#include "base/scratch.h"

#include "base/alloc.h"

#ifndef _WIN32

#include <stdbool.h>
#include <string.h>

typedef struct {
    size_t bytes;
    void *memory;
} scratch;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool has_key;

static void drop(void *user)
{
    scratch *kept = user;
    oq_free(kept->memory);
    oq_free(kept);
}

static void create_key(void) { has_key = pthread_key_create(&key, drop) == 0; }

void *oq_thread_kept(pthread_key_t of, size_t bytes)
{
    void *kept = pthread_getspecific(of);
    if (kept || !(kept = oq_malloc_kept(bytes))) return kept;
    memset(kept, 0, bytes);
    if (pthread_setspecific(of, kept) == 0) return kept;
    oq_free(kept);
    return NULL;
}

void *oq_scratch(size_t bytes)
{
    (void)pthread_once(&once, create_key);
    scratch *kept = has_key ? oq_thread_kept(key, sizeof *kept) : NULL;
    if (!kept || kept->bytes >= bytes) return kept ? kept->memory : NULL;
    oq_free(kept->memory);
    kept->memory = oq_malloc_kept(bytes);
    kept->bytes = kept->memory ? bytes : 0;
    return kept->memory;
}

#else /* nothing that needs it is compiled there */

void *oq_scratch(size_t bytes)
{
    (void)bytes;
    return NULL;
}

#endif
