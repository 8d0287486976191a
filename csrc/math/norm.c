#include "math/norm.h"

#include "base/parallel.h"

#define ROW_CHUNK 16
#define LANES 16

typedef struct {
    oq_norm_shape shape;
    const oq_real *x, *gain, *bias, *dy;
    oq_real *y, *dx;
    oq_norm_stats *stats;
    const oq_norm_stats *saved;
} job;

/* Sum of (x - shift)^power, power 1 or 2, in double. */
static inline double moment(const oq_real *x, int64_t n, double shift, bool squared)
{
    double sums[LANES] = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        const int lanes = n - i < LANES ? (int)(n - i) : LANES;
        for (int j = 0; j < lanes; j++) {
            const double v = (double)x[i + j] - shift;
            sums[j] += squared ? v * v : v;
        }
    }
    for (int j = 1; j < LANES; j++) sums[0] += sums[j];
    return sums[0];
}

static inline oq_norm_stats row_stats(const oq_norm_shape *s, const oq_real *x)
{
    const double mean = s->kind == OQ_NORM_LAYER ? moment(x, s->width, 0, false) / (double)s->width : 0;
    const double variance = moment(x, s->width, mean, true) / (double)s->width;
    return (oq_norm_stats){.mean = (oq_real)mean, .inverse_deviation = (oq_real)(1 / sqrt(variance + s->eps))};
}

OQ_VECTORIZED static void forward_rows(const job *j, int64_t begin, int64_t end)
{
    const int64_t width = j->shape.width;
    for (int64_t row = begin; row < end; row++) {
        const oq_real *x = j->x + row * width;
        oq_real *y = j->y + row * width;
        const oq_norm_stats stats = row_stats(&j->shape, x);
        j->stats[row] = stats;
        for (int64_t i = 0; i < width; i++) y[i] = (x[i] - stats.mean) * stats.inverse_deviation * j->gain[i];
        if (j->bias)
            for (int64_t i = 0; i < width; i++) y[i] += j->bias[i];
    }
}

/* sums [LANES] += of g = dy gain, along [LANES] += of g (x - mean), in double; `lanes` is a constant but at a row's
 * end, so that they stay in registers. */
OQ_INLINE void sum_lanes(const oq_real *x, const oq_real *dy, const oq_real *gain, oq_real mean, int64_t lanes,
                         double *restrict sums, double *restrict along)
{
    for (int64_t l = 0; l < lanes; l++) {
        const double g = (double)dy[l] * (double)gain[l];
        sums[l] += g;
        along[l] += g * (double)(x[l] - mean);
    }
}

typedef struct {
    double g, along;
} row_sums;

OQ_INLINE row_sums sum_row(const oq_real *x, const oq_real *dy, const oq_real *gain, oq_real mean, int64_t width)
{
    double sums[LANES] = {0}, along[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) sum_lanes(x + i, dy + i, gain + i, mean, LANES, sums, along);
    sum_lanes(x + i, dy + i, gain + i, mean, width - i, sums, along);
    for (int l = 1; l < LANES; l++) {
        sums[0] += sums[l];
        along[0] += along[l];
    }
    return (row_sums){sums[0], along[0]};
}

/* With xn = (x - mean) r and g = dy gain: dx = r (g - mean(g) - xn mean(g xn)); RMSNorm drops mean(g). */
OQ_VECTORIZED static void backward_rows(const job *j, int64_t begin, int64_t end)
{
    const int64_t width = j->shape.width;
    for (int64_t row = begin; row < end; row++) {
        const oq_real *x = j->x + row * width, *dy = j->dy + row * width;
        const oq_norm_stats stats = j->saved[row];
        const row_sums sums = sum_row(x, dy, j->gain, stats.mean, width);
        const oq_real r = stats.inverse_deviation;
        const oq_real mean_g = j->shape.kind == OQ_NORM_LAYER ? (oq_real)(sums.g / (double)width) : 0;
        const oq_real slope = (oq_real)(sums.along * (double)r * (double)r / (double)width);
        oq_real *dx = j->dx + row * width;
        for (int64_t i = 0; i < width; i++)
            dx[i] += r * (dy[i] * j->gain[i] - mean_g - (x[i] - stats.mean) * slope);
    }
}

static void forward_chunk(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t begin = item * ROW_CHUNK, end = begin + ROW_CHUNK;
    (void)worker;
    forward_rows(j, begin, end < j->shape.rows ? end : j->shape.rows);
}

static void backward_chunk(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t begin = item * ROW_CHUNK, end = begin + ROW_CHUNK;
    (void)worker;
    backward_rows(j, begin, end < j->shape.rows ? end : j->shape.rows);
}

void oq_norm_forward(const oq_context *context, oq_norm_shape shape, const oq_real *x, const oq_real *gain,
                     const oq_real *bias, oq_real *y, oq_norm_stats *stats)
{
    const job j = {.shape = shape, .x = x, .gain = gain, .bias = bias, .y = y, .stats = stats};
    oq_parallel_for(context->threads, (shape.rows + ROW_CHUNK - 1) / ROW_CHUNK, forward_chunk, (void *)&j);
}

/* dgain and dbias, summed over the rows in double and in order. */
OQ_VECTORIZED static void backward_parameters(const job *j, double *dgain, double *dbias)
{
    const int64_t width = j->shape.width;
    for (int64_t row = 0; row < j->shape.rows; row++) {
        const oq_real *x = j->x + row * width, *dy = j->dy + row * width;
        const oq_norm_stats stats = j->saved[row];
        for (int64_t i = 0; i < width; i++) {
            dgain[i] += (double)(dy[i] * (x[i] - stats.mean) * stats.inverse_deviation);
            dbias[i] += (double)dy[i];
        }
    }
}

oq_code oq_norm_backward(oq_context *context, oq_norm_shape shape, const oq_real *x, const oq_real *gain,
                         const oq_norm_stats *stats, const oq_real *dy, oq_real *dx, oq_real *dgain,
                         oq_real *dbias)
{
    const job j = {.shape = shape, .x = x, .gain = gain, .dy = dy, .dx = dx, .saved = stats};
    if (dx)
        oq_parallel_for(context->threads, (shape.rows + ROW_CHUNK - 1) / ROW_CHUNK, backward_chunk, (void *)&j);
    if (!dgain && !dbias) return OQ_OK;
    const oq_mark mark = oq_arena_mark(context->arena);
    double *gain_sum, *bias_sum;
    OQ_NEW_ZERO(context, gain_sum, shape.width);
    OQ_NEW_ZERO(context, bias_sum, shape.width);
    backward_parameters(&j, gain_sum, bias_sum);
    for (int64_t i = 0; i < shape.width; i++) {
        if (dgain) dgain[i] += (oq_real)gain_sum[i];
        if (dbias) dbias[i] += (oq_real)bias_sum[i];
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
