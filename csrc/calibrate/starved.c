#include "calibrate/starved.h"

#include <string.h>

#include "block/experts.h"
#include "block/linear.h"
#include "quant/lwc.h"

static const int stacked[] = {OQ_GATE, OQ_UP, OQ_DOWN};
enum { STACKED = 3 };

void oq_count_tokens(const oq_block_run *run, const oq_saved *saved, int32_t *tokens)
{
    for (int64_t e = 0; e < run->spec->experts.count; e++) {
        const int64_t *begin = saved->experts->routing.begin + e;
        tokens[e] += (int32_t)(begin[1] - begin[0]);
    }
}

/* Squared errors of each group of a row of w [rows, width]; error [rows, groups]. */
static void group_errors(const oq_groups *groups, const oq_real *w, const oq_real *rounded, double *error)
{
    const int64_t per_row = oq_groups_per_row(groups), width = groups->width;
    memset(error, 0, sizeof *error * (size_t)(groups->rows * per_row));
    for (int64_t i = 0; i < groups->rows * width; i++) {
        const double off = (double)rounded[i] - (double)w[i];
        error[i / width * per_row + i % width / groups->group] += off * off;
    }
}

/* hi, lo [rows, groups] of some rows w of a weight: the largest range of those that lose least. */
static oq_code clip_rows(oq_context *context, const oq_groups *groups, const oq_real *w, oq_real *hi, oq_real *lo)
{
    const int64_t count = groups->rows * oq_groups_per_row(groups), weights = groups->rows * groups->width;
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_real *logits, *rounded;
    oq_range *ranges;
    double *error, *least;
    OQ_NEW(context, logits, count);
    OQ_NEW(context, rounded, weights);
    OQ_NEW(context, ranges, count);
    OQ_NEW(context, error, count);
    OQ_NEW(context, least, count);
    for (int64_t i = 0; i < count; i++) least[i] = INFINITY;
    for (int k = 0; k < OQ_LWC_SHARES; k++) {
        const oq_real logit = k ? oq_lwc_logit(oq_lwc_share(k)) : (oq_real)OQ_LWC_IDENTITY;
        OQ_TRY(oq_check_cancel(context));
        for (int64_t i = 0; i < count; i++) logits[i] = logit;
        const oq_clip clip = {.max_logit = logits, .min_logit = logits};
        OQ_TRY(oq_fake_quantize_forward(context, groups, clip, w, rounded, ranges));
        group_errors(groups, w, rounded, error);
        for (int64_t i = 0; i < count; i++) {
            if (!(error[i] < least[i])) continue;
            least[i] = error[i];
            hi[i] = lo[i] = logit;
        }
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

static oq_code clip_stacked(oq_context *context, oq_transformed *t, int which, const int32_t *tokens, oq_real *theta)
{
    const oq_groups stacked_groups = oq_weight_groups(t->spec, t->options, which);
    const oq_mark mark = oq_arena_mark(context->arena);
    const oq_real *w;
    if (t->list->lwc_max[which] < 0) return OQ_OK;
    OQ_TRY(oq_transformed_weight(context, t, which, &w));
    for (int64_t e = 0; e < t->spec->experts.count; e++) {
        const oq_linear_rows rows = oq_rows_of_expert(t->spec, which, e);
        const int64_t at = rows.first * oq_groups_per_row(&stacked_groups);
        oq_groups groups = stacked_groups;
        groups.rows = rows.out;
        if (tokens[e] >= OQ_LEAST_TOKENS) continue;
        OQ_TRY(clip_rows(context, &groups, w + rows.first * rows.in,
                         oq_part(t->list, t->list->lwc_max[which], theta) + at,
                         oq_part(t->list, t->list->lwc_min[which], theta) + at));
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

oq_code oq_clip_starved(oq_context *context, oq_transformed *t, const int32_t *tokens, oq_real *theta)
{
    OQ_TRY(oq_transformed_forward(context, t, theta, 0));
    for (int i = 0; i < STACKED; i++) OQ_TRY(clip_stacked(context, t, stacked[i], tokens, theta));
    return OQ_OK;
}

/* An expert's share of an entry whose rows are those of the stacked weight. */
static void freeze(const oq_transformed *t, int entry, int64_t expert, oq_real *dtheta)
{
    if (entry < 0) return;
    const int64_t count = t->list->entry[entry].count / t->spec->experts.count;
    memset(oq_part(t->list, entry, dtheta) + expert * count, 0, sizeof *dtheta * (size_t)count);
}

void oq_freeze_starved(const oq_transformed *t, const int32_t *tokens, oq_real *dtheta)
{
    for (int64_t e = 0; e < t->spec->experts.count; e++)
        for (int i = 0; i < STACKED && tokens[e] < OQ_LEAST_TOKENS; i++) {
            freeze(t, t->list->lwc_max[stacked[i]], e, dtheta);
            freeze(t, t->list->lwc_min[stacked[i]], e, dtheta);
            freeze(t, t->list->offset[stacked[i]], e, dtheta);
        }
}
