/* What the two files that include dnnl.h share: the loaded library, and how to call into it. */
#ifndef OQ_MATH_ONEDNN_LIBRARY_H
#define OQ_MATH_ONEDNN_LIBRARY_H

#ifdef OQ_HAVE_DNNL_HEADERS

#include <dnnl.h>
#include <signal.h>
#include <stdbool.h>

#include "base/status.h"

/* Look a symbol up; false if it is missing. */
bool oq_library_find(void *handle, const char *name, void *function_pointer);

/* Bracket every product: oneDNN on one thread, signals held. */
typedef struct {
    sigset_t signals;
    int threads;
} oq_library_call;
oq_library_call oq_library_enter(void);
oq_code oq_library_leave(const oq_library_call *call, dnnl_status_t status);

/* Find what matrix-multiplication primitives need; false if anything is missing. */
bool oq_bf16_bind(void *handle);

#endif

#endif
