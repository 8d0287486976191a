#include "calibrate/session.h"

#include <string.h>

#include "base/pages.h"
#include "base/size.h"
#include "calibrate/sinks.h"
#include "math/vector.h"
#include "quant/byte_product.h"
#include "quant/gradient_products.h"

static oq_code check_finite(oq_context *context, const oq_options *options, const char *what, const oq_real *x,
                            int64_t rows, int64_t width)
{
    const int64_t at = x ? oq_find_not_finite(x, rows * width) : -1;
    if (at < 0) return OQ_OK;
    return oq_fail(context, OQ_NOT_FINITE, "block %lld %s row %lld column %lld: %g is not finite",
                   (long long)options->block, what, (long long)(at / width), (long long)(at % width),
                   (double)x[at]);
}

static oq_code check_weights(oq_context *context, const oq_session *s)
{
    for (int i = 0; i < OQ_LINEARS; i++) {
        const oq_linear_shape shape = oq_shape_of(s->spec, i);
        if (!oq_has_linear(s->spec, i)) continue;
        OQ_TRY(check_finite(context, s->options, oq_linear_names[i], s->original->weight[i], shape.out, shape.in));
        OQ_TRY(check_finite(context, s->options, oq_linear_names[i], s->original->bias[i], 1, shape.out));
    }
    for (int i = 0; i < OQ_NORMS; i++) {
        const int64_t width = oq_norm_width(s->spec, i);
        OQ_TRY(check_finite(context, s->options, oq_norm_names[i], s->original->gain[i], 1, width));
        OQ_TRY(check_finite(context, s->options, oq_norm_names[i], s->original->norm_bias[i], 1, width));
    }
    return OQ_OK;
}

/* ---- windows, in memory or in files --------------------------------------- */

static void advise(const oq_session *s, const oq_real *stream, int64_t window, void (*advice)(const void *, size_t))
{
    const size_t count = (size_t)(s->data->tokens * s->spec->hidden);
    if (s->data->mapped && stream) advice(stream + (size_t)window * count, sizeof *stream * count);
}

void oq_session_want(const oq_session *s, int64_t window)
{
    if (window >= s->data->samples) return;
    advise(s, s->data->x_q, window, oq_pages_want);
    advise(s, s->data->target, window, oq_pages_want);
    advise(s, s->data->aug_target, window, oq_pages_want);
    advise(s, s->data->goal, window, oq_pages_want);
}

void oq_session_drop(const oq_session *s, int64_t window)
{
    advise(s, s->data->x_q, window, oq_pages_drop);
    advise(s, s->data->target, window, oq_pages_drop);
    advise(s, s->data->aug_target, window, oq_pages_drop);
    advise(s, s->data->goal, window, oq_pages_drop);
}

/* Find a window's sinks; they weigh nothing where they are to be left out. */
static oq_code take_sinks(oq_context *context, oq_session *s, int64_t window)
{
    const int64_t T = s->data->tokens, H = s->spec->hidden;
    int64_t count;
    OQ_TRY(oq_find_sinks(context, s->data->target + window * T * H, T, H, s->sink, &count));
    s->sinks += count;
    if (!s->options->without_sinks) return OQ_OK;
    for (int64_t t = 0; t < T; t++) {
        if (!s->sink[t]) continue;
        s->token_weights[window * T + t] = 0;
        if (s->goal_weights) s->goal_weights[window * T + t] = 0;
    }
    return OQ_OK;
}

