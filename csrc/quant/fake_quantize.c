#include "quant/fake_quantize.h"

#include "base/parallel.h"
#include "base/size.h"
#include "quant/group.h"
#include "quant/lwc.h"
#include "quant/ste_tape.h"

#define ROW_CHUNK 32
#define STRIP 256 /* values between the grid and their forms, in the nearest cache */

typedef struct {
    const oq_groups *groups;
    oq_clip clip;
    const oq_real *x, *dout;
    oq_real *out;
    oq_clip_gradients dclip;
    oq_forms forms;
    oq_range *ranges;
    const oq_range *saved_ranges;
    uint8_t *zero_out;
    const uint8_t *codes_in, *zero_in;
    oq_real *scale_out;
    const oq_real *scale_in;
    double *tape; /* [rows, width, 2], double build alone */
    oq_real *scaled;   /* [workers, width] where x is scaled; on the way back that row's gradient */
    uint8_t *held;     /* [workers, strips] on the way back */
    oq_real *dcolumns; /* [chunks, width], summed in their order afterwards */
} job;

/* Rows of one chunk, on one thread. */
typedef struct {
    int64_t begin, end, chunk;
    int worker;
} span;

/* ---- rows --------------------------------------------------------------- */

OQ_INLINE oq_range clipped(const job *j, oq_range range, int64_t index)
{
    return j->clip.max_logit ? oq_lwc_forward(range, j->clip.max_logit[index], j->clip.min_logit[index]) : range;
}

OQ_INLINE int64_t group_length(const oq_groups *g, int64_t begin)
{
    return oq_least(g->group, g->width - begin);
}

/* What lies one row below is asked for while a row is worked on, which takes longer than to read it: a processor's own
 * prefetching pauses with each row. */
OQ_INLINE void expect_below(const job *j, const oq_real *x, int64_t offset, int64_t n)
{
#ifdef __GNUC__
    enum { LINE = 64 / sizeof(oq_real) };
    const int64_t below = offset + j->groups->width, end = j->groups->rows * j->groups->width;
    for (int64_t i = below; i < oq_least(below + n, end); i += LINE) __builtin_prefetch(x + i);
#else
    (void)j, (void)x, (void)offset, (void)n;
#endif
}

/* x: a group's values as the quantizer sees them; offset: its place in the matrix. */
OQ_INLINE void quantize_group(const job *j, const oq_real *x, int64_t row, int64_t offset, int64_t n, oq_grid grid)
{
    oq_real c[STRIP];
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i += STRIP) {
        const int64_t strip = oq_least(STRIP, n - i);
        expect_below(j, j->x, offset + i, strip);
        oq_centred_codes(x + i, OQ_AT(j->clip.offset, offset + i), c, strip, grid);
        sum += oq_write_forms(&j->forms, offset + i, c, strip, grid);
    }
    if (j->forms.scale) j->forms.scale[row] = grid.scale;
    if (j->forms.zero) j->forms.zero[row] = (int32_t)grid.zero;
    if (j->forms.sum) j->forms.sum[row] = sum;
}

#ifdef OQ_DOUBLE
/* Record or replay one group of the surrogate: see ste_tape.h. */
static void taped_run(const oq_real *x, const oq_real *v, oq_real *out, int64_t n, oq_grid grid, double *tape)
{
    const bool record = oq_tape_state() == OQ_TAPE_RECORD;
    for (int64_t i = 0; i < n; i++) {
        const oq_real u = x[i] / grid.scale + (v ? v[i] : 0), raw = oq_rint(u) + grid.zero;
        const oq_real q = oq_clamp_code(raw, grid.top);
        if (record) {
            tape[2 * i] = raw == q;
            tape[2 * i + 1] = (q - grid.zero) - (raw == q ? u : 0);
        }
        out[i] = (tape[2 * i] * u + tape[2 * i + 1]) * grid.scale;
    }
}
#endif

