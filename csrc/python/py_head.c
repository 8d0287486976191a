/* The head of a language model, and how far two models' next tokens are from each other, with its gradient. */
#include <string.h>

#include "block/head.h"
#include "math/divergence.h"
#include "python/function.h"
#include "python/topics.h"

/* M predictions, H hidden, V vocabulary. */
struct values {
    oq_head head;
    double *nll;
    int32_t *best;
    oq_two_logits two;
    oq_divergence divergence;
    oq_head reference;
    double *kl;
    oq_real *dhidden;
    bool in_parts;
};

static const char *const norms[] = {"rms", "layer", NULL};
static const oq_argument token_nll_arguments[] = {
    OQ_FIELD("hidden", values, head.hidden, .shape = "MH"),
    OQ_FIELD("norm", values, head.norm, .choices = norms),
    OQ_FIELD("norm_eps", values, head.norm_eps),
    OQ_FIELD("norm_weight", values, head.gain, .shape = "H"),
    OQ_FIELD("norm_bias", values, head.bias, .shape = "H", .flags = OQ_NULLABLE),
    OQ_FIELD("lm_head", values, head.head, .shape = "VH"),
    OQ_FIELD("targets", values, head.targets, .shape = "M"),
    OQ_FIELD("lm_head_bias", values, head.head_bias, .shape = "V", .flags = OQ_NULLABLE | OQ_KEYWORD),
    OQ_FIELD("logit_cap", values, head.logit_cap, .flags = OQ_KEYWORD, .range = "[0, inf)"),
    OQ_THREADS,
    OQ_RESULT(nll, "M"),
    OQ_RESULT(best, "M"),
};

static oq_code token_nll_run(oq_call *call, values *v)
{
    v->head.rows = oq_size(call, 'M');
    v->head.width = oq_size(call, 'H');
    v->head.vocabulary = oq_size(call, 'V');
    return oq_token_nll(&call->context, &v->head, v->nll, v->best);
}

static const oq_argument divergence_arguments[] = {
    OQ_FIELD("reference", values, two.reference, .shape = "MV"),
    OQ_FIELD("logits", values, two.logits, .shape = "MV"),
    OQ_FIELD("targets", values, two.targets, .shape = "M"),
    OQ_THREADS,
    OQ_FIELD("kl", values, divergence.kl, .shape = "M", .flags = OQ_MADE),
    OQ_FIELD("reference_nll", values, divergence.reference_nll, .shape = "M", .flags = OQ_MADE),
    OQ_FIELD("nll", values, divergence.nll, .shape = "M", .flags = OQ_MADE),
    OQ_FIELD("same", values, divergence.same, .shape = "M", .flags = OQ_MADE),
};

static oq_code divergence_run(oq_call *call, values *v)
{
    v->two.rows = oq_size(call, 'M');
    v->two.vocabulary = oq_size(call, 'V');
    return oq_diverge(&call->context, &v->two, &v->divergence);
}

static const oq_argument head_divergence_arguments[] = {
    OQ_FIELD("hidden", values, head.hidden, .shape = "MH"),
    OQ_FIELD("reference", values, reference.hidden, .shape = "MH"),
    OQ_FIELD("norm", values, head.norm, .choices = norms),
    OQ_FIELD("norm_eps", values, head.norm_eps),
    OQ_FIELD("norm_weight", values, head.gain, .shape = "H"),
    OQ_FIELD("lm_head", values, head.head, .shape = "VH"),
    OQ_FIELD("reference_norm_weight", values, reference.gain, .shape = "H"),
    OQ_FIELD("reference_lm_head", values, reference.head, .shape = "VH"),
    OQ_FIELD("norm_bias", values, head.bias, .shape = "H", .flags = OQ_NULLABLE | OQ_KEYWORD),
    OQ_FIELD("lm_head_bias", values, head.head_bias, .shape = "V", .flags = OQ_NULLABLE | OQ_KEYWORD),
    OQ_FIELD("logit_cap", values, head.logit_cap, .flags = OQ_KEYWORD, .range = "[0, inf)"),
    OQ_SCALAR(in_parts, .flags = OQ_KEYWORD),
    OQ_FIELD("bfloat16", values, head.bf16, .flags = OQ_KEYWORD),
    OQ_THREADS,
    OQ_RESULT(kl, "M"),
    OQ_RESULT(dhidden, "MH"),
};

/* Both ends are of one architecture: a rotated one differs in its gain and its matrix. */
static oq_code head_divergence_run(oq_call *call, values *v)
{
    const oq_real *hidden = v->reference.hidden, *gain = v->reference.gain, *matrix = v->reference.head;
    v->head.rows = oq_size(call, 'M');
    v->head.width = oq_size(call, 'H');
    v->head.vocabulary = oq_size(call, 'V');
    v->reference = v->head;
    v->reference.hidden = hidden;
    v->reference.gain = gain;
    v->reference.head = matrix;
    call->context.in_parts = v->in_parts;
    return oq_head_divergence(&call->context, &v->head, &v->reference, v->kl, v->dhidden);
}

OQ_FUNCTION(token_nll);
OQ_FUNCTION(head_divergence);
OQ_FUNCTION(divergence);

PyMethodDef oq_head_methods[] = {
    OQ_METHOD(token_nll, "Negative log-likelihood of given next tokens, and the likeliest ones."),
    OQ_METHOD(head_divergence, "Kullback-Leibler divergence behind two heads, nats, and its mean's gradient."),
    OQ_METHOD(divergence, "Kullback-Leibler divergence of logits from a reference's, nats, likeliest tokens."),
    {NULL, NULL, 0, NULL},
};
