/* A packed linear layer, kept in a capsule. */
#include "base/alloc.h"
#include "kernels/linear.h"
#include "python/call.h"
#include "python/rows.h"
#include "python/topics.h"

#define CAPSULE "omniquant._core.linear"

typedef struct {
    oq_qlinear linear;
    void *memory;
} packed_linear;

static void free_linear(PyObject *capsule)
{
    packed_linear *p = PyCapsule_GetPointer(capsule, CAPSULE);
    oq_free(p->memory);
    oq_free(p);
}

typedef struct {
    PyArrayObject *codes, *scales, *zero_points, *bias; /* owned; the last two may be NULL */
    oq_qlinear_spec spec;
} pack_args;

static void end(pack_args *a)
{
    oq_array_release(a->codes);
    oq_array_release(a->scales);
    oq_array_release(a->zero_points);
    oq_array_release(a->bias);
}

/* Shapes are checked against the codes'; 0 or -1. */
static int take(PyObject *codes, PyObject *scales, PyObject *zero_points, PyObject *bias, pack_args *a)
{
    oq_qlinear_spec *s = &a->spec;
    if (!(a->codes = oq_array_in(codes, "codes", NPY_UINT8, 2))) return -1;
    s->out = PyArray_DIM(a->codes, 0);
    s->in = PyArray_DIM(a->codes, 1);
    if (s->group == 0) s->group = s->in;
    if (s->group < 0 || s->group > s->in) {
        PyErr_Format(PyExc_ValueError, "group_size %lld does not fit %lld inputs", (long long)s->group,
                     (long long)s->in);
        return -1;
    }
    const npy_intp grid[] = {s->out, s->group ? (s->in + s->group - 1) / s->group : 0};
    s->symmetric = zero_points == Py_None;
    s->bias = bias != Py_None;
    if (!(a->scales = oq_array_in(scales, "scales", NPY_FLOAT, 2)) ||
        oq_array_expect(a->scales, "scales", 2, grid) < 0 ||
        (!s->symmetric && (!(a->zero_points = oq_array_in(zero_points, "zero_points", NPY_UINT8, 2)) ||
                           oq_array_expect(a->zero_points, "zero_points", 2, grid) < 0)) ||
        (s->bias &&
         (!(a->bias = oq_array_in(bias, "bias", NPY_FLOAT, 1)) || oq_array_expect(a->bias, "bias", 1, grid) < 0)))
        return -1;
    return 0;
}

static oq_code pack(oq_context *context, const pack_args *a, const char *kernel, packed_linear *p)
{
    const oq_qlinear_source source = {.codes = PyArray_DATA(a->codes),
                                      .scales = PyArray_DATA(a->scales),
                                      .zero_points = a->zero_points ? PyArray_DATA(a->zero_points) : NULL,
                                      .bias = a->bias ? PyArray_DATA(a->bias) : NULL};
    size_t bytes;
    OQ_TRY(oq_qlinear_bytes(context, &a->spec, &bytes));
    if (!(p->memory = oq_malloc(bytes))) return oq_fail_memory(context, bytes, 1);
    OQ_TRY(oq_qlinear_pack(context, &a->spec, &source, p->memory, &p->linear));
    return oq_qlinear_use(context, &p->linear, kernel);
}

/* (codes, scales, zero_points, bias, (bits, group_size, activation bits, symmetric, full_range), kernel, threads)
 */
static PyObject *linear_pack(PyObject *module, PyObject *args)
{
    PyObject *codes, *scales, *zero_points, *bias, *capsule = NULL;
    pack_args a = {NULL};
    const char *kernel;
    int threads, symmetric, full_range;
    long long group;
    oq_context context;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOO(iLipp)zi:linear_pack", &codes, &scales, &zero_points, &bias, &a.spec.bits,
                          &group, &a.spec.activation.bits, &symmetric, &full_range, &kernel, &threads))
        return NULL;
    a.spec.group = group;
    a.spec.activation.symmetric = symmetric != 0;
    a.spec.activation.full_range = full_range != 0;
    packed_linear *p = oq_malloc(sizeof *p);
    if (!p) return PyErr_NoMemory();
    *p = (packed_linear){.memory = NULL};
    if (take(codes, scales, zero_points, bias, &a) == 0 && oq_call_begin(&context, threads) == 0) {
        oq_code code;
        Py_BEGIN_ALLOW_THREADS code = pack(&context, &a, kernel, p);
        Py_END_ALLOW_THREADS capsule = code == OQ_OK ? PyCapsule_New(p, CAPSULE, free_linear) : NULL;
        capsule = oq_call_end(&context, code, capsule);
    }
    end(&a);
    if (capsule) return capsule;
    oq_free(p->memory);
    oq_free(p);
    return NULL;
}

static PyObject *linear_run(PyObject *module, PyObject *args)
{
    PyObject *capsule, *x, *result = NULL;
    oq_context context;
    oq_rows rows;
    int threads;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOi:linear_run", &capsule, &x, &threads)) return NULL;
    const packed_linear *p = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!p || oq_rows_in(x, "x", NPY_FLOAT, &rows) < 0) return NULL;
    PyArrayObject *y = NULL;
    if (rows.width != p->linear.spec.in)
        PyErr_Format(PyExc_ValueError, "x: expected rows of %lld values, got %lld", (long long)p->linear.spec.in,
                     (long long)rows.width);
    else if ((y = oq_rows_new(NPY_FLOAT, rows.array, p->linear.spec.out)) &&
             oq_call_begin(&context, threads) == 0) {
        oq_code code;
        Py_BEGIN_ALLOW_THREADS code =
            oq_qlinear_run(&context, &p->linear, PyArray_DATA(rows.array), rows.rows, PyArray_DATA(y));
        Py_END_ALLOW_THREADS result = oq_call_end(&context, code, Py_NewRef((PyObject *)y));
    }
    oq_array_release(y);
    oq_array_release(rows.array);
    return result;
}

static PyObject *linear_info(PyObject *module, PyObject *capsule)
{
    size_t bytes = 0;
    oq_context context = {.threads = 1};
    (void)module;
    const packed_linear *p = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!p) return NULL;
    (void)oq_qlinear_bytes(&context, &p->linear.spec, &bytes); /* it was packed: its spec is sound */
    return Py_BuildValue("sn", oq_qlinear_kernel(&p->linear), (Py_ssize_t)bytes);
}

static PyObject *kernel_names(PyObject *module, PyObject *unused)
{
    PyObject *list = PyList_New(0);
    (void)module, (void)unused;
    for (int i = 0; list && oq_kernel_name(i); i++) {
        PyObject *name = PyUnicode_FromString(oq_kernel_name(i));
        if (!name || PyList_Append(list, name) < 0) Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

PyMethodDef oq_kernels_methods[] = {
    {"linear_pack", linear_pack, METH_VARARGS, "Pack a linear layer."},
    {"linear_run", linear_run, METH_VARARGS, "y = x W^T + bias."},
    {"linear_info", linear_info, METH_O, "A packed layer's kernel and bytes."},
    {"kernel_names", kernel_names, METH_NOARGS, "The kernels that run here, best first."},
    {NULL, NULL, 0, NULL},
};
