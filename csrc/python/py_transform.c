/* The affine map, its gradual mask and the Levy-Desplanques check, on arrays. */
#include <string.h>

#include "math/inverse.h"
#include "python/call.h"
#include "python/rows.h"
#include "python/topics.h"
#include "quant/check.h"
#include "transform/affine.h"
#include "transform/dominance.h"

#define LARGEST_CONDITION 1e12

/* Square matrices [n, n] or [blocks, n, n]. */
typedef struct {
    PyArrayObject *array;
    int64_t blocks, n;
} squares;

static int squares_in(PyObject *object, const char *name, int type, squares *s)
{
    s->array = oq_array_in(object, name, type, -1);
    if (!s->array) return -1;
    const int ndim = PyArray_NDIM(s->array);
    if ((ndim == 2 || ndim == 3) && PyArray_DIM(s->array, ndim - 1) == PyArray_DIM(s->array, ndim - 2)) {
        s->n = PyArray_DIM(s->array, ndim - 1);
        s->blocks = ndim == 3 ? PyArray_DIM(s->array, 0) : 1;
        return 0;
    }
    PyObject *shape = PyObject_GetAttrString((PyObject *)s->array, "shape");
    if (shape) PyErr_Format(PyExc_ValueError, "%s: expected shape (n, n) or (blocks, n, n), got %R", name, shape);
    Py_XDECREF(shape);
    oq_array_release(s->array);
    s->array = NULL;
    return -1;
}

/* Doubles, as the matrices are: the core's own check is for reals. */
static oq_code check_doubles(oq_context *context, const char *name, const double *a, int64_t rows, int64_t width)
{
    for (int64_t i = 0; i < rows * width; i++)
        if (!isfinite(a[i]))
            return oq_fail(context, OQ_NOT_FINITE, "%s row %lld column %lld: %g is not finite", name,
                           (long long)(i / width), (long long)(i % width), a[i]);
    return OQ_OK;
}

static oq_code check_squares(oq_context *context, const char *name, const squares *s)
{
    return check_doubles(context, name, oq_array_doubles(s->array), s->blocks * s->n, s->n);
}

/* ---- affine_forward, affine_backward ---------------------------------------- */

typedef struct {
    squares p, da, dinverse; /* the gradients' arrays are NULL where not given */
    oq_affine affine;
} affine_args;

static void end(affine_args *a)
{
    oq_array_release(a->p.array);
    oq_array_release(a->da.array);
    oq_array_release(a->dinverse.array);
}

/* band < 0: fully open. */
static int set_affine(affine_args *a, long long band, double stability, const char *parametrization)
{
    const bool relative = strcmp(parametrization, "relative") == 0;
    if (!relative && strcmp(parametrization, "absolute") != 0) {
        PyErr_Format(PyExc_ValueError, "parametrization: expected relative or absolute, got \"%s\"",
                     parametrization);
        return -1;
    }
    if (!(stability >= 0) || !isfinite(stability)) {
        PyErr_SetString(PyExc_ValueError, "stability: expected a finite number of at least 0");
        return -1;
    }
    a->affine = (oq_affine){
        relative ? OQ_RELATIVE : OQ_ABSOLUTE, {band < 0 ? a->p.n : band, stability}, a->p.blocks, a->p.n};
    return 0;
}

/* A and its inverse, block by block: without pivoting where dominance makes that stable. */
static oq_code materialise(oq_context *context, const affine_args *args, double *a, double *inverse)
{
    const int64_t n = args->p.n;
    char name[40];
    OQ_TRY(oq_check_finite(context, "parameters", oq_array_reals(args->p.array), args->p.blocks * n, n));
    oq_affine_forward(&args->affine, oq_array_reals(args->p.array), a);
    OQ_TRY(check_doubles(context, "A", a, args->p.blocks * n, n));
    for (int64_t b = 0; b < args->p.blocks; b++) {
        double *block = a + b * n * n, *block_inverse = inverse + b * n * n;
        snprintf(name, sizeof name, "block %lld of A", (long long)b);
        OQ_TRY(oq_inverse(context, block, block_inverse, n, !(oq_weakest_row(block, n).margin > 0), name));
        const double condition = oq_condition_inf(block, block_inverse, n);
        if (!(condition <= LARGEST_CONDITION))
            return oq_fail(context, OQ_SINGULAR, "%s: its condition number %.3g is beyond 1e12", name, condition);
    }
    return OQ_OK;
}

static PyArrayObject *new_like(const squares *s, int type) { return oq_rows_new(type, s->array, s->n); }

