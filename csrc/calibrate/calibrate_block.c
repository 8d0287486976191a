#include "calibrate/calibrate_block.h"

#include <stdio.h>

#include "base/pages.h"
#include "calibrate/search.h"
#include "calibrate/session.h"
#include "calibrate/starved.h"

/* Where training's products are of bfloat16, those of the full-precision stream may be of parts, 2^-16 from exact. */
static oq_code forward_in_float(oq_context *context, oq_session *s, const oq_block_run *run, const oq_real *x,
                                oq_saved *saved)
{
    context->in_parts = s->run.bf16;
    const oq_code code = oq_block_forward(context, run, s->original, x, saved, s->y);
    context->in_parts = false;
    return code;
}

/* The full-precision stream through the block, once: what the block gives, and statistics of every linear's input.
 * Then the start of every learnable. */
static oq_code start(oq_context *context, oq_session *s, oq_real *initial)
{
    const int64_t window = s->data->tokens * s->spec->hidden;
    const oq_block_run run = {
        .spec = s->spec, .quantizers = &oq_in_float, .rope = s->data->rope, .tokens = s->data->tokens};
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_channel_stats stats;
    oq_grams grams = {0};
    oq_saved saved;
    OQ_TRY(oq_channel_stats_create(context, &stats, s->spec));
    if (s->options->search) OQ_TRY(oq_grams_create(context, &grams, s->spec, -1));
    OQ_TRY(oq_saved_create(context, &run, &saved));
    for (int64_t i = 0; i < s->data->samples; i++) {
        OQ_TRY(oq_check_cancel(context));
        OQ_TRY(forward_in_float(context, s, &run, s->data->x_fp + i * window, &saved));
        if (s->data->on_target) OQ_TRY(s->data->on_target(s->data->user, i, s->y));
        oq_channel_stats_add(&stats, &run, &saved);
        oq_count_tokens(&run, &saved, s->expert_tokens);
        OQ_TRY(oq_grams_add(context, &grams, &saved, run.tokens));
        if (s->data->mapped) oq_pages_drop(s->data->x_fp + i * window, sizeof(oq_real) * (size_t)window);
    }
    oq_grams_complete(&grams);
    OQ_TRY(oq_session_take(context, s));
    OQ_TRY(oq_initialize(context, &s->transformed, &stats, initial));
    if (s->options->search) OQ_TRY(oq_search_start(context, &s->transformed, &stats, &grams, initial));
    if (s->expert_tokens) OQ_TRY(oq_clip_starved(context, &s->transformed, s->expert_tokens, initial));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* ---- the objective: a session ---------------------------------------------- */

static oq_code apply(oq_context *context, void *user, const oq_real *theta, int64_t epoch)
{
    oq_session *s = user;
    return oq_transformed_forward(context, &s->transformed, theta, epoch);
}

static oq_code evaluate(oq_context *context, void *user, const oq_real *theta, int64_t epoch, double *loss)
{
    return oq_session_evaluate(context, user, theta, epoch, loss);
}

static void next(void *user, const int64_t *windows, int64_t count)
{
    for (int64_t i = 0; i < count; i++) oq_session_want(user, windows[i]);
}

/* Gradients of a micro-batch, added up in order of its windows. */
static oq_code gradients(oq_context *context, void *user, const oq_real *theta, int64_t epoch,
                         const int64_t *windows, int64_t count, oq_real *dtheta, double *loss)
{
    oq_session *s = user;
    OQ_TRY(oq_transformed_forward(context, &s->transformed, theta, epoch));
    *loss = 0;
    for (int64_t i = 0; i < count; i++) {
        double one;
        OQ_TRY(oq_session_window(context, s, windows[i], 1 / (double)count, dtheta, &one));
        *loss += one / (double)count;
    }
    OQ_TRY(oq_transformed_backward(context, &s->transformed, dtheta));
    if (s->expert_tokens) oq_freeze_starved(&s->transformed, s->expert_tokens, dtheta);
    return OQ_OK;
}

oq_code oq_calibrate_block(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights,
                           const oq_options *options, const oq_calibration_data *data, const oq_hooks *hooks,
                           oq_calibration_result *result)
{
    oq_session s = {0};
    oq_real *initial, *rtn;
    OQ_TRY(oq_session_create(context, &s, spec, weights, options, data));
    oq_session_judge_few(&s);
    OQ_NEW(context, initial, s.list.total);
    OQ_NEW(context, rtn, s.list.total);
    s.expert_tokens = result->expert_tokens;
    OQ_TRY(start(context, &s, initial));
    result->sinks = s.sinks;
    oq_initialize_rtn(&s.transformed, rtn);
    const oq_objective objective = {&s, data->samples, apply, evaluate, gradients, next};
    oq_guarded guarded = {.maps = s.transformed.map,
                          .names = oq_site_names,
                          .entry = s.list.map,
                          .count = OQ_SITES,
                          .factors = OQ_SITE_FACTORS,
                          .list = &s.list,
                          .options = options};
    snprintf(guarded.where, sizeof guarded.where, "block %lld", (long long)options->block);
    return oq_train(context, &objective, &guarded, hooks, initial, rtn, result);
}
