#include <stdatomic.h>
#include <string.h>

#include "base/parallel.h"
#include "base/size.h"
#include "kernels/kernel.h"

/* Rows of x whose integers are made at a time: bounds the scratch memory of a long prompt. */
enum { ROW_BLOCK = 512 };

/* An item's multiplications, some 10 us. Its rows are at least as many as hide reading the panel, and a multiple
 * of what kernels take at a time. */
static const int64_t ITEM_PRODUCTS = (int64_t)1 << 20;
enum { ITEM_ROWS = 96, ROW_STEP = 12, WIDE_ROWS = 32 };

typedef struct {
    const oq_qlinear *linear;
    const oq_activations *x;
    const oq_kernel *kernel;
    float *y;
    int64_t panels, rows; /* of an item */
    int64_t across;       /* items side by side */
    atomic_int failure;   /* the oq_code of an item that failed */
} product;

/* ---- one panel ------------------------------------------------------------ */

/* y [rows, count] = sums [rows, OQ_PANEL] x_scale + bias; scales and bias may be NULL. */
OQ_VECTORIZED static void finish_rows(const float *sums, const float *scales, const float *bias, int64_t rows,
                                      int64_t count, float *y, int64_t stride)
{
    for (int64_t r = 0; r < rows; r++, y += stride, sums += OQ_PANEL) {
        const float scale = scales ? scales[r] : 1;
        if (bias)
            for (int64_t i = 0; i < count; i++) y[i] = sums[i] * scale + bias[i];
        else
            for (int64_t i = 0; i < count; i++) y[i] = sums[i] * scale;
    }
}

static void finish(const product *p, int64_t row, int64_t rows, int64_t panel, const float *sums)
{
    const oq_qlinear *q = p->linear;
    const int64_t first = panel * OQ_PANEL, count = oq_least(OQ_PANEL, q->spec.out - first);
    const float *scales = p->x->planes == 1 ? p->x->scales + row : NULL, *bias = OQ_AT(q->bias, first);
    finish_rows(sums, scales, bias, rows, count, p->y + row * q->spec.out + first, q->spec.out);
}

static oq_tiles tiles_of(const product *p, int64_t panel, int64_t width)
{
    const oq_qlinear *q = p->linear;
    const oq_layout *l = &q->layout;
    const int64_t summed = oq_is_quantized(q->spec.activation) ? panel : 0;
    return (oq_tiles){.layout = l,
                      .codes = q->codes + panel * OQ_PANEL_TILES * l->units * l->unit_bytes,
                      .scales = q->scales + panel * OQ_PANEL * l->groups,
                      .code_sums = q->sums + summed * OQ_PANEL * l->segments,
                      .zeros = OQ_AT(q->zeros, panel * OQ_PANEL * l->groups),
                      .zero_stride = q->zeros ? width : 0,
                      .width = width,
                      .planes = p->x->planes,
                      .a_stride = p->x->stride};
}

static oq_code multiply_panel(const product *p, int64_t panel, int64_t begin, int64_t end)
{
    const oq_qlinear *q = p->linear;
    const int planes = p->x->planes, most = p->kernel->most_rows / planes, step = p->kernel->row_step;
    const int64_t tiles = oq_least(OQ_PANEL_TILES, oq_pieces(q->spec.out, OQ_TILE) - panel * OQ_PANEL_TILES);
    oq_tiles t = tiles_of(p, panel, tiles * OQ_TILE);
    _Alignas(64) float sums[OQ_MOST_ROWS * OQ_PANEL];
    uint8_t half[OQ_PANEL];
    memset(half, 1 << (q->spec.bits - 1), sizeof half);
    if (!t.zeros) t.zeros = half;
    for (int64_t row = begin, rows; row < end; row += rows) {
        rows = oq_pieces(end - row, oq_pieces(end - row, most)); /* 8 are 4 and 4, not 6 and 2 */
        rows = oq_least(oq_pieces(rows, step) * step, end - row);
        t.a = p->x->codes + row * planes * p->x->stride;
        t.pairs = p->x->pairs + row * planes * q->layout.segments;
        t.x_scales = planes == 1 ? NULL : p->x->scales + row * q->layout.segments;
        t.sums = sums;
        OQ_TRY(p->kernel->multiply(&t, (int)rows * planes, (int)tiles));
        finish(p, row, rows, panel, sums);
    }
    return OQ_OK;
}

