/* The head of a language model. */
#include <string.h>

#include "block/head.h"
#include "python/function.h"
#include "python/topics.h"

/* N windows of T tokens, H hidden, V vocabulary; n = T - 1 predictions. */
struct values {
    const oq_real *hidden, *norm_weight, *norm_bias, *lm_head;
    const int32_t *tokens;
    oq_norm_kind norm;
    double norm_eps;
    double *nll;
};

static int count_predictions(oq_call *call, values *v)
{
    (void)v;
    const int64_t tokens = oq_size(call, 'T');
    call->size['n'] = tokens - 1;
    if (tokens >= 2) return 0;
    PyErr_Format(PyExc_ValueError, "tokens: a window needs at least 2 tokens, got %lld", (long long)tokens);
    return -1;
}

static const char *const norms[] = {"rms", "layer", NULL};
static const oq_argument next_token_nll_arguments[] = {
    OQ_ARRAY(hidden, "NTH"),
    OQ_SCALAR(norm, .choices = norms),
    OQ_SCALAR(norm_eps),
    OQ_ARRAY(norm_weight, "H"),
    OQ_ARRAY(norm_bias, "H", .flags = OQ_NULLABLE),
    OQ_ARRAY(lm_head, "VH"),
    OQ_ARRAY(tokens, "NT", .then = count_predictions),
    OQ_THREADS,
    OQ_RESULT(nll, "Nn"),
};

static oq_code next_token_nll_run(oq_call *call, values *v)
{
    const oq_head head = {
        v->norm,   v->norm_eps,    oq_size(call, 'N'), oq_size(call, 'T'), oq_size(call, 'H'), oq_size(call, 'V'),
        v->hidden, v->norm_weight, v->norm_bias,       v->lm_head,         v->tokens};
    return oq_next_token_nll(&call->context, &head, v->nll);
}

OQ_FUNCTION(next_token_nll);

PyMethodDef oq_head_methods[] = {
    OQ_METHOD(next_token_nll, "Negative log-likelihood of each next token."),
    {NULL, NULL, 0, NULL},
};
