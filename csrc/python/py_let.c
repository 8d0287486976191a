/* LET on one linear: the diagonal map with its shift, forward and backward. */
#include "python/call.h"
#include "python/rows.h"
#include "python/topics.h"
#include "quant/check.h"
#include "transform/equivalent.h"

/* Arguments by place; absent ones are NULL. N rows of x, K inputs, M outputs. */
enum { X, W, S, SHIFT, BIAS, DX_T, DW_T, DB_T, ARGUMENTS };
static const char *const labels[ARGUMENTS] = {
    "x", "weight", "scale", "shift", "bias", "dx_transformed", "dweight_transformed", "dbias_transformed"};

typedef struct {
    PyArrayObject *in[ARGUMENTS];
    int64_t n, k, m;
    int threads;
} let_args;

static void end(let_args *a)
{
    for (int i = 0; i < ARGUMENTS; i++) oq_array_release(a->in[i]);
}

static const oq_real *reals(const let_args *a, int which)
{
    return a->in[which] ? oq_array_reals(a->in[which]) : NULL;
}

/* objects [ARGUMENTS], NULL or None where not given; 0 or -1. */
static int take(PyObject *const objects[ARGUMENTS], let_args *a)
{
    oq_rows x, dx;
    if (oq_rows_in(objects[X], labels[X], OQ_NPY_REAL, &x) < 0) return -1;
    a->in[X] = x.array;
    a->n = x.rows;
    a->k = x.width;
    if (objects[DX_T]) {
        if (oq_rows_in_like(objects[DX_T], labels[DX_T], OQ_NPY_REAL, x.array, x.width, &dx) < 0) return -1;
        a->in[DX_T] = dx.array;
    }
    a->m = -1;
    static const int order[] = {W, S, SHIFT, BIAS, DW_T, DB_T};
    for (int i = 0; i < 6; i++) {
        const int which = order[i], ndim = which == W || which == DW_T ? 2 : 1;
        const npy_intp inner = which == S || which == SHIFT ? a->k : a->m;
        const npy_intp matrix[2] = {a->m, a->k};
        if (!objects[which] || objects[which] == Py_None) continue;
        a->in[which] = oq_array_in(objects[which], labels[which], OQ_NPY_REAL, ndim);
        if (!a->in[which] || oq_array_expect(a->in[which], labels[which], ndim, ndim == 2 ? matrix : &inner) < 0)
            return -1;
        if (which == W) a->m = PyArray_DIM(a->in[W], 0);
    }
    return 0;
}

static oq_code check(oq_context *context, const let_args *a)
{
    const int64_t rows[ARGUMENTS] = {a->n, a->m, 1, 1, 1, a->n, a->m, 1};
    const int64_t widths[ARGUMENTS] = {a->k, a->k, a->k, a->k, a->m, a->k, a->k, a->m};
    for (int i = 0; i < ARGUMENTS; i++)
        if (a->in[i]) OQ_TRY(oq_check_finite(context, labels[i], reals(a, i), rows[i], widths[i]));
    return OQ_OK;
}

static oq_code create(oq_context *context, const let_args *a, oq_map *map)
{
    OQ_TRY(check(context, a));
    OQ_TRY(oq_map_create(context, map, OQ_MAP_DIAGONAL, (oq_affine){.blocks = 1, .width = a->k}, false));
    OQ_TRY(oq_map_forward(context, map, reals(a, S), "scale"));
    for (int64_t i = 0; i < a->k; i++)
        if (!isfinite((double)map->inverse[i]))
            return oq_fail(context, OQ_SINGULAR, "scale[%lld] is %g: it has no inverse", (long long)i,
                           (double)map->a[i]);
    return OQ_OK;
}

/* ---- let_forward ------------------------------------------------------------ */

/* out: x~, W~ and, with a shift, b~. */
static oq_code forward(oq_context *context, const let_args *a, PyArrayObject *const out[3])
{
    oq_map map;
    oq_real *centered;
    OQ_TRY(create(context, a, &map));
    OQ_NEW(context, centered, a->n * a->k);
    oq_center(reals(a, X), reals(a, SHIFT), centered, a->n, a->k);
    OQ_TRY(oq_map_input(context, &map, centered, oq_array_reals(out[0]), a->n));
    OQ_TRY(oq_map_columns(context, &map, 1, reals(a, W), oq_array_reals(out[1]), a->m));
    if (!a->in[SHIFT]) return OQ_OK;
    return oq_shifted_bias(context, reals(a, W), reals(a, SHIFT), reals(a, BIAS), oq_array_reals(out[2]), a->m,
                           a->k);
}

/* The bias passes as it is without a shift. */
static PyArrayObject *new_bias(const let_args *a)
{
    if (a->in[SHIFT]) return oq_array_new(OQ_NPY_REAL, 1, (npy_intp[]){a->m});
    if (a->in[BIAS]) return (PyArrayObject *)PyArray_NewCopy(a->in[BIAS], NPY_CORDER);
    return (PyArrayObject *)Py_NewRef(Py_None);
}

