#include "python/rows.h"

enum { MAX_DIMENSIONS = 64 }; /* NumPy 2's own limit */

int oq_rows_in(PyObject *object, const char *name, int type, oq_rows *rows)
{
    rows->array = oq_array_in(object, name, type, -1);
    if (!rows->array) return -1;
    const int ndim = PyArray_NDIM(rows->array);
    if (ndim < 1) {
        PyErr_Format(PyExc_ValueError, "%s: expected at least 1 dimension, got a scalar", name);
        oq_array_release(rows->array);
        rows->array = NULL;
        return -1;
    }
    rows->width = PyArray_DIM(rows->array, ndim - 1);
    rows->rows = 1;
    for (int i = 0; i < ndim - 1; i++) rows->rows *= PyArray_DIM(rows->array, i);
    return 0;
}

static int shape_like(PyArrayObject *like, int64_t width, npy_intp shape[MAX_DIMENSIONS])
{
    const int ndim = PyArray_NDIM(like);
    for (int i = 0; i < ndim - 1; i++) shape[i] = PyArray_DIM(like, i);
    shape[ndim - 1] = (npy_intp)width;
    return ndim;
}

int oq_rows_in_like(PyObject *object, const char *name, int type, PyArrayObject *like, int64_t width,
                    oq_rows *rows)
{
    npy_intp shape[MAX_DIMENSIONS];
    const int ndim = shape_like(like, width, shape);
    if (oq_rows_in(object, name, type, rows) < 0) return -1;
    if (oq_array_expect(rows->array, name, ndim, shape) == 0) return 0;
    oq_array_release(rows->array);
    rows->array = NULL;
    return -1;
}

PyArrayObject *oq_rows_new(int type, PyArrayObject *like, int64_t width)
{
    npy_intp shape[MAX_DIMENSIONS];
    const int ndim = shape_like(like, width, shape);
    return oq_array_new(type, ndim, shape);
}