static PyObject *affine_forward(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"parameters", "band", "stability", "parametrization", "threads", NULL};
    PyObject *parameters, *result = NULL;
    PyArrayObject *a = NULL, *inverse = NULL;
    const char *parametrization = "relative";
    long long band = -1;
    double stability = 1;
    int threads = 1;
    affine_args args = {.p = {.array = NULL}};
    oq_context context;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "O|$Ldsi:affine_forward", names, &parameters, &band,
                                     &stability, &parametrization, &threads))
        return NULL;
    if (squares_in(parameters, "parameters", OQ_NPY_REAL, &args.p) == 0 &&
        set_affine(&args, band, stability, parametrization) == 0 && (a = new_like(&args.p, NPY_DOUBLE)) &&
        (inverse = new_like(&args.p, NPY_DOUBLE)) && oq_call_begin(&context, threads) == 0) {
        oq_code code;
        Py_BEGIN_ALLOW_THREADS code = materialise(&context, &args, oq_array_doubles(a), oq_array_doubles(inverse));
        Py_END_ALLOW_THREADS result = oq_call_end(&context, code, Py_BuildValue("OO", a, inverse));
    }
    oq_array_release(a);
    oq_array_release(inverse);
    end(&args);
    return result;
}

/* dp = the gradient of A and, through -A^-T dA^-1 A^-T, of its inverse, seen by the parameters. */
static oq_code to_parameters(oq_context *context, const affine_args *args, oq_real *dp)
{
    const int64_t n = args->p.n, count = args->p.blocks * n * n;
    double *a, *inverse, *da;
    OQ_NEW(context, a, count);
    OQ_NEW(context, inverse, count);
    OQ_NEW_ZERO(context, da, count);
    OQ_TRY(materialise(context, args, a, inverse));
    if (args->da.array) {
        OQ_TRY(check_squares(context, "da", &args->da));
        memcpy(da, oq_array_doubles(args->da.array), sizeof *da * (size_t)count);
    }
    if (args->dinverse.array) {
        OQ_TRY(check_squares(context, "dinverse", &args->dinverse));
        for (int64_t b = 0; b < args->p.blocks; b++)
            OQ_TRY(oq_inverse_backward(context, inverse + b * n * n,
                                       oq_array_doubles(args->dinverse.array) + b * n * n, da + b * n * n, n));
    }
    memset(dp, 0, sizeof *dp * (size_t)count);
    oq_affine_backward(&args->affine, oq_array_reals(args->p.array), da, dp);
    return OQ_OK;
}

/* An optional gradient of the shape of p. */
static int gradient_in(PyObject *object, const char *name, const squares *p, squares *s)
{
    oq_rows rows;
    if (object == Py_None) return 0;
    if (oq_rows_in_like(object, name, NPY_DOUBLE, p->array, p->n, &rows) < 0) return -1;
    *s = (squares){rows.array, p->blocks, p->n};
    return 0;
}

static PyObject *affine_backward(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"parameters",      "da",      "dinverse", "band", "stability",
                            "parametrization", "threads", NULL};
    PyObject *parameters, *da, *dinverse, *result = NULL;
    PyArrayObject *dp = NULL;
    const char *parametrization = "relative";
    long long band = -1;
    double stability = 1;
    int threads = 1;
    affine_args args = {.p = {.array = NULL}};
    oq_context context;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "OOO|$Ldsi:affine_backward", names, &parameters, &da,
                                     &dinverse, &band, &stability, &parametrization, &threads))
        return NULL;
    if (squares_in(parameters, "parameters", OQ_NPY_REAL, &args.p) == 0 &&
        set_affine(&args, band, stability, parametrization) == 0 &&
        gradient_in(da, "da", &args.p, &args.da) == 0 &&
        gradient_in(dinverse, "dinverse", &args.p, &args.dinverse) == 0 && (dp = new_like(&args.p, OQ_NPY_REAL)) &&
        oq_call_begin(&context, threads) == 0) {
        oq_code code;
        Py_BEGIN_ALLOW_THREADS code = to_parameters(&context, &args, oq_array_reals(dp));
        Py_END_ALLOW_THREADS result = oq_call_end(&context, code, Py_NewRef((PyObject *)dp));
    }
    oq_array_release(dp);
    end(&args);
    return result;
}

/* ---- gradual_mask ------------------------------------------------------------- */