/* Check a window of every stream, and weigh its tokens. */
static oq_code take_window(oq_context *context, oq_session *s, int64_t window)
{
    const oq_calibration_data *data = s->data;
    const int64_t T = data->tokens, H = s->spec->hidden, offset = window * T * H;
    const oq_real *const streams[] = {data->x_fp, data->x_q, data->target, data->aug_target, data->goal};
    static const char *const names[] = {"x_fp", "x_q", "targets", "aug_targets", "goals"};
    for (int i = 0; i < 5; i++) {
        const int64_t at = streams[i] ? oq_find_not_finite(streams[i] + offset, T * H) : -1;
        if (at >= 0)
            return oq_fail(context, OQ_NOT_FINITE, "block %lld %s row %lld column %lld: %g is not finite",
                           (long long)s->options->block, names[i], (long long)((offset + at) / H),
                           (long long)(at % H), (double)streams[i][offset + at]);
    }
    oq_loss_weights(s->options->loss, data->target + offset, data->x_fp + offset, s->token_weights + window * T,
                    T, H);
    if (data->goal)
        oq_loss_weights(s->options->loss, data->goal + offset, data->target + offset, s->goal_weights + window * T, T,
                        H);
    OQ_TRY(take_sinks(context, s, window));
    advise(s, data->x_fp, window, oq_pages_drop);
    oq_session_drop(s, window);
    return OQ_OK;
}

/* ---- a session ------------------------------------------------------------- */

oq_code oq_session_create(oq_context *context, oq_session *s, const oq_block_spec *spec,
                          const oq_block_weights *weights, const oq_options *options,
                          const oq_calibration_data *data)
{
    memset(s, 0, sizeof *s);
    s->spec = spec;
    s->options = options;
    s->data = data;
    s->original = weights;
    s->judges = data->samples;
    OQ_TRY(oq_check_spec(context, spec));
    OQ_TRY(oq_check_options(context, spec, options));
    if (data->samples < 1 || data->tokens < 1)
        return oq_fail(context, OQ_INVALID_ARGUMENT,
                       "calibration needs at least one window and one token, got %lld x %lld",
                       (long long)data->samples, (long long)data->tokens);
    if (options->byte_gradients && !oq_has_byte_gradients(data->tokens))
        return oq_fail(context, OQ_INVALID_ARGUMENT, "gradients int8 take at most %d tokens a window, got %lld",
                       OQ_BYTE_PRODUCT_DEEPEST, (long long)data->tokens);
    OQ_TRY(check_weights(context, s));
    oq_learnables_list(spec, options, weights, &s->list);
    OQ_TRY(oq_transformed_create(context, &s->transformed, spec, options, weights, &s->list));
    s->run = (oq_block_run){.spec = spec,
                            .quantizers = &options->activation,
                            .rope = data->rope,
                            .tokens = data->tokens,
                            .bf16 = options->products == OQ_PRODUCTS_BFLOAT16,
                            .maps = options->map[OQ_SITE_FACTORS] != OQ_MAP_NONE};
    for (int i = 0; i < OQ_LINEARS; i++)
        if (oq_has_linear(spec, i) && oq_has_integer_linear(spec, options, i)) s->run.integer = true;
    OQ_TRY(oq_saved_create(context, &s->run, &s->saved));
    const int64_t window = data->tokens * spec->hidden;
    OQ_NEW(context, s->y, window);
    OQ_NEW(context, s->dy, window);
    OQ_NEW(context, s->token_weights, data->samples * data->tokens);
    OQ_NEW(context, s->sink, data->tokens);
    if (data->goal) OQ_NEW(context, s->goal_weights, data->samples * data->tokens);
    OQ_TRY(oq_ahead_create(context, &s->ahead, data->followers, data->tokens, s->run.bf16));
    return OQ_OK;
}

oq_code oq_session_take(oq_context *context, oq_session *s)
{
    for (int64_t i = 0; i < s->data->samples; i++) OQ_TRY(take_window(context, s, i));
    return OQ_OK;
}

/* *loss += that behind the blocks behind, dy [T, H] += its gradient unless dy is NULL. */
static oq_code look_ahead(oq_context *context, oq_session *s, int64_t window, oq_real *dy, double *loss)
{
    const int64_t T = s->data->tokens, H = s->spec->hidden;
    const oq_real *y;
    if (!s->data->goal) return OQ_OK;
    OQ_TRY(oq_ahead_forward(context, &s->ahead, s->y, &y));
    if (dy) memset(s->ahead.d, 0, sizeof *dy * (size_t)(T * H));
    *loss += oq_loss(y, s->data->goal + window * T * H, s->goal_weights + window * T, dy ? s->ahead.d : NULL, T, H);
    return dy ? oq_ahead_backward(context, &s->ahead, dy) : OQ_OK;
}

