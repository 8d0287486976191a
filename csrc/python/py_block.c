/* A block's forward pass and the head of a language model. */
#include "math/cross_entropy.h"
#include "python/block_args.h"
#include "python/call.h"
#include "python/topics.h"

/* y [N, T, H], window by window. */
static oq_code forward_windows(oq_context *context, const oq_block_args *args, const oq_real *x, oq_real *y)
{
    const int64_t window = args->data.tokens * args->spec.hidden;
    const oq_block_run run = {&args->spec, &args->options.activation, args->data.rope, args->data.tokens};
    oq_saved saved;
    OQ_TRY(oq_saved_create(context, &run, &saved));
    for (int64_t i = 0; i < args->data.samples; i++) {
        OQ_TRY(oq_check_cancel(context));
        OQ_TRY(oq_block_forward(context, &run, &args->weights, x + i * window, &saved, y + i * window));
    }
    return OQ_OK;
}

static PyObject *run_forward(const oq_block_args *args, const oq_real *x, int threads)
{
    oq_context context;
    oq_code code;
    PyArrayObject *y =
        oq_array_new(OQ_NPY_REAL, 3, (npy_intp[]){args->data.samples, args->data.tokens, args->spec.hidden});
    if (!y) return NULL;
    if (oq_call_begin(&context, threads) < 0) {
        oq_array_release(y);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS code = forward_windows(&context, args, x, oq_array_reals(y));
    Py_END_ALLOW_THREADS return oq_call_end(&context, code, (PyObject *)y);
}

static PyObject *block_forward(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"spec", "weights", "x", "cos", "sin", "activation", "threads", NULL};
    PyObject *spec, *weights, *stream, *cosine, *sine, *activation = Py_None, *result = NULL;
    int threads = 1;
    oq_block_args args;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "OOOOO|$Oi:block_forward", names, &spec, &weights,
                                     &stream, &cosine, &sine, &activation, &threads) ||
        oq_block_args_begin(&args) < 0)
        return NULL;
    if (oq_parse_spec(spec, &args.spec) == 0 && oq_parse_weights(weights, &args) == 0 &&
        oq_parse_activation(activation, &args.options.activation) == 0) {
        const oq_real *x = oq_parse_stream(stream, "x", &args);
        if (x && oq_parse_rope(cosine, sine, &args) == 0) result = run_forward(&args, x, threads);
    }
    oq_block_args_end(&args);
    return result;
}

typedef struct {
    oq_norm_shape shape;
    int64_t samples, tokens, vocabulary;
    const oq_real *hidden, *gain, *bias, *head;
    const int32_t *ids;
    double *nll;
} head_job;

/* nll [N, T - 1]: token t predicts token t + 1. */
static oq_code windows_nll(oq_context *context, const head_job *j)
{
    oq_real *normed;
    oq_norm_stats *stats;
    OQ_NEW(context, normed, j->shape.rows * j->shape.width);
    OQ_NEW(context, stats, j->shape.rows);
    for (int64_t i = 0; i < j->samples; i++) {
        oq_norm_forward(context, j->shape, j->hidden + i * j->tokens * j->shape.width, j->gain, j->bias, normed,
                        stats);
        OQ_TRY(oq_cross_entropy(context, normed, j->head, j->ids + i * j->tokens + 1, j->nll + i * j->shape.rows,
                                j->shape.rows, j->shape.width, j->vocabulary));
    }
    return OQ_OK;
}

static PyObject *run_head(head_job *j, int threads)
{
    oq_context context;
    oq_code code;
    PyArrayObject *nll = oq_array_new(NPY_DOUBLE, 2, (npy_intp[]){j->samples, j->shape.rows});
    if (!nll) return NULL;
    if (oq_call_begin(&context, threads) < 0) {
        oq_array_release(nll);
        return NULL;
    }
    j->nll = oq_array_doubles(nll);
    Py_BEGIN_ALLOW_THREADS code = windows_nll(&context, j);
    Py_END_ALLOW_THREADS return oq_call_end(&context, code, (PyObject *)nll);
}

/* The arrays of next_token_nll, checked against each other; 0 or -1. */
static int head_arrays(PyObject *const objects[5], PyArrayObject *arrays[5], head_job *j)
{
    static const char *const labels[5] = {"hidden", "norm_weight", "norm_bias", "lm_head", "tokens"};
    static const int dimensions[5] = {3, 1, 1, 2, 2};
    for (int i = 0; i < 5; i++) {
        if (objects[i] == Py_None && i == 2) continue;
        arrays[i] = oq_array_in(objects[i], labels[i], i == 4 ? NPY_INT32 : OQ_NPY_REAL, dimensions[i]);
        if (!arrays[i]) return -1;
    }
    const npy_intp *shape = PyArray_DIMS(arrays[0]), width = shape[2];
    if (oq_array_expect(arrays[1], labels[1], 1, &width) < 0 ||
        (arrays[2] && oq_array_expect(arrays[2], labels[2], 1, &width) < 0) ||
        oq_array_expect(arrays[3], labels[3], 2, (npy_intp[]){-1, width}) < 0 ||
        oq_array_expect(arrays[4], labels[4], 2, shape) < 0)
        return -1;
    if (shape[1] < 2) {
        PyErr_Format(PyExc_ValueError, "tokens: a window needs at least 2 tokens, got %zd", (Py_ssize_t)shape[1]);
        return -1;
    }
    *j = (head_job){.shape = {j->shape.kind, j->shape.eps, shape[1] - 1, width},
                    .samples = shape[0],
                    .tokens = shape[1],
                    .vocabulary = PyArray_DIM(arrays[3], 0),
                    .hidden = oq_array_reals(arrays[0]),
                    .gain = oq_array_reals(arrays[1]),
                    .bias = arrays[2] ? oq_array_reals(arrays[2]) : NULL,
                    .head = oq_array_reals(arrays[3]),
                    .ids = PyArray_DATA(arrays[4])};
    return 0;
}

static PyObject *next_token_nll(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"hidden",  "norm",   "norm_eps", "norm_weight", "norm_bias",
                            "lm_head", "tokens", "threads",  NULL};
    PyObject *objects[5], *result = NULL;
    PyArrayObject *arrays[5] = {NULL};
    const char *norm;
    head_job j = {.samples = 0};
    int threads = 1;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "OsdOOOO|$i:next_token_nll", names, &objects[0], &norm,
                                     &j.shape.eps, &objects[1], &objects[2], &objects[3], &objects[4], &threads))
        return NULL;
    j.shape.kind = norm[0] == 'l' ? OQ_NORM_LAYER : OQ_NORM_RMS;
    if (head_arrays(objects, arrays, &j) == 0) result = run_head(&j, threads);
    for (int i = 0; i < 5; i++) oq_array_release(arrays[i]);
    return result;
}

PyMethodDef oq_block_methods[] = {
    {"block_forward", (PyCFunction)(void (*)(void))block_forward, METH_VARARGS | METH_KEYWORDS,
     "One transformer block."},
    {"next_token_nll", (PyCFunction)(void (*)(void))next_token_nll, METH_VARARGS | METH_KEYWORDS,
     "Negative log-likelihood of each next token."},
    {NULL, NULL, 0, NULL},
};