static PyObject *gradual_mask(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"width", "epoch", "epochs", "stability", NULL};
    long long width, epoch, epochs;
    double stability = 1;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "LLL|d:gradual_mask", names, &width, &epoch, &epochs,
                                     &stability))
        return NULL;
    if (width < 0 || width > INT32_MAX || epochs < 1 || epochs > INT32_MAX || epoch < 0 || epoch >= epochs)
        return PyErr_Format(PyExc_ValueError,
                            "expected a width of at least 0 and 0 <= epoch < epochs, got %lld, %lld "
                            "and %lld",
                            width, epoch, epochs);
    if (!(stability >= 0) || !isfinite(stability)) {
        PyErr_SetString(PyExc_ValueError, "stability: expected a finite number of at least 0");
        return NULL;
    }
    PyArrayObject *mask = oq_array_new(NPY_DOUBLE, 2, (npy_intp[]){(npy_intp)width, (npy_intp)width});
    const oq_mask rule = {oq_mask_band(width, epoch, epochs), stability};
    for (int64_t i = 0; mask && i < width; i++)
        for (int64_t j = 0; j < width; j++) oq_array_doubles(mask)[i * width + j] = oq_mask_value(rule, i, j);
    return (PyObject *)mask;
}

/* ---- dominance ------------------------------------------------------------------ */

static PyObject *dominance_margins(PyObject *module, PyObject *object)
{
    squares a;
    oq_context context;
    (void)module;
    if (squares_in(object, "a", NPY_DOUBLE, &a) < 0) return NULL;
    PyArrayObject *margins = oq_array_new(NPY_DOUBLE, PyArray_NDIM(a.array) - 1, PyArray_DIMS(a.array));
    if (!margins || oq_call_begin(&context, 1) < 0) {
        oq_array_release(margins);
        oq_array_release(a.array);
        return NULL;
    }
    const oq_code code = check_squares(&context, "a", &a);
    for (int64_t r = 0; code == OQ_OK && r < a.blocks * a.n; r++)
        oq_array_doubles(margins)[r] = oq_row_margin(oq_array_doubles(a.array) + r * a.n, r % a.n, a.n);
    oq_array_release(a.array);
    return oq_call_end(&context, code, (PyObject *)margins);
}

static PyObject *varah_bound(PyObject *module, PyObject *object)
{
    squares a;
    oq_context context;
    (void)module;
    if (squares_in(object, "a", NPY_DOUBLE, &a) < 0) return NULL;
    PyArrayObject *bounds = oq_array_new(NPY_DOUBLE, PyArray_NDIM(a.array) - 2, PyArray_DIMS(a.array));
    if (!bounds || oq_call_begin(&context, 1) < 0) {
        oq_array_release(bounds);
        oq_array_release(a.array);
        return NULL;
    }
    const oq_code code = check_squares(&context, "a", &a);
    for (int64_t b = 0; code == OQ_OK && b < a.blocks; b++)
        oq_array_doubles(bounds)[b] =
            oq_varah_bound(oq_weakest_row(oq_array_doubles(a.array) + b * a.n * a.n, a.n).margin);
    oq_array_release(a.array);
    return oq_call_end(&context, code, PyArray_Return(bounds));
}

static PyObject *project_dominant(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"a", "tau", NULL};
    PyObject *object;
    squares a;
    oq_context context;
    double tau = 0.05;
    int64_t changed = 0;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "O|d:project_dominant", names, &object, &tau))
        return NULL;
    if (!(tau > 0 && tau < 1)) {
        PyErr_SetString(PyExc_ValueError, "tau: expected a number between 0 and 1");
        return NULL;
    }
    if (squares_in(object, "a", NPY_DOUBLE, &a) < 0) return NULL;
    PyArrayObject *copy = (PyArrayObject *)PyArray_NewCopy(a.array, NPY_CORDER);
    oq_array_release(a.array);
    if (!copy || oq_call_begin(&context, 1) < 0) {
        oq_array_release(copy);
        return NULL;
    }
    a.array = copy;
    const oq_code code = check_squares(&context, "a", &a);
    for (int64_t b = 0; code == OQ_OK && b < a.blocks; b++)
        changed += oq_project_dominant(oq_array_doubles(copy) + b * a.n * a.n, a.n, tau);
    return oq_call_end(&context, code, Py_BuildValue("NL", copy, (long long)changed));
}

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

PyMethodDef oq_transform_methods[] = {
    {"affine_forward", WITH_KEYWORDS(affine_forward), "A and its inverse from the parameters."},
    {"affine_backward", WITH_KEYWORDS(affine_backward), "Gradient of the parameters."},
    {"gradual_mask", WITH_KEYWORDS(gradual_mask), "The mask of an epoch."},
    {"dominance_margins", dominance_margins, METH_O, "|A_ii| - sum |A_ij| of every row."},
    {"varah_bound", varah_bound, METH_O, "1 / smallest margin."},
    {"project_dominant", WITH_KEYWORDS(project_dominant), "Shrink the off-diagonals of weak rows."},
    {NULL, NULL, 0, NULL},
};
