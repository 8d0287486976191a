/* What the core runs on. */
#include "base/alloc.h"
#include "base/cpu.h"
#include "base/parallel.h"
#include "base/real.h"
#include "math/onednn.h"
#include "python/raise.h"
#include "python/topics.h"
#include "quant/gradient_products.h"
#include "quant/products.h"

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

/* The fastest kind of products this processor has. */
static const char *best_products(void)
{
    int best = OQ_PRODUCTS_FLOAT32;
    for (int i = 0; i < OQ_PRODUCTS; i++)
        if (oq_has_products((oq_products)i)) best = i;
    return oq_products_names[best];
}

static PyObject *runtime_info(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
#ifdef _OPENMP
    PyObject *const openmp = Py_True;
#else
    PyObject *const openmp = Py_False;
#endif
    return Py_BuildValue("{s:z,s:s,s:s,s:s,s:O,s:i,s:s}", "onednn", oq_onednn_loaded() ? oq_onednn_version() : NULL,
                         "cpu", oq_cpu_names(), "products", best_products(), "gradients",
                         oq_prefers_byte_gradients() ? "int8" : "float", "openmp", openmp, "threads",
                         oq_parallel_default_threads(), "real",
                         sizeof(oq_real) == sizeof(double) ? "float64" : "float32");
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
    {"_fail_allocation", fail_allocation, METH_VARARGS, "Test hook: let the n-th allocation fail."},
    {NULL, NULL, 0, NULL},
};
