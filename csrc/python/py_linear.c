/* Calibrating a single linear layer. */
#include "calibrate/calibrate_linear.h"
#include "python/block_args.h"
#include "python/call.h"
#include "python/learned.h"
#include "python/rows.h"
#include "python/topics.h"
#include "python/training.h"

typedef struct {
    PyArrayObject *weight, *x, *bias; /* owned; bias may be NULL */
    oq_layer layer;
    oq_options options;
} linear_args;

static void end(linear_args *a)
{
    oq_array_release(a->weight);
    oq_array_release(a->x);
    oq_array_release(a->bias);
}

static int take(PyObject *weight, PyObject *x, PyObject *bias, PyObject *options, linear_args *a)
{
    oq_rows rows;
    if (oq_parse_options(options, &a->options) < 0 ||
        !(a->weight = oq_array_in(weight, "weight", OQ_NPY_REAL, 2)) || oq_rows_in(x, "x", OQ_NPY_REAL, &rows) < 0)
        return -1;
    a->x = rows.array;
    const npy_intp out = PyArray_DIM(a->weight, 0), in = PyArray_DIM(a->weight, 1);
    if (rows.width != in) {
        PyErr_Format(PyExc_ValueError, "x: expected rows of %zd values, as of weight, got %lld", (Py_ssize_t)in,
                     (long long)rows.width);
        return -1;
    }
    if (bias != Py_None &&
        (!(a->bias = oq_array_in(bias, "bias", OQ_NPY_REAL, 1)) || oq_array_expect(a->bias, "bias", 1, &out) < 0))
        return -1;
    a->layer = (oq_layer){rows.rows,
                          in,
                          out,
                          oq_array_reals(a->x),
                          oq_array_reals(a->weight),
                          a->bias ? oq_array_reals(a->bias) : NULL};
    return 0;
}

static int put_weight(PyObject *dict, const linear_args *a, oq_folded_layer *f)
{
    const npy_intp out = a->layer.out, in = a->layer.in, group = oq_group_of(&a->options, in);
    const npy_intp groups = group ? (in + group - 1) / group : 0;
    if (!oq_is_quantized(a->options.weight))
        return (f->weight = oq_put_new(dict, "weight", OQ_NPY_REAL, 2, out, in)) ? 0 : -1;
    f->codes = oq_put_new(dict, "codes", NPY_UINT8, 2, out, in);
    if (f->codes) f->scale = oq_put_new(dict, "scale", OQ_NPY_REAL, 2, out, groups);
    if (f->scale) f->zero_point = oq_put_new(dict, "zero_point", NPY_UINT8, 2, out, groups);
    return f->zero_point ? 0 : -1;
}

/* The folded layer's arrays in a new dict, and the pointers into them. */
static PyObject *folded_arrays(const linear_args *a, oq_folded_layer *f)
{
    const npy_intp out = a->layer.out, in = a->layer.in;
    const oq_map_kind kind = a->options.map[OQ_SITE_NORM1];
    const int ndim = kind == OQ_MAP_DENSE ? 2 : 1;
    PyObject *dict = PyDict_New();
    int failed = !dict || put_weight(dict, a, f) < 0;
    const bool shifted = a->options.shift && kind != OQ_MAP_NONE;
    if (!failed && (a->bias || shifted)) failed = !(f->bias = oq_put_new(dict, "bias", OQ_NPY_REAL, 1, out, 0));
    if (!failed && shifted) failed = !(f->shift = oq_put_new(dict, "shift", OQ_NPY_REAL, 1, in, 0));
    if (!failed && kind != OQ_MAP_NONE)
        failed = !(f->map = oq_put_new(dict, "map", OQ_NPY_REAL, ndim, in, in)) ||
                 !(f->map_inverse = oq_put_new(dict, "map_inverse", OQ_NPY_REAL, ndim, in, in));
    if (!failed && kind == OQ_MAP_DENSE)
        failed = !(f->margins = oq_put_new(dict, "margins", NPY_DOUBLE, 1, in, 0));
    if (failed) Py_CLEAR(dict);
    return dict;
}

static PyObject *run(const linear_args *a, PyObject *on_step, int threads)
{
    static const char *const map_names[] = {"input"};
    oq_learnables list;
    oq_folded_layer folded = {NULL};
    oq_context context;
    oq_python_hook hook = {on_step == Py_None ? NULL : on_step, NULL};
    const oq_hooks hooks = {.on_step = oq_python_step, .user = &hook};
    PyObject *learnables = NULL, *result = NULL;
    oq_learnables_of_layer(a->layer.out, a->layer.in, &a->options, &list);
    PyArrayObject *trace = oq_array_new(NPY_DOUBLE, 1, (npy_intp[]){a->options.epochs});
    PyArrayObject *theta = oq_array_new(OQ_NPY_REAL, 1, (npy_intp[]){list.total});
    PyObject *tensors = folded_arrays(a, &folded);
    if (trace && theta && tensors && oq_call_begin(&context, threads) == 0) {
        oq_calibration_result r = {.theta = oq_array_reals(theta), .trace = oq_array_doubles(trace)};
        hook.state = PyEval_SaveThread();
        const oq_code code = oq_calibrate_linear(&context, &a->layer, &a->options, &hooks, &r, &folded);
        PyEval_RestoreThread(hook.state);
        if (code == OQ_OK && (learnables = oq_learnables_to_dict(&list, r.theta)))
            result =
                oq_training_report(&r, map_names, learnables, Py_NewRef(tensors), Py_NewRef((PyObject *)trace));
        if (code == OQ_CANCELLED && PyErr_Occurred()) /* the callback's own exception goes on */
            oq_arena_destroy(context.arena);
        else
            result = oq_call_end(&context, code, result);
    }
    Py_XDECREF(tensors);
    oq_array_release(theta);
    oq_array_release(trace);
    return result;
}

static PyObject *calibrate_linear(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"weight", "x", "bias", "options", "on_step", "threads", NULL};
    PyObject *weight, *x, *bias, *options, *on_step = Py_None, *result = NULL;
    linear_args a = {.weight = NULL};
    int threads = 1;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "OOOO|$Oi:calibrate_linear", names, &weight, &x, &bias,
                                     &options, &on_step, &threads))
        return NULL;
    if (take(weight, x, bias, options, &a) == 0) result = run(&a, on_step, threads);
    end(&a);
    return result;
}

PyMethodDef oq_linear_methods[] = {
    {"calibrate_linear", (PyCFunction)(void (*)(void))calibrate_linear, METH_VARARGS | METH_KEYWORDS,
     "Train, check and fold one linear layer."},
    {NULL, NULL, 0, NULL},
};
