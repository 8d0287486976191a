#include "python/function.h"

static PyArrayObject *cast(PyArrayObject *array, int type)
{
    PyArray_Descr *descr = PyArray_DescrFromType(type); /* stolen below */
    const int flags = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED | NPY_ARRAY_NOTSWAPPED | NPY_ARRAY_ENSUREARRAY |
                      NPY_ARRAY_FORCECAST;
    return descr ? (PyArrayObject *)PyArray_FromArray(array, descr, flags) : NULL;
}

static PyArrayObject *fail_type(PyArrayObject *array, const char *name, int type)
{
    PyArray_Descr *wanted = PyArray_DescrFromType(type);
    PyErr_Format(PyExc_TypeError, "%s: cannot convert an array of %R to %R", name, PyArray_DESCR(array), wanted);
    Py_XDECREF((PyObject *)wanted);
    return NULL;
}

static int can_cast(PyArrayObject *array, int type)
{
    PyArray_Descr *wanted = PyArray_DescrFromType(type);
    if (!wanted) return 0;
    const int possible = PyArray_CanCastArrayTo(array, wanted, NPY_SAME_KIND_CASTING);
    Py_DECREF((PyObject *)wanted);
    return possible;
}

/* Integers of another width or sign: taken when no value changes. */
static PyArrayObject *cast_exactly(PyArrayObject *array, const char *name, int type)
{
    PyArrayObject *result = cast(array, type);
    PyObject *same = result ? PyObject_RichCompare((PyObject *)array, (PyObject *)result, Py_EQ) : NULL;
    PyObject *all = same ? PyObject_CallMethod(same, "all", NULL) : NULL;
    const int fits = all ? PyObject_IsTrue(all) : -1;
    if (fits == 0) PyErr_Format(PyExc_ValueError, "%s: a value does not fit %R", name, PyArray_DESCR(result));
    Py_XDECREF(same);
    Py_XDECREF(all);
    if (fits == 1) return result;
    Py_XDECREF((PyObject *)result);
    return NULL;
}

static PyArrayObject *convert(PyArrayObject *array, const char *name, int type)
{
    if (can_cast(array, type)) return cast(array, type);
    if (PyTypeNum_ISINTEGER(type) && PyArray_ISINTEGER(array)) return cast_exactly(array, name, type);
    return fail_type(array, name, type);
}

PyArrayObject *oq_array_in(PyObject *object, const char *name, int type)
{
    PyArrayObject *array = (PyArrayObject *)PyArray_FromAny(object, NULL, 0, 0, 0, NULL);
    PyArrayObject *result = array ? convert(array, name, type) : NULL;
    Py_XDECREF((PyObject *)array);
    return result;
}