/* ---- all panels ----------------------------------------------------------- */

static void run_item(void *user, int64_t item, int worker)
{
    product *p = user;
    const int64_t first = item % p->across * p->panels, row = item / p->across * p->rows;
    const int64_t last = oq_least(first + p->panels, oq_pieces(p->linear->spec.out, OQ_PANEL));
    (void)worker;
    for (int64_t panel = first; panel < last; panel++) {
        const oq_code code = multiply_panel(p, panel, row, oq_least(row + p->rows, p->x->rows));
        if (code != OQ_OK) atomic_store(&p->failure, (int)code);
    }
}

/* Items by the problem alone: enough rows to pay for a panel's way from memory, then panels up to some work. */
static void cut(product *p)
{
    const int64_t panels = oq_pieces(p->linear->spec.out, OQ_PANEL);
    const int64_t products = OQ_PANEL * p->linear->spec.in * p->x->planes;
    const int64_t rows = ITEM_PRODUCTS / products / ROW_STEP * ROW_STEP;
    const int64_t least = p->kernel->most_rows > ITEM_ROWS ? p->kernel->most_rows : ITEM_ROWS;
    p->rows = oq_least(p->x->rows, rows > least ? rows : least);
    p->panels = ITEM_PRODUCTS / (products * p->rows);
    if (p->panels < 1) p->panels = 1;
    p->across = oq_pieces(panels, p->panels);
}

oq_code oq_qlinear_apply(oq_context *context, const oq_qlinear *linear, const oq_activations *x, float *y)
{
    const oq_kernel *kernel = x->rows * x->planes >= WIDE_ROWS ? linear->wide : linear->kernel;
    product p = {.linear = linear, .x = x, .kernel = kernel, .y = y};
    if (x->rows < 1) return OQ_OK;
    cut(&p);
    oq_parallel_for(context->threads, p.across * oq_pieces(x->rows, p.rows), run_item, &p);
    const oq_code code = (oq_code)atomic_load(&p.failure);
    if (code == OQ_OK) return OQ_OK;
    return oq_fail(context, code, "kernel %s failed on %lld rows by %lld x %lld", kernel->name, (long long)x->rows,
                   (long long)linear->spec.out, (long long)linear->spec.in);
}

oq_code oq_qlinear_run(oq_context *context, const oq_qlinear *linear, const float *x, int64_t rows, float *y)
{
    for (int64_t row = 0; row < rows; row += ROW_BLOCK) {
        const oq_mark mark = oq_arena_mark(context->arena);
        oq_activations a;
        const int64_t some = oq_least(ROW_BLOCK, rows - row);
        OQ_TRY(oq_activations_make(context, linear, x, row, some, &a));
        OQ_TRY(oq_qlinear_apply(context, linear, &a, y + row * linear->spec.out));
        oq_arena_rewind(context->arena, mark);
    }
    return OQ_OK;
}

bool oq_qlinear_shares(const oq_qlinear *a, const oq_qlinear *b)
{
    const oq_quantizer p = a->spec.activation, q = b->spec.activation;
    if (a->spec.clipped != b->spec.clipped || a->spec.keep_max != b->spec.keep_max ||
        a->spec.keep_min != b->spec.keep_min)
        return false;
    return a->layout.in == b->layout.in && a->layout.group == b->layout.group &&
           a->layout.unit == b->layout.unit && oq_planes_of(p) == oq_planes_of(q) &&
           (!oq_is_quantized(p) || (p.bits == q.bits && p.symmetric == q.symmetric &&
                                    p.full_range == q.full_range && p.scale_bits == q.scale_bits));
}