static oq_code pass(oq_context *context, oq_session *s, int64_t window, double share, oq_real *dtheta,
                    double *loss)
{
    const int64_t T = s->data->tokens, H = s->spec->hidden, offset = window * T * H;
    const oq_block_weights weights = oq_transformed_weights(&s->transformed);
    const double *token_weights = s->token_weights + window * T;
    oq_real *dy = dtheta ? s->dy : NULL;
    OQ_TRY(oq_block_forward(context, &s->run, &weights, s->data->x_q + offset, &s->saved, s->y));
    if (dy) memset(dy, 0, sizeof *dy * (size_t)(T * H));
    *loss = oq_loss(s->y, s->data->target + offset, token_weights, dy, T, H);
    if (s->data->aug_target) *loss += oq_loss(s->y, s->data->aug_target + offset, token_weights, dy, T, H);
    OQ_TRY(look_ahead(context, s, window, dy, loss));
    if (!dtheta) return OQ_OK;
    if (share != 1) oq_scale(dy, (oq_real)share, T * H);
    const oq_block_gradients gradients = oq_transformed_gradients(&s->transformed, dtheta);
    s->transformed.fresh = false;
    return oq_block_backward(context, &s->run, &weights, &s->saved, dy, &gradients);
}

oq_code oq_session_window(oq_context *context, oq_session *s, int64_t window, double share, oq_real *dtheta,
                          double *loss)
{
    OQ_TRY(pass(context, s, window, share, dtheta, loss));
    oq_session_drop(s, window);
    return OQ_OK;
}

int64_t oq_judges(int64_t samples, int64_t tokens)
{
    const int64_t enough = oq_pieces(8192, tokens);
    return oq_least(samples, enough < 8 ? 8 : oq_least(enough, 32));
}

void oq_session_judge_few(oq_session *s) { s->judges = oq_judges(s->data->samples, s->data->tokens); }

int64_t oq_judge(int64_t samples, int64_t judges, int64_t i) { return i * samples / judges; }

static int64_t judge(const oq_session *s, int64_t i) { return oq_judge(s->data->samples, s->judges, i); }

oq_code oq_session_loss(oq_context *context, oq_session *s, double *loss)
{
    *loss = 0;
    for (int64_t i = 0; i < s->judges; i++) {
        double one;
        OQ_TRY(oq_check_cancel(context));
        oq_session_want(s, judge(s, i + 1));
        OQ_TRY(oq_session_window(context, s, judge(s, i), 1, NULL, &one));
        *loss += one / (double)s->judges;
    }
    return OQ_OK;
}

oq_code oq_session_evaluate(oq_context *context, oq_session *s, const oq_real *theta, int64_t epoch, double *loss)
{
    OQ_TRY(oq_transformed_forward(context, &s->transformed, theta, epoch));
    return oq_session_loss(context, s, loss);
}

oq_code oq_block_loss(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights,
                      const oq_options *options, const oq_calibration_data *data, const oq_real *theta,
                      int64_t epoch, double *loss, oq_real *dtheta)
{
    oq_session s;
    OQ_TRY(oq_session_create(context, &s, spec, weights, options, data));
    OQ_TRY(oq_session_take(context, &s));
    if (!dtheta) return oq_session_evaluate(context, &s, theta, epoch, loss);
    OQ_TRY(oq_transformed_forward(context, &s.transformed, theta, epoch));
    *loss = 0;
    memset(dtheta, 0, sizeof *dtheta * (size_t)s.list.total);
    for (int64_t i = 0; i < data->samples; i++) {
        double one;
        OQ_TRY(oq_session_window(context, &s, i, 1 / (double)data->samples, dtheta, &one));
        *loss += one / (double)data->samples;
    }
    return oq_transformed_backward(context, &s.transformed, dtheta);
}
