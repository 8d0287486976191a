#include "math/lay_out.h"

#include "base/parallel.h"
#include "base/size.h"
#include "math/byte_vectors.h"
#include "math/igemm.h"
#include "math/sliver.h"
#include "math/transpose_bytes.h"

typedef struct {
    const oq_right *b;
    int8_t *to;
    int32_t *sums;
} packing;

static void run_sliver(void *user, int64_t sliver, int worker)
{
    const packing *p = user;
    (void)worker;
    oq_sliver_of(p->b, sliver * OQ_SLIVER, p->to + sliver * oq_sliver_bytes(p->b->k), p->sums + sliver * OQ_SLIVER);
}

static oq_code pack(oq_context *context, oq_right *b)
{
    const int64_t slivers = oq_pieces(b->n, OQ_SLIVER);
    packing p = {.b = b};
    OQ_NEW(context, p.to, slivers * oq_sliver_bytes(b->k));
    OQ_NEW(context, p.sums, slivers * OQ_SLIVER);
    oq_parallel_for(context->threads, slivers, run_sliver, &p);
    b->layout = OQ_IN_SLIVERS;
    b->bytes = p.to;
    b->sum = p.sums;
    return OQ_OK;
}

static oq_code turn(oq_context *context, oq_right *b)
{
    uint8_t *turned;
    OQ_NEW(context, turned, b->n * b->k);
    oq_transpose_bytes(context, (const uint8_t *)b->bytes, b->k, b->n, b->flip, turned);
    b->layout = OQ_BY_COLUMNS;
    b->bytes = (const int8_t *)turned;
    return OQ_OK;
}

oq_code oq_lay_out(oq_context *context, oq_right *b, bool often)
{
    int32_t *sums;
    if (oq_igemm_packs()) return often ? pack(context, b) : OQ_OK;
    if (b->layout == OQ_BY_ROWS) OQ_TRY(turn(context, b));
    OQ_NEW(context, sums, b->n);
    oq_sum_bytes(context, b->bytes, b->n, b->k, sums);
    b->sum = sums;
    return OQ_OK;
}
