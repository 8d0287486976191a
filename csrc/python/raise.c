#include "python/raise.h"

/* The class's name in omniquant.errors, NULL for a built-in one. */
static const char *class_name(oq_code code)
{
    switch (code) {
    case OQ_NOT_FINITE: return "NotFiniteError";
    case OQ_NOT_DOMINANT: return "NotDominantError";
    case OQ_SINGULAR: return "SingularError";
    case OQ_UNSUPPORTED: return "UnsupportedError";
    case OQ_BACKEND: return "BackendError";
    case OQ_CANCELLED: return "Cancelled";
    default: return NULL;
    }
}

/* Looked up when raised: rare, and nothing to keep between calls. */
static PyObject *find_class(const char *name)
{
    PyObject *module = PyImport_ImportModule("omniquant.errors");
    PyObject *class = module ? PyObject_GetAttrString(module, name) : NULL;
    Py_XDECREF(module);
    return class;
}

PyObject *oq_raise(const oq_error *error)
{
    const char *name = class_name(error->code);
    if (!name) {
        PyErr_SetString(error->code == OQ_OUT_OF_MEMORY ? PyExc_MemoryError : PyExc_ValueError, error->message);
        return NULL;
    }
    PyObject *class = find_class(name);
    if (!class) return NULL;
    PyErr_SetString(class, error->message);
    Py_DECREF(class);
    return NULL;
}
