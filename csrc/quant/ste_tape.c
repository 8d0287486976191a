#include "quant/ste_tape.h"

#ifdef OQ_DOUBLE
#include "base/alloc.h"
#include "base/size.h"

/* A chain of segments, one a quantizer call, in the order of the calls. */
typedef struct segment {
    struct segment *next;
    int64_t count;
    double values[];
} segment;

static segment *first, *last, *cursor;
static oq_tape_mode state;

static void forget(void)
{
    while (first) {
        segment *next = first->next;
        oq_free(first);
        first = next;
    }
    last = NULL;
}

void oq_tape_start(oq_tape_mode mode)
{
    if (mode != OQ_TAPE_REPLAY) forget();
    cursor = first;
    state = mode;
}

oq_tape_mode oq_tape_state(void) { return state; }

static double *append(int64_t count)
{
    size_t bytes;
    if (!oq_size_mul((size_t)count, 2 * sizeof(double), &bytes)) return NULL;
    segment *added = oq_malloc(sizeof(segment) + bytes);
    if (!added) return NULL;
    added->next = NULL;
    added->count = count;
    if (last)
        last->next = added;
    else
        first = added;
    last = added;
    return added->values;
}

double *oq_tape_next(int64_t count)
{
    if (state == OQ_TAPE_RECORD) return append(count);
    if (!cursor || cursor->count != count) return NULL;
    double *values = cursor->values;
    cursor = cursor->next;
    return values;
}
#else
/* An empty translation unit is not ISO C. */
typedef int oq_ste_tape_unused;
#endif
