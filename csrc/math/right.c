#include "math/right.h"

#include "base/parallel.h"
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
    oq_pack_sliver(p->b, sliver * OQ_SLIVER, p->to + sliver * oq_quads(p->b) * OQ_QUAD, p->sums + sliver * OQ_SLIVER);
}

static oq_code pack(oq_context *context, oq_right *b)
{
    packing p = {.b = b};
    OQ_NEW(context, p.to, oq_slivers(b) * oq_quads(b) * OQ_QUAD);
    OQ_NEW(context, p.sums, oq_slivers(b) * OQ_SLIVER);
    oq_parallel_for(context->threads, oq_slivers(b), run_sliver, &p);
    b->layout = OQ_IN_SLIVERS;
    b->bytes = p.to;
    b->sum = p.sums;
    return OQ_OK;
}

oq_code oq_right_of_columns(oq_context *context, const uint8_t *x, int64_t k, int64_t n, int most, bool often,
                            oq_right *b)
{
    int32_t *sums;
    *b = (oq_right){.layout = OQ_BY_COLUMNS, .n = n, .k = k, .bytes = (const int8_t *)x, .most = most};
    if (oq_igemm_packs()) return often ? pack(context, b) : OQ_OK;
    OQ_NEW(context, sums, n);
    oq_sum_bytes(context, b->bytes, n, k, sums);
    b->sum = sums;
    return OQ_OK;
}

oq_code oq_right_of_rows(oq_context *context, const uint8_t *x, int64_t k, int64_t n, uint8_t flip, int most,
                         bool often, oq_right *b)
{
    uint8_t *turned;
    *b = (oq_right){.layout = OQ_BY_ROWS, .n = n, .k = k, .bytes = (const int8_t *)x, .flip = flip, .most = most};
    if (oq_igemm_packs()) return often ? pack(context, b) : OQ_OK;
    OQ_NEW(context, turned, n * k);
    oq_transpose_bytes(context, x, k, n, flip, turned);
    return oq_right_of_columns(context, turned, k, n, most, often, b);
}
