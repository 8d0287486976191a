/* The head of a language model. */
#include <string.h>

#include "block/head.h"
#include "python/function.h"
#include "python/topics.h"

/* N windows of T tokens, H hidden, V vocabulary; n = T - 1 predictions. */
struct values {
    oq_head head;
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
    OQ_FIELD("hidden", values, head.hidden, .shape = "NTH"),
    OQ_FIELD("norm", values, head.norm, .choices = norms),
    OQ_FIELD("norm_eps", values, head.norm_eps),
    OQ_FIELD("norm_weight", values, head.gain, .shape = "H"),
    OQ_FIELD("norm_bias", values, head.bias, .shape = "H", .flags = OQ_NULLABLE),
    OQ_FIELD("lm_head", values, head.head, .shape = "VH"),
    OQ_FIELD("tokens", values, head.ids, .shape = "NT", .then = count_predictions),
    OQ_THREADS,
    OQ_RESULT(nll, "Nn"),
};

static oq_code next_token_nll_run(oq_call *call, values *v)
{
    v->head.samples = oq_size(call, 'N');
    v->head.tokens = oq_size(call, 'T');
    v->head.width = oq_size(call, 'H');
    v->head.vocabulary = oq_size(call, 'V');
    return oq_next_token_nll(&call->context, &v->head, v->nll);
}

OQ_FUNCTION(next_token_nll);

PyMethodDef oq_head_methods[] = {
    OQ_METHOD(next_token_nll, "Negative log-likelihood of each next token."),
    {NULL, NULL, 0, NULL},
};