/* A group's values as the quantizer sees them, and their range, while what is scaled is in the nearest cache. */
OQ_INLINE const oq_real *seen_group(const job *j, span at, int64_t row, int64_t begin, int64_t n, oq_range *range)
{
    const int64_t width = j->groups->width;
    const oq_real *x = j->x + row * width + begin, *columns = OQ_AT(j->clip.scaling.columns, begin);
    if (!j->scaled) {
        *range = oq_find_range(x, n);
        return x;
    }
    *range = (oq_range){0, 0};
    oq_real *scaled = j->scaled + at.worker * width + begin;
    for (int64_t i = 0; i < n; i += STRIP) {
        const int64_t strip = oq_least(STRIP, n - i);
        oq_scale_values(OQ_AT(columns, i), oq_row_factor(&j->clip.scaling, row), x + i, scaled + i, strip);
        *range = oq_range_of_both(*range, oq_find_range(scaled + i, strip));
    }
    return scaled;
}

OQ_VECTORIZED static void forward_rows(const job *j, span at)
{
    const oq_groups *g = j->groups;
    const int64_t per_row = oq_groups_per_row(g);
    for (int64_t row = at.begin; row < at.end; row++)
        for (int64_t k = 0; k < per_row; k++) {
            const int64_t index = row * per_row + k, begin = k * g->group, n = group_length(g, begin);
            const int64_t offset = row * g->width + begin;
            const oq_real *x = seen_group(j, at, row, begin, n, &j->ranges[index]);
            const oq_grid grid = oq_grid_from_range(g->quantizer, clipped(j, j->ranges[index], index));
#ifdef OQ_DOUBLE
            if (j->tape) {
                taped_run(x, OQ_AT(j->clip.offset, offset), j->forms.real + offset, n, grid,
                          j->tape + 2 * offset);
                continue;
            }
#endif
            quantize_group(j, x, row, offset, n, grid);
        }
}

/* sums += a run's share of the step's gradient.  The loop is made twice: left to itself the compiler reads v behind an
 * empty mask, and reading NULL so, though allowed, costs a Zen core hundreds of cycles. */
OQ_INLINE void backward_run(const job *j, const oq_real *x, int64_t offset, oq_real *dx, int64_t n, oq_grid grid,
                            oq_real *sums)
{
    const oq_real *dout = j->dout + offset;
    oq_real *dv = OQ_AT(j->dclip.offset, offset);
    if (j->clip.offset)
        oq_fake_quantize_values_backward(x, j->clip.offset + offset, dout, dx, dv, n, grid, sums);
    else if (dx)
        oq_fake_quantize_values_backward(x, NULL, dout, dx, NULL, n, grid, sums);
    else
        oq_fake_quantize_values_backward(x, NULL, dout, NULL, NULL, n, grid, sums);
}

/* The gradients of a group's extremes, from those of its step by lane. */
OQ_INLINE oq_range extremes_backward(const job *j, int64_t index, oq_range clip_range, const oq_real *sums)
{
    oq_range drange = {0, 0};
    oq_grid_backward(j->groups->quantizer, clip_range, oq_sum_of_lanes(sums), &drange);
    if (!j->clip.max_logit) return drange;
    return oq_lwc_backward(j->saved_ranges[index], j->clip.max_logit[index], j->clip.min_logit[index], drange,
                           &j->dclip.max_logit[index], &j->dclip.min_logit[index]);
}

/* One group: index and offset are its place and that of its values. */
OQ_INLINE void backward_group(const job *j, int64_t index, int64_t offset, int64_t n)
{
    const oq_real *x = j->x + offset;
    oq_real *dx = OQ_AT(j->out, offset), sums[OQ_LANES] = {0};
    const oq_range range = j->saved_ranges[index], clip_range = clipped(j, range, index);
    expect_below(j, j->dout, offset, n);
    backward_run(j, x, offset, dx, n, oq_grid_from_range(j->groups->quantizer, clip_range), sums);
    expect_below(j, j->x, offset, n);
    const oq_range drange = extremes_backward(j, index, clip_range, sums);
    oq_extremes ties = {0, 0};
    if (dx && oq_count_extremes(x, n, range, &ties))
        oq_spread_to_extremes(x, dx, n, range, oq_shares(range, drange, ties));
}

