/* The quantizer on arrays: fake quantization forward and backward, codes, and their bit streams. */
#include <limits.h>

#include "python/call.h"
#include "python/rows.h"
#include "python/topics.h"
#include "quant/check.h"
#include "quant/fake_quantize.h"
#include "quant/pack.h"

/* ---- arguments ------------------------------------------------------------ */

typedef struct {
    oq_rows x, dout, max_logit, min_logit; /* arrays owned: drop them with end() */
    oq_groups groups;
    int threads;
} quant_args;

static void end(quant_args *a)
{
    oq_array_release(a->x.array);
    oq_array_release(a->dout.array);
    oq_array_release(a->max_logit.array);
    oq_array_release(a->min_logit.array);
}

/* groups from the shape of x and the group size asked for; 0 or -1. */
static int set_groups(const oq_rows *x, int64_t group_size, oq_groups *groups)
{
    if (group_size < 0) {
        PyErr_Format(PyExc_ValueError, "group_size: expected at least 0 (0: the whole row), got %lld",
                     (long long)group_size);
        return -1;
    }
    groups->rows = x->rows;
    groups->width = x->width;
    groups->group = group_size > 0 && group_size < x->width ? group_size : x->width;
    if (groups->group == 0) groups->group = 1;
    return 0;
}

static int set_logits(quant_args *a, PyObject *max_logit, PyObject *min_logit)
{
    const int64_t per_row = oq_groups_per_row(&a->groups);
    if (max_logit == Py_None && min_logit == Py_None) return 0;
    if (max_logit == Py_None || min_logit == Py_None) {
        PyErr_SetString(PyExc_ValueError, "max_logit and min_logit go together: give both or none");
        return -1;
    }
    return oq_rows_in_like(max_logit, "max_logit", OQ_NPY_REAL, a->x.array, per_row, &a->max_logit) < 0 ||
                   oq_rows_in_like(min_logit, "min_logit", OQ_NPY_REAL, a->x.array, per_row, &a->min_logit) < 0
               ? -1
               : 0;
}

/* (x[, dout], *, bits, group_size, symmetric, full_range, max_logit, min_logit, threads); 0 or -1. */
static int parse(PyObject *positional, PyObject *keywords, bool backward, const char *name, quant_args *a)
{
    static char *all[] = {"x",          "dout",      "bits",      "group_size", "symmetric",
                          "full_range", "max_logit", "min_logit", "threads",    NULL};
    static char *without_dout[] = {"x",         "bits",      "group_size", "symmetric", "full_range",
                                   "max_logit", "min_logit", "threads",    NULL};
    PyObject *x, *dout = NULL, *max_logit = Py_None, *min_logit = Py_None;
    long long group_size = 0;
    int symmetric = 0, full_range = 0, bits = INT_MIN;
    char format[48];
    *a = (quant_args){.threads = 1};
    snprintf(format, sizeof format, "%s|$iLppOOi:%s", backward ? "OO" : "O", name);
    const int parsed =
        backward ? PyArg_ParseTupleAndKeywords(positional, keywords, format, all, &x, &dout, &bits, &group_size,
                                               &symmetric, &full_range, &max_logit, &min_logit, &a->threads)
                 : PyArg_ParseTupleAndKeywords(positional, keywords, format, without_dout, &x, &bits, &group_size,
                                               &symmetric, &full_range, &max_logit, &min_logit, &a->threads);
    if (parsed && bits == INT_MIN) PyErr_Format(PyExc_TypeError, "%s() needs bits", name);
    if (!parsed || bits == INT_MIN || oq_rows_in(x, "x", OQ_NPY_REAL, &a->x) < 0) return -1;
    a->groups.quantizer = (oq_quantizer){bits, symmetric != 0, full_range != 0};
    if (set_groups(&a->x, group_size, &a->groups) < 0 || set_logits(a, max_logit, min_logit) < 0) return -1;
    return backward ? oq_rows_in_like(dout, "dout", OQ_NPY_REAL, a->x.array, a->x.width, &a->dout) : 0;
}

static oq_clip clip_of(const quant_args *a)
{
    if (!a->max_logit.array) return (oq_clip){NULL, NULL};
    return (oq_clip){oq_array_reals(a->max_logit.array), oq_array_reals(a->min_logit.array)};
}

static oq_code check_matrix(oq_context *context, const char *name, const oq_rows *m)
{
    return m->array ? oq_check_finite(context, name, oq_array_reals(m->array), m->rows, m->width) : OQ_OK;
}

static oq_code check(oq_context *context, const quant_args *a)
{
    OQ_TRY(oq_check_quantizable(context, "x", oq_array_reals(a->x.array), a->x.rows, a->x.width));
    OQ_TRY(check_matrix(context, "dout", &a->dout));
    OQ_TRY(check_matrix(context, "max_logit", &a->max_logit));
    return check_matrix(context, "min_logit", &a->min_logit);
}

/* ---- fake_quantize, fake_quantize_backward -------------------------------- */

