#include "calibrate/calibrate_block.h"

#include <string.h>

#include "calibrate/initialize.h"
#include "calibrate/sample_order.h"
#include "calibrate/session.h"

#define PI 3.14159265358979323846

typedef struct {
    oq_session session;
    oq_adamw adamw;
    oq_guard guard;
    const oq_hooks *hooks;
    oq_real *theta, *dtheta, *best; /* [total] */
    double best_loss;
    int64_t *order; /* [N] */
} training;

/* SmoothQuant's statistics from the full-precision stream, then the start of every learnable. */
static oq_code start(oq_context *context, training *t)
{
    oq_session *s = &t->session;
    const int64_t window = s->data->tokens * s->spec->hidden;
    const oq_quantizer off = {.bits = 16};
    const oq_activation_quantizers none = {off, off, off, off};
    const oq_block_run run = {s->spec, &none, s->data->rope, s->data->tokens};
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_channel_stats stats;
    oq_saved saved;
    OQ_TRY(oq_channel_stats_create(context, &stats, s->spec));
    OQ_TRY(oq_saved_create(context, &run, &saved));
    for (int64_t i = 0; i < s->data->samples; i++) {
        OQ_TRY(oq_check_cancel(context));
        OQ_TRY(oq_block_forward(context, &run, s->original, s->data->x_fp + i * window, &saved, s->y));
        oq_channel_stats_add(&stats, &run, &saved);
    }
    OQ_TRY(oq_initialize(context, &s->transformed, &stats, t->theta));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

static oq_code create(oq_context *context, training *t, const oq_hooks *hooks)
{
    const int64_t total = t->session.list.total;
    t->hooks = hooks;
    t->best_loss = INFINITY;
    OQ_NEW(context, t->theta, total);
    OQ_NEW(context, t->dtheta, total);
    OQ_NEW(context, t->best, total);
    OQ_NEW(context, t->order, t->session.data->samples);
    OQ_TRY(oq_adamw_create(context, &t->adamw, &t->session.list));
    return oq_guard_create(context, &t->guard, &t->session.transformed);
}

/* Gradients of a micro-batch, added up in order of its windows. */
static oq_code gradients(oq_context *context, training *t, int64_t epoch, const int64_t *windows, int64_t count,
                         double *loss)
{
    oq_session *s = &t->session;
    OQ_TRY(oq_transformed_forward(context, &s->transformed, t->theta, epoch));
    memset(t->dtheta, 0, sizeof *t->dtheta * (size_t)s->list.total);
    *loss = 0;
    for (int64_t i = 0; i < count; i++) {
        double one;
        OQ_TRY(oq_session_window(context, s, windows[i], 1 / (double)count, true, &one));
        *loss += one / (double)count;
    }
    return oq_transformed_backward(context, &s->transformed, t->theta, t->dtheta);
}

static double schedule(const oq_options *options, int64_t step, int64_t steps)
{
    return options->cosine ? 0.5 * (1 + cos(PI * (double)step / (double)steps)) : 1;
}

static oq_code take_step(oq_context *context, training *t, int64_t epoch, int64_t step, int64_t steps,
                         const int64_t *windows, int64_t count, double *loss)
{
    oq_session *s = &t->session;
    OQ_TRY(gradients(context, t, epoch, windows, count, loss));
    if (!isfinite(*loss))
        return oq_fail(context, OQ_NOT_FINITE, "block %lld epoch %lld step %lld: the loss is %g",
                       (long long)s->options->block, (long long)epoch, (long long)step, *loss);
    if (t->hooks->reduce) OQ_TRY(t->hooks->reduce(t->hooks->user, t->dtheta, s->list.total));
    oq_guard_remember(&t->guard, &s->transformed, &t->adamw, t->theta);
    oq_adamw_step(&t->adamw, &s->list, s->options, schedule(s->options, step, steps), t->dtheta, t->theta);
    OQ_TRY(oq_guard_after_step(context, &t->guard, &s->transformed, &t->adamw, t->theta, epoch, step));
    if (!t->hooks->on_step) return OQ_OK;
    const oq_progress progress = {epoch, step, *loss, t->guard.report.min_margin};
    return t->hooks->on_step(t->hooks->user, &progress);
}

static void keep_best(training *t, double loss)
{
    if (!t->session.options->best_iterate || !(loss < t->best_loss)) return;
    t->best_loss = loss;
    memcpy(t->best, t->theta, sizeof *t->best * (size_t)t->session.list.total);
}

static oq_code train(oq_context *context, training *t, oq_calibration_result *result)
{
    const oq_options *o = t->session.options;
    const int64_t N = t->session.data->samples, per_epoch = (N + o->batch_size - 1) / o->batch_size;
    const int64_t steps = o->epochs * per_epoch;
    for (int64_t epoch = 0; epoch < o->epochs; epoch++) {
        double sum = 0;
        oq_sample_order(o->seed, o->block, epoch, o->shuffle, t->order, N);
        for (int64_t k = 0; k < per_epoch; k++) {
            const int64_t first = k * o->batch_size, left = N - first;
            double loss;
            OQ_TRY(oq_check_cancel(context));
            OQ_TRY(take_step(context, t, epoch, epoch * per_epoch + k, steps, t->order + first,
                             left < o->batch_size ? left : o->batch_size, &loss));
            sum += loss;
        }
        result->trace[epoch] = sum / (double)per_epoch;
        keep_best(t, result->trace[epoch]);
    }
    result->steps = steps;
    return OQ_OK;
}

static void take(oq_calibration_result *result, const oq_real *theta, int64_t total, double loss, oq_kept kept)
{
    memcpy(result->theta, theta, sizeof *theta * (size_t)total);
    result->loss_final = loss;
    result->kept = kept;
}

/* The trained iterate, unless its own start or plain rounding were better on the calibration loss. */
static oq_code choose(oq_context *context, training *t, const oq_real *initial, const oq_real *rtn,
                      oq_calibration_result *result)
{
    oq_session *s = &t->session;
    const int64_t total = s->list.total, last = s->options->epochs - 1;
    double loss;
    OQ_TRY(oq_session_evaluate(context, s, t->theta, last, &loss));
    take(result, t->theta, total, loss, OQ_KEPT_FINAL);
    if (isfinite(t->best_loss)) {
        OQ_TRY(oq_session_evaluate(context, s, t->best, last, &loss));
        if (!(result->loss_final <= loss)) take(result, t->best, total, loss, OQ_KEPT_BEST);
    }
    if (!(result->loss_final <= result->loss_initial))
        take(result, initial, total, result->loss_initial, OQ_KEPT_INITIAL);
    if (!(result->loss_final <= result->loss_rtn)) take(result, rtn, total, result->loss_rtn, OQ_KEPT_RTN);
    return OQ_OK;
}

oq_code oq_calibrate_block(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights,
                           const oq_options *options, const oq_calibration_data *data, const oq_hooks *hooks,
                           oq_calibration_result *result)
{
    training t = {0};
    oq_session *s = &t.session;
    oq_real *initial, *rtn;
    OQ_TRY(oq_session_create(context, s, spec, weights, options, data));
    OQ_TRY(create(context, &t, hooks));
    OQ_NEW(context, initial, s->list.total);
    OQ_NEW(context, rtn, s->list.total);
    OQ_TRY(start(context, &t));
    memcpy(initial, t.theta, sizeof *initial * (size_t)s->list.total);
    oq_initialize_rtn(&s->transformed, rtn);
    const int64_t last = options->epochs - 1;
    OQ_TRY(oq_session_evaluate(context, s, rtn, last, &result->loss_rtn));
    OQ_TRY(oq_session_evaluate(context, s, initial, last, &result->loss_initial));
    OQ_TRY(train(context, &t, result));
    OQ_TRY(choose(context, &t, initial, rtn, result));
    OQ_TRY(oq_transformed_forward(context, &s->transformed, result->theta, last));
    OQ_TRY(oq_guard_before_fold(context, &t.guard, &s->transformed, &result->max_condition, &result->varah_bound));
    result->dominance = t.guard.report;
    return OQ_OK;
}
