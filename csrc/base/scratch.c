/* Keys of threads are POSIX, not C11. */
#define _POSIX_C_SOURCE 200809L

#include "base/scratch.h"

#include "base/alloc.h"

#ifndef _WIN32

#include <pthread.h>
#include <stdbool.h>

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

static scratch *of_this_thread(void)
{
    (void)pthread_once(&once, create_key);
    if (!has_key) return NULL;
    scratch *kept = pthread_getspecific(key);
    if (kept || !(kept = oq_malloc(sizeof *kept))) return kept;
    *kept = (scratch){0};
    if (pthread_setspecific(key, kept) == 0) return kept;
    oq_free(kept);
    return NULL;
}

void *oq_scratch(size_t bytes)
{
    scratch *kept = of_this_thread();
    if (!kept || kept->bytes >= bytes) return kept ? kept->memory : NULL;
    oq_free(kept->memory);
    kept->memory = oq_malloc_large(bytes);
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
