#include "python/array.h"

static PyObject *shape_of(PyArrayObject *array) { return PyObject_GetAttrString((PyObject *)array, "shape"); }

static void fail_dimensions(PyArrayObject *array, const char *name, int ndim)
{
    PyObject *shape = shape_of(array);
    if (!shape) return;
    PyErr_Format(PyExc_ValueError, "%s: expected %d dimension%s, got shape %R", name, ndim, ndim == 1 ? "" : "s",
                 shape);
    Py_DECREF(shape);
}

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
    oq_array_release(result);
    return NULL;
}

static PyArrayObject *convert(PyArrayObject *array, const char *name, int type)
{
    if (can_cast(array, type)) return cast(array, type);
    if (PyTypeNum_ISINTEGER(type) && PyArray_ISINTEGER(array)) return cast_exactly(array, name, type);
    return fail_type(array, name, type);
}

PyArrayObject *oq_array_in(PyObject *object, const char *name, int type, int ndim)
{
    PyArrayObject *array = (PyArrayObject *)PyArray_FromAny(object, NULL, 0, 0, 0, NULL);
    if (!array) return NULL;
    PyArrayObject *result = NULL;
    if (ndim >= 0 && PyArray_NDIM(array) != ndim) {
        fail_dimensions(array, name, ndim);
    } else {
        result = convert(array, name, type);
    }
    oq_array_release(array);
    return result;
}

static PyObject *tuple_of(int ndim, const npy_intp *dims)
{
    PyObject *tuple = PyTuple_New(ndim);
    for (int i = 0; tuple && i < ndim; ++i) {
        PyObject *item = dims[i] < 0 ? PyUnicode_FromString("any") : PyLong_FromSsize_t(dims[i]);
        if (!item || PyTuple_SetItem(tuple, i, item) < 0) Py_CLEAR(tuple);
    }
    return tuple;
}

int oq_array_expect(PyArrayObject *array, const char *name, int ndim, const npy_intp *dims)
{
    int fits = PyArray_NDIM(array) == ndim;
    for (int i = 0; fits && i < ndim; ++i) fits = dims[i] < 0 || PyArray_DIM(array, i) == dims[i];
    if (fits) return 0;
    PyObject *wanted = tuple_of(ndim, dims), *shape = shape_of(array);
    if (wanted && shape) PyErr_Format(PyExc_ValueError, "%s: expected shape %R, got %R", name, wanted, shape);
    Py_XDECREF(wanted);
    Py_XDECREF(shape);
    return -1;
}

PyArrayObject *oq_array_new(int type, int ndim, const npy_intp *dims)
{
    return (PyArrayObject *)PyArray_SimpleNew(ndim, dims, type);
}