OQ_VECTORIZED static void backward_rows(const job *j, span at)
{
    const oq_groups *g = j->groups;
    const int64_t per_row = oq_groups_per_row(g);
    for (int64_t row = at.begin; row < at.end; row++)
        for (int64_t k = 0; k < per_row; k++) {
            const int64_t begin = k * g->group;
            backward_group(j, row * per_row + k, row * g->width + begin, group_length(g, begin));
        }
}

/* One group of scaled values on its way back, a strip at a time while it is in the nearest cache. */
typedef struct {
    oq_scaled_row *row;
    int64_t begin, offset, n; /* of the group, in its row and in the matrix */
    oq_range range;
    oq_real *d;    /* [width], of the row as the quantizer sees it */
    uint8_t *held; /* [strips] those that hold an extreme, whose own gradient comes last */
} scaled_group;

/* s [n] = values of the group from i on, as the quantizer sees them. */
OQ_INLINE void see_strip(const scaled_group *g, int64_t i, int64_t n, oq_real *s)
{
    const int64_t at = g->begin + i;
    oq_scale_values(OQ_AT(g->row->columns, at), g->row->factor, g->row->x + at, s, n);
}

/* What comes of the group's step, by lane; its extremes.  Strips without one go back through the maps at once. */
OQ_INLINE oq_extremes backward_strips(const job *j, const scaled_group *g, oq_grid grid, oq_real *sums)
{
    oq_extremes ties = {0, 0};
    oq_real s[STRIP];
    for (int64_t i = 0; i < g->n; i += STRIP) {
        const int64_t n = oq_least(STRIP, g->n - i);
        oq_real *d = g->d + g->begin + i;
        expect_below(j, j->dout, g->offset + i, n);
        expect_below(j, j->x, g->offset + i, n);
        see_strip(g, i, n, s);
        backward_run(j, s, g->offset + i, d, n, grid, sums);
        g->held[i / STRIP] = oq_count_extremes(s, n, g->range, &ties);
        if (!g->held[i / STRIP]) oq_scale_values_backward(g->row, g->begin + i, d, n);
    }
    return ties;
}

OQ_INLINE void backward_held_strips(const scaled_group *g, oq_range shares)
{
    oq_real s[STRIP];
    for (int64_t i = 0; i < g->n; i += STRIP) {
        if (!g->held[i / STRIP]) continue;
        const int64_t n = oq_least(STRIP, g->n - i);
        oq_real *d = g->d + g->begin + i;
        see_strip(g, i, n, s);
        oq_spread_to_extremes(s, d, n, g->range, shares);
        oq_scale_values_backward(g->row, g->begin + i, d, n);
    }
}

OQ_INLINE void backward_scaled_group(const job *j, scaled_group *g, int64_t index)
{
    oq_real sums[OQ_LANES] = {0};
    g->range = j->saved_ranges[index];
    const oq_range clip_range = clipped(j, g->range, index);
    const oq_extremes ties = backward_strips(j, g, oq_grid_from_range(j->groups->quantizer, clip_range), sums);
    const oq_range drange = extremes_backward(j, index, clip_range, sums);
    backward_held_strips(g, oq_shares(g->range, drange, ties));
}

OQ_VECTORIZED static void backward_scaled_rows(const job *j, span at)
{
    const oq_groups *groups = j->groups;
    const int64_t per_row = oq_groups_per_row(groups), width = groups->width;
    for (int64_t row = at.begin; row < at.end; row++) {
        oq_scaled_row scaled = {.x = j->x + row * width,
                                .columns = j->clip.scaling.columns,
                                .factor = oq_row_factor(&j->clip.scaling, row),
                                .dx = OQ_AT(j->out, row * width),
                                .dcolumns = OQ_AT(j->dcolumns, at.chunk * width)};
        scaled_group g = {.row = &scaled,
                          .d = j->scaled + at.worker * width,
                          .held = j->held + at.worker * oq_pieces(width, STRIP)};
        for (int64_t k = 0; k < per_row; k++) {
            g.begin = k * groups->group;
            g.offset = row * width + g.begin;
            g.n = group_length(groups, g.begin);
            backward_scaled_group(j, &g, row * per_row + k);
        }
        if (j->clip.scaling.rows) j->dclip.rows[row] += oq_sum_of_lanes(scaled.along);
    }
}

