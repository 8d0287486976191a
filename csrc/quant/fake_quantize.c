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
    oq_real *scaled, *dscaled; /* [workers, width] where x is scaled; gradients that have no place in out */
    oq_real *dcolumns;         /* [chunks, width], summed in their order afterwards */
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
    return g->width - begin < g->group ? g->width - begin : g->group;
}

OQ_INLINE const oq_real *offset_at(const oq_real *v, int64_t place) { return v ? v + place : NULL; }

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
        const int64_t strip = n - i < STRIP ? n - i : STRIP;
        expect_below(j, j->x, offset + i, strip);
        oq_centred_codes(x + i, offset_at(j->clip.offset, offset + i), c, strip, grid);
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

/* Row x as the quantizer sees it. */
OQ_INLINE const oq_real *scaled_row(const job *j, span at, int64_t row)
{
    const int64_t width = j->groups->width;
    const oq_real *x = j->x + row * width;
    if (!j->scaled) return x;
    oq_real *scaled = j->scaled + at.worker * width;
    oq_scale_values(&j->clip.scaling, row, x, scaled, width);
    return scaled;
}

OQ_VECTORIZED static void forward_rows(const job *j, span at)
{
    const oq_groups *g = j->groups;
    const int64_t per_row = oq_groups_per_row(g);
    for (int64_t row = at.begin; row < at.end; row++) {
        const oq_real *x = scaled_row(j, at, row);
        for (int64_t k = 0; k < per_row; k++) {
            const int64_t index = row * per_row + k, begin = k * g->group, n = group_length(g, begin);
            const int64_t offset = row * g->width + begin;
            const oq_range range = oq_find_range(x + begin, n);
            const oq_grid grid = oq_grid_from_range(g->quantizer, clipped(j, range, index));
            j->ranges[index] = range;
#ifdef OQ_DOUBLE
            if (j->tape) {
                taped_run(x + begin, offset_at(j->clip.offset, offset), j->forms.real + offset, n, grid,
                          j->tape + 2 * offset);
                continue;
            }
#endif
            quantize_group(j, x + begin, row, offset, n, grid);
        }
    }
}

/* The loop is made twice: left to itself the compiler reads v behind an empty mask, and reading NULL so, though
 * allowed, costs a Zen core hundreds of cycles. */
OQ_INLINE double backward_run(const job *j, const oq_real *x, int64_t offset, oq_real *dx, int64_t n, oq_grid grid)
{
    const oq_real *dout = j->dout + offset;
    oq_real *dv = j->dclip.offset ? j->dclip.offset + offset : NULL;
    if (!j->clip.offset) {
        if (dx) return oq_fake_quantize_values_backward(x, NULL, dout, dx, NULL, n, grid);
        return oq_fake_quantize_values_backward(x, NULL, dout, NULL, NULL, n, grid);
    }
    return oq_fake_quantize_values_backward(x, j->clip.offset + offset, dout, dx, dv, n, grid);
}

/* One group: its values x as the quantizer saw them, their gradient dx (may be NULL); index and offset: the group's
 * place and theirs. */
OQ_INLINE void backward_group(const job *j, const oq_real *x, oq_real *dx, int64_t index, int64_t offset,
                              int64_t n)
{
    const oq_range range = j->saved_ranges[index], clip_range = clipped(j, range, index);
    const oq_grid grid = oq_grid_from_range(j->groups->quantizer, clip_range);
    expect_below(j, j->dout, offset, n);
    const double dscale = backward_run(j, x, offset, dx, n, grid);
    expect_below(j, j->x, offset, n);
    oq_range drange = {0, 0};
    oq_grid_backward(j->groups->quantizer, clip_range, dscale, &drange);
    if (j->clip.max_logit)
        drange = oq_lwc_backward(range, j->clip.max_logit[index], j->clip.min_logit[index], drange,
                                 &j->dclip.max_logit[index], &j->dclip.min_logit[index]);
    if (dx) oq_spread_to_extremes(x, dx, n, range, drange);
}

/* Behind the groups of a row, back through its scaling. */
OQ_INLINE void scaling_backward(const job *j, span at, int64_t row, oq_real *dscaled)
{
    const int64_t width = j->groups->width;
    const oq_scaling_gradients into = {j->dcolumns ? j->dcolumns + at.chunk * width : NULL, j->dclip.rows};
    oq_scale_values_backward(&j->clip.scaling, &into, row, j->x + row * width, j->out, dscaled, width);
}

/* Where the gradient of a row goes; NULL: nobody wants it. */
OQ_INLINE oq_real *gradient_row(const job *j, span at, int64_t row)
{
    const int64_t width = j->groups->width;
    if (j->out) return j->out + row * width;
    return j->dscaled ? j->dscaled + at.worker * width : NULL;
}

OQ_VECTORIZED static void backward_rows(const job *j, span at)
{
    const oq_groups *g = j->groups;
    const int64_t per_row = oq_groups_per_row(g);
    for (int64_t row = at.begin; row < at.end; row++) {
        const oq_real *x = scaled_row(j, at, row);
        oq_real *dx = gradient_row(j, at, row);
        for (int64_t k = 0; k < per_row; k++) {
            const int64_t begin = k * g->group;
            backward_group(j, x + begin, dx ? dx + begin : NULL, row * per_row + k, row * g->width + begin,
                           group_length(g, begin));
        }
        if (j->scaled) scaling_backward(j, at, row, dx);
    }
}

OQ_VECTORIZED static void quantize_rows(const job *j, span at)
{
    const oq_groups *g = j->groups;
    const int64_t per_row = oq_groups_per_row(g);
    for (int64_t row = at.begin; row < at.end; row++) {
        const oq_real *x = scaled_row(j, at, row);
        for (int64_t k = 0; k < per_row; k++) {
            const int64_t index = row * per_row + k, begin = k * g->group, n = group_length(g, begin);
            const oq_range range = clipped(j, oq_find_range(x + begin, n), index);
            const oq_grid grid = oq_grid_from_range(g->quantizer, range);
            j->scale_out[index] = grid.scale;
            j->zero_out[index] = (uint8_t)grid.zero;
            quantize_group(j, x + begin, row, row * g->width + begin, n, grid);
        }
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
    oq_real sums[OQ_GROUP_LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + OQ_GROUP_LANES <= n; i += OQ_GROUP_LANES)
        for (int j = 0; j < OQ_GROUP_LANES; j++) sums[j] += (oq_real)((int)codes[i + j] - zero) * dout[i + j];
    for (int j = 0; j < n - i; j++) sums[j] += (oq_real)((int)codes[i + j] - zero) * dout[i + j];
    for (int j = 0; j < OQ_GROUP_LANES; j++) sum += sums[j];
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

static int64_t chunks_of(const oq_groups *g) { return (g->rows + ROW_CHUNK - 1) / ROW_CHUNK; }

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
    if (oq_is_scaled(&clip.scaling) && !dx) OQ_NEW(context, j.dscaled, context->threads * groups->width);
    if (clip.scaling.columns) OQ_NEW_ZERO(context, j.dcolumns, chunks_of(groups) * groups->width);
    OQ_TRY(over_rows(context, &j, backward_rows));
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