static oq_code forward(oq_context *context, const quant_args *a, oq_real *out, oq_range **ranges)
{
    OQ_TRY(check(context, a));
    OQ_NEW(context, *ranges, a->groups.rows * oq_groups_per_row(&a->groups));
    return oq_fake_quantize_forward(context, &a->groups, clip_of(a), oq_array_reals(a->x.array), out, *ranges);
}

static PyObject *fake_quantize(PyObject *module, PyObject *positional, PyObject *keywords)
{
    quant_args a;
    oq_context context;
    oq_range *ranges;
    PyArrayObject *out = NULL;
    PyObject *result = NULL;
    (void)module;
    if (parse(positional, keywords, false, "fake_quantize", &a) == 0 &&
        (out = oq_rows_new(OQ_NPY_REAL, a.x.array, a.x.width)) && oq_call_begin(&context, a.threads) == 0) {
        oq_code code;
        Py_BEGIN_ALLOW_THREADS code = forward(&context, &a, oq_array_reals(out), &ranges);
        Py_END_ALLOW_THREADS result = oq_call_end(&context, code, Py_NewRef((PyObject *)out));
    }
    oq_array_release(out);
    end(&a);
    return result;
}

/* grads: dx, dmax_logit, dmin_logit; the last two NULL without LWC. */
static oq_code backward(oq_context *context, const quant_args *a, PyArrayObject *const grads[3])
{
    oq_range *ranges;
    oq_real *to[3] = {NULL};
    for (int i = 0; i < 3; i++)
        if (grads[i]) to[i] = oq_array_reals(grads[i]);
    OQ_TRY(forward(context, a, to[0], &ranges));
    for (int i = 1; i < 3 && to[i]; i++)
        for (int64_t k = 0; k < a->max_logit.rows * a->max_logit.width; k++) to[i][k] = 0;
    return oq_fake_quantize_backward(context, &a->groups, clip_of(a), oq_array_reals(a->x.array), ranges,
                                     oq_array_reals(a->dout.array), to[0], to[1], to[2]);
}

/* New arrays for dx and, with LWC, the two logits' gradients; 0 or -1. */
static int new_gradients(const quant_args *a, PyArrayObject *grads[3])
{
    grads[0] = oq_rows_new(OQ_NPY_REAL, a->x.array, a->x.width);
    if (!grads[0] || !a->max_logit.array) return grads[0] ? 0 : -1;
    for (int i = 1; i < 3; i++)
        if (!(grads[i] = oq_rows_new(OQ_NPY_REAL, a->x.array, a->max_logit.width))) return -1;
    return 0;
}

static PyObject *fake_quantize_backward(PyObject *module, PyObject *positional, PyObject *keywords)
{
    quant_args a;
    oq_context context;
    PyArrayObject *grads[3] = {NULL};
    PyObject *result = NULL;
    (void)module;
    if (parse(positional, keywords, true, "fake_quantize_backward", &a) == 0 && new_gradients(&a, grads) == 0 &&
        oq_call_begin(&context, a.threads) == 0) {
        oq_code code;
        Py_BEGIN_ALLOW_THREADS code = backward(&context, &a, grads);
        Py_END_ALLOW_THREADS result =
            code == OQ_OK ? Py_BuildValue("OOO", grads[0], grads[1] ? (PyObject *)grads[1] : Py_None,
                                          grads[2] ? (PyObject *)grads[2] : Py_None)
                          : NULL;
        result = oq_call_end(&context, code, result);
    }
    for (int i = 0; i < 3; i++) oq_array_release(grads[i]);
    end(&a);
    return result;
}

/* ---- quantize, dequantize -------------------------------------------------- */

static oq_code to_codes(oq_context *context, const quant_args *a, PyArrayObject *const out[3])
{
    OQ_TRY(check(context, a));
    return oq_quantize(context, &a->groups, clip_of(a), oq_array_reals(a->x.array), PyArray_DATA(out[0]),
                       oq_array_reals(out[1]), PyArray_DATA(out[2]));
}

static PyObject *quantize(PyObject *module, PyObject *positional, PyObject *keywords)
{
    quant_args a;
    oq_context context;
    PyArrayObject *out[3] = {NULL}; /* codes, scale, zero_point */
    PyObject *result = NULL;
    (void)module;
    if (parse(positional, keywords, false, "quantize", &a) == 0 &&
        (out[0] = oq_rows_new(NPY_UINT8, a.x.array, a.x.width)) &&
        (out[1] = oq_rows_new(OQ_NPY_REAL, a.x.array, oq_groups_per_row(&a.groups))) &&
        (out[2] = oq_rows_new(NPY_UINT8, a.x.array, oq_groups_per_row(&a.groups))) &&
        oq_call_begin(&context, a.threads) == 0) {
        oq_code code;
        Py_BEGIN_ALLOW_THREADS code = to_codes(&context, &a, out);
        Py_END_ALLOW_THREADS result = oq_call_end(&context, code, Py_BuildValue("OOO", out[0], out[1], out[2]));
    }
    for (int i = 0; i < 3; i++) oq_array_release(out[i]);
    end(&a);
    return result;
}

