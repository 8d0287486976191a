#include "calibrate/error_feedback.h"

#include <stdio.h>
#include <string.h>

#include "calibrate/gram.h"
#include "calibrate/session.h"

/* The sites in the order their linears run in. */
static const int stages[] = {OQ_SITE_NORM1, OQ_SITE_VO, OQ_SITE_NORM2, OQ_SITE_UP_DOWN};
enum { STAGES = 4 };

typedef struct {
    oq_session *session;
    const oq_folded *folded;
    const oq_real *transformed[OQ_LINEARS]; /* W~ */
    oq_block_weights weights;               /* W~, or W^ where already rounded */
    uint8_t *codes[OQ_LINEARS];
} rounding;

static bool is_rounded(const rounding *r, int linear)
{
    const oq_session *s = r->session;
    return oq_has_linear(s->spec, linear) && oq_quantizes(s->options, linear);
}

static oq_code create(oq_context *context, rounding *r)
{
    const oq_transformed *t = &r->session->transformed;
    r->weights = oq_transformed_weights(t);
    for (int i = 0; i < OQ_LINEARS; i++) {
        if (!oq_has_linear(t->spec, i)) continue;
        const oq_linear_shape shape = oq_shape_of(t->spec, i);
        OQ_TRY(oq_transformed_weight(context, t, i, &r->transformed[i]));
        r->weights.weight[i] = r->transformed[i];
        if (is_rounded(r, i)) OQ_NEW(context, r->codes[i], shape.out * shape.in);
    }
    return OQ_OK;
}

static oq_code gather(oq_context *context, const rounding *r, const oq_grams *grams)
{
    oq_session *s = r->session;
    const int64_t T = s->data->tokens, window = T * s->spec->hidden;
    for (int64_t i = 0; i < s->data->samples; i++) {
        OQ_TRY(oq_check_cancel(context));
        oq_session_want(s, i + 1);
        OQ_TRY(oq_block_forward(context, &s->run, &r->weights, s->data->x_q + i * window, &s->saved, s->y));
        OQ_TRY(oq_grams_add(context, grams, &s->saved, T));
        oq_session_drop(s, i);
    }
    oq_grams_complete(grams);
    return OQ_OK;
}

/* Round the linears behind one input, and let the later ones see them rounded. */
static oq_code round_site(oq_context *context, rounding *r, const oq_grams *grams, int site)
{
    oq_session *s = r->session;
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_feedback feedback;
    char what[64];
    snprintf(what, sizeof what, "block %lld %s: Gram matrix", (long long)s->options->block, oq_site_names[site]);
    OQ_TRY(oq_feedback_create(context, &feedback, &s->options->gptq, grams->gram[site], grams->width[site], what));
    for (int i = 0; i < OQ_LINEARS; i++) {
        if (oq_sites_of(s->spec, i).columns != site || !is_rounded(r, i)) continue;
        const oq_groups groups = oq_weight_groups(s->spec, s->options, i);
        oq_real *rounded = s->transformed.quantized[i].real;
        OQ_TRY(oq_gptq(context, &groups, &feedback, r->transformed[i], r->folded->scale[i],
                       r->folded->zero_point[i], r->codes[i]));
        OQ_TRY(oq_dequantize(context, &groups, r->codes[i], r->folded->scale[i], r->folded->zero_point[i],
                             rounded));
        r->weights.weight[i] = rounded;
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

static oq_code round_block(oq_context *context, rounding *r)
{
    const bool sequential = r->session->options->gptq.sequential;
    const oq_block_spec *spec = r->session->spec;
    oq_grams grams;
    if (!sequential) {
        OQ_TRY(oq_grams_create(context, &grams, spec, -1));
        OQ_TRY(gather(context, r, &grams));
    }
    for (int k = 0; k < STAGES; k++) {
        if (stages[k] == OQ_SITE_NORM2 && !oq_has_norm(spec, OQ_NORM2)) continue; /* its linears read norm1 */
        const oq_mark mark = oq_arena_mark(context->arena);
        if (sequential) {
            OQ_TRY(oq_grams_create(context, &grams, spec, stages[k]));
            OQ_TRY(gather(context, r, &grams));
        }
        OQ_TRY(round_site(context, r, &grams, stages[k]));
        oq_arena_rewind(context->arena, mark);
    }
    return OQ_OK;
}

static void take(const rounding *r)
{
    for (int i = 0; i < OQ_LINEARS; i++) {
        if (!is_rounded(r, i)) continue;
        const oq_linear_shape shape = oq_shape_of(r->session->spec, i);
        memcpy(r->folded->codes[i], r->codes[i], (size_t)(shape.out * shape.in));
    }
}

oq_code oq_error_feedback(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights,
                          const oq_options *options, const oq_calibration_data *data, const oq_folded *folded,
                          oq_calibration_result *result)
{
    oq_options plain = *options;
    oq_session s;
    double nearest, fed;
    if (!oq_rounds_weights(spec, options)) return OQ_OK;
    plain.products = OQ_PRODUCTS_FLOAT32;
    plain.byte_gradients = false;
    OQ_TRY(oq_session_create(context, &s, spec, weights, &plain, data));
    OQ_TRY(oq_session_take(context, &s));
    oq_session_judge_few(&s);
    OQ_TRY(oq_session_evaluate(context, &s, result->theta, options->epochs - 1, &nearest));
    rounding r = {.session = &s, .folded = folded};
    OQ_TRY(create(context, &r));
    OQ_TRY(round_block(context, &r));
    OQ_TRY(oq_session_loss(context, &s, &fed));
    if (!(fed < nearest)) return OQ_OK;
    take(&r);
    result->loss_final = fed;
    result->kept = OQ_KEPT_FEEDBACK;
    return OQ_OK;
}
