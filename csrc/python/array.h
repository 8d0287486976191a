/* NumPy arrays in and out: the one place where layouts and dtypes are met. */
#ifndef OQ_PYTHON_ARRAY_H
#define OQ_PYTHON_ARRAY_H

#include "base/real.h"
#include "python/numpy_api.h"

/* A new reference to `object` as a C-contiguous, aligned, native array of `type`
 * (OQ_NPY_REAL, NPY_DOUBLE, NPY_UINT8, ...) with ndim dimensions (-1: any).
 * Any layout is taken; other dtypes are converted where NumPy's "same_kind"
 * allows it, integers to other integers where every value fits.  The input is
 * never written to (the result may be the input itself: do not write there).
 * NULL: TypeError or ValueError naming the argument. */
PyArrayObject *oq_array_in(PyObject *object, const char *name, int type, int ndim);

/* ValueError unless the shape is dims[ndim]; a negative entry fits anything. 0 or -1. */
int oq_array_expect(PyArrayObject *array, const char *name, int ndim, const npy_intp *dims);

/* A new uninitialised C-contiguous array, or NULL with MemoryError. */
PyArrayObject *oq_array_new(int type, int ndim, const npy_intp *dims);

/* Drop a reference; NULL is fine. */
static inline void oq_array_release(PyArrayObject *array) { Py_XDECREF((PyObject *)array); }

static inline oq_real *oq_array_reals(PyArrayObject *array) { return PyArray_DATA(array); }
static inline double *oq_array_doubles(PyArrayObject *array) { return PyArray_DATA(array); }

#endif
