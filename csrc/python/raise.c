#include "python/raise.h"

/* The classes in omniquant.errors; what is not named here is a built-in one. */
static const char *const names[] = {
    [OQ_NOT_FINITE] = "NotFiniteError",    [OQ_NOT_DOMINANT] = "NotDominantError", [OQ_SINGULAR] = "SingularError",
    [OQ_UNSUPPORTED] = "UnsupportedError", [OQ_BACKEND] = "BackendError",          [OQ_CANCELLED] = "Cancelled",
};

PyObject *oq_raise(const oq_error *error)
{
    PyObject *class = error->code == OQ_OUT_OF_MEMORY ? PyExc_MemoryError : PyExc_ValueError;
    PyObject *module = names[error->code] ? PyImport_ImportModule("omniquant.errors") : NULL;
    PyObject *own = module ? PyObject_GetAttrString(module, names[error->code]) : NULL;
    if (!PyErr_Occurred()) PyErr_SetString(own ? own : class, error->message);
    Py_XDECREF(own);
    Py_XDECREF(module);
    return NULL;
}
