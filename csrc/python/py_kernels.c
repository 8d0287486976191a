/* A packed linear layer, kept in a capsule. */
#include "base/alloc.h"
#include "kernels/linear.h"
#include "python/function.h"
#include "python/topics.h"

#define CAPSULE "omniquant._core.linear"

/* n outputs, k inputs, g groups; m numbers in a row of codes. */
struct values {
    const uint8_t *codes, *zero_points;
    const float *scales, *bias, *x;
    const char *kernel;
    bool symmetric, full_range;
    int bits, activation_bits;
    int64_t group_size, nbytes;
    PyObject *packed;
    float *out;
    oq_qlinear_spec spec;
    oq_qlinear *linear; /* followed by its packed weights */
};

static void free_linear(PyObject *capsule) { oq_free(PyCapsule_GetPointer(capsule, CAPSULE)); }

static int find_linear(oq_call *call, values *v)
{
    v->linear = PyCapsule_GetPointer(v->packed, CAPSULE);
    if (!v->linear) return -1;
    call->size['k'] = v->linear->spec.in;
    call->size['n'] = v->linear->spec.out;
    return 0;
}

static int count_groups(oq_call *call, values *v)
{
    const int64_t k = oq_size(call, 'k'), group = v->group_size ? v->group_size : k;
    call->size['g'] = group ? (k + group - 1) / group : 0;
    v->group_size = group;
    if (group <= k) return 0;
    PyErr_Format(PyExc_ValueError, "group_size %lld does not fit %lld inputs", (long long)group, (long long)k);
    return -1;
}

static const oq_argument linear_pack_arguments[] = {
    OQ_ARRAY(codes, "nk"),
    OQ_SCALAR(bits),
    OQ_SCALAR(group_size, .range = "[0, inf)", .then = count_groups),
    OQ_ARRAY(scales, "ng"),
    OQ_ARRAY(zero_points, "ng", .flags = OQ_NULLABLE),
    OQ_ARRAY(bias, "n", .flags = OQ_NULLABLE),
    OQ_SCALAR(activation_bits),
    OQ_SCALAR(symmetric),
    OQ_SCALAR(full_range),
    OQ_SCALAR(kernel, .flags = OQ_NULLABLE),
    OQ_THREADS,
};

static oq_code pack(oq_call *call, values *v, char *memory)
{
    const oq_qlinear_source source = {
        .codes = v->codes, .scales = v->scales, .zero_points = v->zero_points, .bias = v->bias};
    OQ_TRY(oq_qlinear_pack(&call->context, &v->spec, &source, memory, v->linear));
    return oq_qlinear_use(&call->context, v->linear, v->kernel);
}

static oq_code linear_pack_run(oq_call *call, values *v)
{
    const size_t head = (sizeof *v->linear + 63) / 64 * 64;
    size_t bytes;
    v->spec = (oq_qlinear_spec){.out = oq_size(call, 'n'),
                                .in = oq_size(call, 'k'),
                                .group = v->group_size,
                                .bits = v->bits,
                                .symmetric = !v->zero_points,
                                .bias = v->bias,
                                .activation = {v->activation_bits, v->symmetric, v->full_range}};
    OQ_TRY(oq_qlinear_bytes(&call->context, &v->spec, &bytes));
    if (!(v->linear = oq_malloc(head + bytes))) return oq_fail_memory(&call->context, bytes, 1);
    const oq_code code = pack(call, v, (char *)v->linear + head);
    if (code != OQ_OK) oq_free(v->linear);
    return code;
}

static PyObject *into_capsule(oq_call *call, values *v)
{
    (void)call;
    PyObject *capsule = PyCapsule_New(v->linear, CAPSULE, free_linear);
    if (!capsule) oq_free(v->linear);
    return capsule;
}

static const oq_argument linear_run_arguments[] = {
    OQ_SCALAR(packed, .then = find_linear),
    OQ_ARRAY(x, "*k"),
    OQ_THREADS,
    OQ_ARRAY(out, "*n", .flags = OQ_KEYWORD | OQ_INTO),
};

static oq_code linear_run_run(oq_call *call, values *v)
{
    return oq_qlinear_run(&call->context, v->linear, v->x, oq_size(call, '*'), v->out);
}

static const oq_argument linear_info_arguments[] = {
    OQ_SCALAR(packed, .then = find_linear),
    OQ_SCALAR(kernel, .flags = OQ_MADE),
    OQ_SCALAR(nbytes, .flags = OQ_MADE),
};

static oq_code linear_info_run(oq_call *call, values *v)
{
    size_t bytes;
    OQ_TRY(oq_qlinear_bytes(&call->context, &v->linear->spec, &bytes));
    v->nbytes = (int64_t)bytes;
    v->kernel = oq_qlinear_kernel(v->linear);
    return OQ_OK;
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

OQ_FUNCTION_WITH(linear_pack, into_capsule);
OQ_FUNCTION(linear_run);
OQ_FUNCTION(linear_info);

PyMethodDef oq_kernels_methods[] = {
    OQ_METHOD(linear_pack, "Pack a linear layer."),
    OQ_METHOD(linear_run, "y = x W^T + bias."),
    OQ_METHOD(linear_info, "A packed layer's kernel and bytes."),
    {"kernel_names", kernel_names, METH_NOARGS, "The kernels that run here, best first."},
    {NULL, NULL, 0, NULL},
};