OQ_VECTORIZED static void quantize_rows(const job *j, span at)
{
    const oq_groups *g = j->groups;
    const int64_t per_row = oq_groups_per_row(g);
    for (int64_t row = at.begin; row < at.end; row++)
        for (int64_t k = 0; k < per_row; k++) {
            const int64_t index = row * per_row + k, begin = k * g->group, n = group_length(g, begin);
            oq_range range;
            const oq_real *x = seen_group(j, at, row, begin, n, &range);
            const oq_grid grid = oq_grid_from_range(g->quantizer, clipped(j, range, index));
            j->scale_out[index] = grid.scale;
            j->zero_out[index] = (uint8_t)grid.zero;
            quantize_group(j, x, row, row * g->width + begin, n, grid);
        }
}

OQ_VECTORIZED static void dequantize_rows(const job *j, span at)
{
    const oq_groups *g = j->groups;
    const int64_t per_row = oq_groups_per_row(g);
    for (int64_t row = at.begin; row < at.end; row++)
        for (int64_t k = 0; k < per_row; k++) {
            const int64_t begin = k * g->group, n = group_length(g, begin);
            const uint8_t *codes = j->codes_in + row * g->width + begin;
            oq_real *out = j->out + row * g->width + begin;
            const oq_real scale = j->scale_in[row * per_row + k];
            const int zero = j->zero_in[row * per_row + k];
            for (int64_t i = 0; i < n; i++) out[i] = (oq_real)((int)codes[i] - zero) * scale;
        }
}

/* sum_i (q_i - z) dout_i, lanes apart so that it does not depend on the ISA. */
OQ_INLINE oq_real step_gradient(const uint8_t *codes, int zero, const oq_real *dout, int64_t n)
{
    oq_real sums[OQ_LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + OQ_LANES <= n; i += OQ_LANES)
        for (int j = 0; j < OQ_LANES; j++) sums[j] += (oq_real)((int)codes[i + j] - zero) * dout[i + j];
    for (int j = 0; j < n - i; j++) sums[j] += (oq_real)((int)codes[i + j] - zero) * dout[i + j];
    for (int j = 0; j < OQ_LANES; j++) sum += sums[j];
    return sum;
}

OQ_VECTORIZED static void dequantize_rows_backward(const job *j, span at)
{
    const oq_groups *g = j->groups;
    const int64_t per_row = oq_groups_per_row(g);
    for (int64_t row = at.begin; row < at.end; row++)
        for (int64_t k = 0; k < per_row; k++) {
            const int64_t begin = k * g->group, offset = row * g->width + begin;
            j->scale_out[row * per_row + k] = step_gradient(j->codes_in + offset, j->zero_in[row * per_row + k],
                                                            j->dout + offset, group_length(g, begin));
        }
}

/* ---- matrices ----------------------------------------------------------- */

typedef struct {
    const job *job;
    void (*rows)(const job *, span);
} row_task;

static int64_t chunks_of(const oq_groups *g) { return oq_pieces(g->rows, ROW_CHUNK); }

static void run_chunk(void *user, int64_t item, int worker)
{
    const row_task *task = user;
    const int64_t rows = task->job->groups->rows, begin = item * ROW_CHUNK;
    task->rows(task->job, (span){begin, begin + ROW_CHUNK < rows ? begin + ROW_CHUNK : rows, item, worker});
}

static oq_code over_rows(oq_context *context, job *j, void (*rows)(const job *, span))
{
    const oq_mark mark = oq_arena_mark(context->arena);
    if (oq_is_scaled(&j->clip.scaling)) OQ_NEW(context, j->scaled, context->threads * j->groups->width);
    const row_task task = {.job = j, .rows = rows};
    oq_parallel_for(context->threads, chunks_of(j->groups), run_chunk, (void *)&task);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

static oq_code check_groups(oq_context *context, const oq_groups *g)
{
    if (g->quantizer.bits < 2 || g->quantizer.bits > 8)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "bits must be 2..8, got %d", g->quantizer.bits);
    if (g->rows < 0 || g->width < 0 || g->group < 1)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "group size %lld does not fit a matrix of %lld x %lld",
                       (long long)g->group, (long long)g->rows, (long long)g->width);
    return OQ_OK;
}