static PyObject *let_forward(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"x", "weight", "scale", "shift", "bias", "threads", NULL};
    PyObject *objects[ARGUMENTS] = {NULL}, *result = NULL;
    PyArrayObject *out[3] = {NULL};
    let_args a = {.threads = 1};
    oq_context context;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "OOO|OO$i:let_forward", names, &objects[X], &objects[W],
                                     &objects[S], &objects[SHIFT], &objects[BIAS], &a.threads))
        return NULL;
    if (take(objects, &a) == 0 && (out[0] = oq_rows_new(OQ_NPY_REAL, a.in[X], a.k)) &&
        (out[1] = oq_array_new(OQ_NPY_REAL, 2, (npy_intp[]){a.m, a.k})) && (out[2] = new_bias(&a)) &&
        oq_call_begin(&context, a.threads) == 0) {
        oq_code code;
        Py_BEGIN_ALLOW_THREADS code = forward(&context, &a, out);
        Py_END_ALLOW_THREADS result = oq_call_end(&context, code, Py_BuildValue("OOO", out[0], out[1], out[2]));
    }
    for (int i = 0; i < 3; i++) oq_array_release(out[i]);
    end(&a);
    return result;
}

/* ---- let_backward ------------------------------------------------------------ */

/* out: dx, dW, ds and, with a shift, dshift. */
static oq_code backward(oq_context *context, const let_args *a, PyArrayObject *const out[4])
{
    oq_map map;
    oq_real *centered, *dx = oq_array_reals(out[0]), *dw = oq_array_reals(out[1]), *ds = oq_array_reals(out[2]);
    OQ_TRY(create(context, a, &map));
    OQ_NEW(context, centered, a->n * a->k);
    oq_center(reals(a, X), reals(a, SHIFT), centered, a->n, a->k);
    OQ_TRY(oq_map_input_backward(context, &map, centered, reals(a, DX_T), dx, a->n));
    OQ_TRY(oq_map_columns_backward(context, &map, 1, reals(a, W), reals(a, DW_T), a->m));
    OQ_TRY(oq_map_columns(context, &map, 1, reals(a, DW_T), dw, a->m)); /* dW = dW~ A, A diagonal */
    for (int64_t i = 0; i < a->k; i++) ds[i] = 0;
    OQ_TRY(oq_map_backward(context, &map, reals(a, S), ds));
    if (!a->in[SHIFT]) return OQ_OK;
    oq_real *dshift = oq_array_reals(out[3]);
    for (int64_t i = 0; i < a->k; i++) dshift[i] = 0;
    OQ_TRY(oq_center_backward(context, dx, dshift, a->n, a->k));
    if (!a->in[DB_T]) return OQ_OK;
    return oq_shifted_bias_backward(context, reals(a, W), reals(a, SHIFT), reals(a, DB_T), dshift, dw, a->m, a->k);
}

static int new_gradients(const let_args *a, PyArrayObject *out[4])
{
    out[0] = oq_rows_new(OQ_NPY_REAL, a->in[X], a->k);
    out[1] = oq_array_new(OQ_NPY_REAL, 2, (npy_intp[]){a->m, a->k});
    out[2] = oq_array_new(OQ_NPY_REAL, 1, (npy_intp[]){a->k});
    out[3] = a->in[SHIFT] ? oq_array_new(OQ_NPY_REAL, 1, (npy_intp[]){a->k}) : (PyArrayObject *)Py_NewRef(Py_None);
    return out[0] && out[1] && out[2] && out[3] ? 0 : -1;
}

static PyObject *let_backward(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {
        "x",       "weight", "scale", "dx_transformed", "dweight_transformed", "shift", "dbias_transformed",
        "threads", NULL};
    PyObject *o[ARGUMENTS] = {NULL}, *result = NULL;
    PyArrayObject *out[4] = {NULL};
    let_args a = {.threads = 1};
    oq_context context;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "OOOOO|OO$i:let_backward", names, &o[X], &o[W], &o[S],
                                     &o[DX_T], &o[DW_T], &o[SHIFT], &o[DB_T], &a.threads))
        return NULL;
    if (take(o, &a) == 0 && new_gradients(&a, out) == 0 && oq_call_begin(&context, a.threads) == 0) {
        oq_code code;
        Py_BEGIN_ALLOW_THREADS code = backward(&context, &a, out);
        Py_END_ALLOW_THREADS result =
            oq_call_end(&context, code, Py_BuildValue("OOOO", out[0], out[1], out[2], out[3]));
    }
    for (int i = 0; i < 4; i++) oq_array_release(out[i]);
    end(&a);
    return result;
}

PyMethodDef oq_let_methods[] = {
    {"let_forward", (PyCFunction)(void (*)(void))let_forward, METH_VARARGS | METH_KEYWORDS,
     "(x - shift) / scale, W scale, b + W shift."},
    {"let_backward", (PyCFunction)(void (*)(void))let_backward, METH_VARARGS | METH_KEYWORDS,
     "Gradients of x, W, scale and shift."},
    {NULL, NULL, 0, NULL},
};
