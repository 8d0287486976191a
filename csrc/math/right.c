#include "math/right.h"

#include "base/parallel.h"
#include "base/size.h"
#include "math/byte_vectors.h"
#include "math/igemm.h"
#include "math/sliver.h"
#include "math/transpose_bytes.h"

void oq_right_sliver(const oq_right *b, int64_t column, int8_t *to, int32_t *sums)
{
    const bool by_rows = b->layout == OQ_BY_ROWS;
    const oq_sliver_source from = {.x = (const uint8_t *)b->bytes + (by_rows ? column : column * b->k),
                                   .ld = by_rows ? b->n : b->k,
                                   .columns = oq_least(OQ_SLIVER, b->n - column),
                                   .k = b->k};
    if (by_rows)
        oq_sliver_of_byte_rows(&from, b->flip, to);
    else
        oq_sliver_of_columns(&from, 1, to);
    oq_sliver_sums(to, b->k, sums);
}

typedef struct {
    const oq_right *b;
    int8_t *to;
    int32_t *sums;
} packing;

static void run_sliver(void *user, int64_t sliver, int worker)
{
    const packing *p = user;
    (void)worker;
    oq_right_sliver(p->b, sliver * OQ_SLIVER, p->to + sliver * oq_sliver_bytes(p->b->k), p->sums + sliver * OQ_SLIVER);
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
