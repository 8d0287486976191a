/* What the core runs on, and its plain products for tests and benchmarks. */
#include "base/alloc.h"
#include "base/cpu.h"
#include "base/parallel.h"
#include "math/gemm.h"
#include "math/inverse.h"
#include "math/onednn.h"
#include "python/array.h"
#include "python/call.h"
#include "python/raise.h"
#include "python/topics.h"

static PyObject *load_onednn(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *path;
    oq_error error = {OQ_OK, ""};
    if (!PyArg_ParseTuple(args, "O&:load_onednn", PyUnicode_FSConverter, &path)) return NULL;
    const oq_code code = oq_onednn_load(PyBytes_AsString(path), &error);
    Py_DECREF(path);
    if (code != OQ_OK) return oq_raise(&error);
    Py_RETURN_NONE;
}

static PyObject *runtime_info(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
#ifdef _OPENMP
    PyObject *const openmp = Py_True;
#else
    PyObject *const openmp = Py_False;
#endif
    return Py_BuildValue("{s:z,s:s,s:O,s:i,s:s}", "onednn", oq_onednn_loaded() ? oq_onednn_version() : NULL, "cpu",
                         oq_cpu_names(), "openmp", openmp, "threads", oq_parallel_default_threads(), "real",
                         sizeof(oq_real) == sizeof(double) ? "float64" : "float32");
}

/* The product's sizes from the shapes of a and b; -1 with ValueError when they do not fit. */
static int gemm_sizes(oq_gemm_args *g, PyArrayObject *a, PyArrayObject *b)
{
    const npy_intp *left = PyArray_DIMS(a), *right = PyArray_DIMS(b);
    const npy_intp inner = right[g->transpose_b ? 1 : 0];
    g->m = left[g->transpose_a ? 1 : 0];
    g->k = left[g->transpose_a ? 0 : 1];
    g->n = right[g->transpose_b ? 0 : 1];
    g->lda = left[1];
    g->ldb = right[1];
    g->ldc = g->n;
    if (g->k == inner) return 0;
    PyErr_Format(PyExc_ValueError, "b: expected an inner dimension of %zd, as of a, got %zd", (Py_ssize_t)g->k,
                 (Py_ssize_t)inner);
    return -1;
}

static PyObject *multiply(oq_gemm_args *g, PyArrayObject *a, PyArrayObject *b, int threads, int reference)
{
    oq_context context;
    oq_code code = OQ_OK;
    if (gemm_sizes(g, a, b) < 0) return NULL;
    PyArrayObject *c = oq_array_new(OQ_NPY_REAL, 2, (npy_intp[]){g->m, g->n});
    if (!c) return NULL;
    if (oq_call_begin(&context, threads) < 0) {
        oq_array_release(c);
        return NULL;
    }
    g->alpha = 1;
    g->a = oq_array_reals(a);
    g->b = oq_array_reals(b);
    g->c = oq_array_reals(c);
    Py_BEGIN_ALLOW_THREADS if (reference) oq_gemm_reference(g);
    else code = oq_gemm(&context, g);
    Py_END_ALLOW_THREADS return oq_call_end(&context, code, (PyObject *)c);
}

static PyObject *matmul(PyObject *module, PyObject *args, PyObject *keywords)
{
    (void)module;
    static char *names[] = {"a", "b", "transpose_a", "transpose_b", "threads", "reference", NULL};
    PyObject *left, *right, *result = NULL;
    int transpose_a = 0, transpose_b = 0, threads = 1, reference = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|$ppip:matmul", names, &left, &right, &transpose_a,
                                     &transpose_b, &threads, &reference)) {
        return NULL;
    }
    oq_gemm_args g = {.transpose_a = transpose_a != 0, .transpose_b = transpose_b != 0};
    PyArrayObject *a = oq_array_in(left, "a", OQ_NPY_REAL, 2);
    PyArrayObject *b = a ? oq_array_in(right, "b", OQ_NPY_REAL, 2) : NULL;
    if (b) result = multiply(&g, a, b, threads, reference);
    oq_array_release(a);
    oq_array_release(b);
    return result;
}

static PyObject *invert(PyArrayObject *a, int pivot, int threads)
{
    oq_context context;
    oq_code code;
    const npy_intp n = PyArray_DIM(a, 0);
    if (oq_array_expect(a, "a", 2, (npy_intp[]){n, n}) < 0) return NULL;
    PyArrayObject *result = oq_array_new(NPY_DOUBLE, 2, (npy_intp[]){n, n});
    if (!result) return NULL;
    if (oq_call_begin(&context, threads) < 0) {
        oq_array_release(result);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS code =
        oq_inverse(&context, oq_array_doubles(a), oq_array_doubles(result), n, pivot != 0, "a");
    Py_END_ALLOW_THREADS return oq_call_end(&context, code, (PyObject *)result);
}

static PyObject *inverse(PyObject *module, PyObject *args, PyObject *keywords)
{
    (void)module;
    static char *names[] = {"a", "pivot", "threads", NULL};
    PyObject *object;
    int pivot = 0, threads = 1;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|pi:inverse", names, &object, &pivot, &threads))
        return NULL;
    PyArrayObject *a = oq_array_in(object, "a", NPY_DOUBLE, 2);
    if (!a) return NULL;
    PyObject *result = invert(a, pivot, threads);
    oq_array_release(a);
    return result;
}

static PyObject *fail_allocation(PyObject *module, PyObject *args)
{
    (void)module;
    Py_ssize_t n;
    int persistent;
    if (!PyArg_ParseTuple(args, "np:_fail_allocation", &n, &persistent)) return NULL;
    return PyLong_FromSize_t(oq_malloc_fail_at((size_t)n, persistent != 0));
}

PyMethodDef oq_runtime_methods[] = {
    {"load_onednn", load_onednn, METH_VARARGS, "Load libdnnl from a path."},
    {"runtime_info", runtime_info, METH_NOARGS, "What the core runs on."},
    {"matmul", (PyCFunction)(void (*)(void))matmul, METH_VARARGS | METH_KEYWORDS, "op(a) op(b)."},
    {"inverse", (PyCFunction)(void (*)(void))inverse, METH_VARARGS | METH_KEYWORDS, "The inverse, in double."},
    {"_fail_allocation", fail_allocation, METH_VARARGS, "Test hook: let the n-th allocation fail."},
    {NULL, NULL, 0, NULL},
};