oq_code oq_quantize_forms(oq_context *context, const oq_groups *groups, oq_clip clip, const oq_real *x,
                          const oq_forms *forms, oq_range *ranges)
{
    OQ_TRY(check_groups(context, groups));
    job j = {.groups = groups, .clip = clip, .x = x, .forms = *forms, .ranges = ranges};
#ifdef OQ_DOUBLE
    if (oq_tape_state() != OQ_TAPE_OFF && !(j.tape = oq_tape_next(groups->rows * groups->width)))
        return oq_fail(context, OQ_INVALID_ARGUMENT, "the recorded surrogate does not fit this replay");
#endif
    return over_rows(context, &j, forward_rows);
}

oq_code oq_fake_quantize_forward(oq_context *context, const oq_groups *groups, oq_clip clip, const oq_real *x,
                                 oq_real *out, oq_range *ranges)
{
    return oq_quantize_forms(context, groups, clip, x, &(oq_forms){.real = out}, ranges);
}

OQ_VECTORIZED static void sum_chunks(const oq_groups *g, const oq_real *parts, double *sums)
{
    for (int64_t k = 0; k < chunks_of(g); k++)
        for (int64_t i = 0; i < g->width; i++) sums[i] += (double)parts[k * g->width + i];
}

oq_code oq_fake_quantize_backward(oq_context *context, const oq_groups *groups, oq_clip clip, const oq_real *x,
                                  const oq_range *ranges, const oq_real *dout, oq_real *dx,
                                  oq_clip_gradients dclip)
{
    OQ_TRY(check_groups(context, groups));
    const oq_mark mark = oq_arena_mark(context->arena);
    job j = {.groups = groups,
             .clip = clip,
             .x = x,
             .dout = dout,
             .out = dx,
             .saved_ranges = ranges,
             .dclip = dclip};
    if (oq_is_scaled(&clip.scaling)) OQ_NEW(context, j.held, context->threads * oq_pieces(groups->width, STRIP));
    if (clip.scaling.columns) OQ_NEW_ZERO(context, j.dcolumns, chunks_of(groups) * groups->width);
    OQ_TRY(over_rows(context, &j, oq_is_scaled(&clip.scaling) ? backward_scaled_rows : backward_rows));
    if (clip.scaling.columns) sum_chunks(groups, j.dcolumns, dclip.columns);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

oq_code oq_quantize(oq_context *context, const oq_groups *groups, oq_clip clip, const oq_real *x, uint8_t *codes,
                    oq_real *scale, uint8_t *zero_point)
{
    OQ_TRY(check_groups(context, groups));
    job j = {.groups = groups,
             .clip = clip,
             .x = x,
             .forms = {.codes = codes},
             .scale_out = scale,
             .zero_out = zero_point};
    return over_rows(context, &j, quantize_rows);
}

oq_code oq_dequantize(oq_context *context, const oq_groups *groups, const uint8_t *codes, const oq_real *scale,
                      const uint8_t *zero_point, oq_real *out)
{
    OQ_TRY(check_groups(context, groups));
    job j = {.groups = groups, .codes_in = codes, .scale_in = scale, .zero_in = zero_point, .out = out};
    return over_rows(context, &j, dequantize_rows);
}

oq_code oq_dequantize_backward(oq_context *context, const oq_groups *groups, const uint8_t *codes,
                               const uint8_t *zero_point, const oq_real *dout, oq_real *dscale)
{
    OQ_TRY(check_groups(context, groups));
    job j = {.groups = groups, .codes_in = codes, .zero_in = zero_point, .dout = dout, .scale_out = dscale};
    return over_rows(context, &j, dequantize_rows_backward);
}