static oq_code from_codes(oq_context *context, const oq_groups *groups, const oq_rows in[3], oq_real *out)
{
    OQ_TRY(check_matrix(context, "scales", &in[1]));
    return oq_dequantize(context, groups, PyArray_DATA(in[0].array), oq_array_reals(in[1].array),
                         PyArray_DATA(in[2].array), out);
}

static PyObject *run_dequantize(const oq_groups *groups, const oq_rows in[3], int threads)
{
    oq_context context;
    oq_code code;
    PyArrayObject *out = oq_rows_new(OQ_NPY_REAL, in[0].array, groups->width);
    if (!out) return NULL;
    if (oq_call_begin(&context, threads) < 0) {
        oq_array_release(out);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS code = from_codes(&context, groups, in, oq_array_reals(out));
    Py_END_ALLOW_THREADS return oq_call_end(&context, code, (PyObject *)out);
}

static PyObject *dequantize(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"codes", "scales", "zero_points", "group_size", "threads", NULL};
    PyObject *codes, *scales, *zero_points, *result = NULL;
    long long group_size = 0;
    int threads = 1;
    oq_rows in[3] = {{.array = NULL}};
    oq_groups groups = {.quantizer = {.bits = 8}};
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "OOO|$Li:dequantize", names, &codes, &scales,
                                     &zero_points, &group_size, &threads))
        return NULL;
    if (oq_rows_in(codes, "codes", NPY_UINT8, &in[0]) == 0 && set_groups(&in[0], group_size, &groups) == 0) {
        const int64_t per_row = oq_groups_per_row(&groups);
        if (oq_rows_in_like(scales, "scales", OQ_NPY_REAL, in[0].array, per_row, &in[1]) == 0 &&
            oq_rows_in_like(zero_points, "zero_points", NPY_UINT8, in[0].array, per_row, &in[2]) == 0)
            result = run_dequantize(&groups, in, threads);
    }
    for (int i = 0; i < 3; i++) oq_array_release(in[i].array);
    return result;
}

/* ---- pack, unpack ----------------------------------------------------------- */

static PyObject *run_pack(const oq_rows *from, int64_t width, int bits, bool packing)
{
    oq_context context;
    oq_code code;
    const uint8_t *in = PyArray_DATA(from->array);
    PyArrayObject *out = oq_rows_new(NPY_UINT8, from->array, packing ? oq_packed_width(width, bits) : width);
    if (!out) return NULL;
    if (oq_call_begin(&context, 1) < 0) {
        oq_array_release(out);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS code = packing ? oq_pack(&context, in, from->rows, width, bits, PyArray_DATA(out))
                                          : oq_unpack(&context, in, from->rows, width, bits, PyArray_DATA(out));
    Py_END_ALLOW_THREADS return oq_call_end(&context, code, (PyObject *)out);
}

/* The bytes of a packed row, or -1 with ValueError. */
static int64_t packed_width(int64_t width, int bits)
{
    const int64_t bytes = oq_packed_width(width, bits);
    if (bytes < 0)
        PyErr_Format(PyExc_ValueError, "expected bits in 1..8 and a width of at least 0, got %d and %lld", bits,
                     (long long)width);
    return bytes;
}

static PyObject *pack(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"codes", "bits", NULL};
    PyObject *object, *result = NULL;
    oq_rows codes;
    int bits;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "Oi:pack", names, &object, &bits) ||
        oq_rows_in(object, "codes", NPY_UINT8, &codes) < 0)
        return NULL;
    if (packed_width(codes.width, bits) >= 0) result = run_pack(&codes, codes.width, bits, true);
    oq_array_release(codes.array);
    return result;
}

static PyObject *unpack(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"packed", "bits", "width", NULL};
    PyObject *object, *result = NULL;
    oq_rows packed;
    long long width;
    int bits;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "OiL:unpack", names, &object, &bits, &width))
        return NULL;
    const int64_t bytes = packed_width(width, bits);
    if (bytes < 0 || oq_rows_in(object, "packed", NPY_UINT8, &packed) < 0) return NULL;
    if (packed.width == bytes)
        result = run_pack(&packed, width, bits, false);
    else
        PyErr_Format(PyExc_ValueError, "packed: a row of %lld codes of %d bits has %lld bytes, not %lld", width,
                     bits, (long long)bytes, (long long)packed.width);
    oq_array_release(packed.array);
    return result;
}

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

PyMethodDef oq_quant_methods[] = {
    {"fake_quantize", WITH_KEYWORDS(fake_quantize), "Round to the grid of each group and back."},
    {"fake_quantize_backward", WITH_KEYWORDS(fake_quantize_backward),
     "Straight-through gradients of fake_quantize."},
    {"quantize", WITH_KEYWORDS(quantize), "Codes, scales and zero points."},
    {"dequantize", WITH_KEYWORDS(dequantize), "(q - z) h."},
    {"pack", WITH_KEYWORDS(pack), "Codes as a little-endian bit stream a row."},
    {"unpack", WITH_KEYWORDS(unpack), "The codes of a bit stream."},
    {NULL, NULL, 0, NULL},
};
