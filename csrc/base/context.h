/* What every fallible function of the core is handed: scratch memory, the
 * number of threads, the caller's wish to stop, and a place for the error. */
#ifndef OQ_BASE_CONTEXT_H
#define OQ_BASE_CONTEXT_H

#include <stdbool.h>

#include "base/arena.h"
#include "base/status.h"

typedef struct {
    oq_arena *arena;
    int threads;                /* >= 1; results do not depend on it */
    const volatile int *cancel; /* may be NULL; non-zero asks to stop */
    bool (*interrupted)(void);  /* may be NULL; asked between windows, true asks to stop */
    bool in_parts; /* products of floats may be those of bfloat16 parts, where that is faster: see gemm_amx.h */
    oq_error error;
} oq_context;

/* Record an error and return its code. */
oq_code oq_fail(oq_context *context, oq_code code, const char *format, ...) OQ_PRINTF(3, 4);
oq_code oq_fail_memory(oq_context *context, size_t count, size_t size);

/* OQ_CANCELLED once the caller has asked to stop. */
oq_code oq_check_cancel(oq_context *context);

/* pointer = count uninitialised (OQ_NEW) or zeroed (OQ_NEW_ZERO) elements from
 * the context's arena; returns OQ_OUT_OF_MEMORY from the calling function. */
#define OQ_NEW(context, pointer, count)                                                       \
    do {                                                                                      \
        (pointer) = oq_arena_alloc((context)->arena, (size_t)(count), sizeof *(pointer));     \
        if (!(pointer)) return oq_fail_memory((context), (size_t)(count), sizeof *(pointer)); \
    } while (0)
#define OQ_NEW_ZERO(context, pointer, count)                                                  \
    do {                                                                                      \
        (pointer) = oq_arena_zeroed((context)->arena, (size_t)(count), sizeof *(pointer));    \
        if (!(pointer)) return oq_fail_memory((context), (size_t)(count), sizeof *(pointer)); \
    } while (0)

#endif
