/* NumPy arrays in: the one place where layouts and dtypes are met. */
#ifndef OQ_PYTHON_ARRAY_H
#define OQ_PYTHON_ARRAY_H

#include "python/numpy_api.h"

/* A new reference to `object` as a C-contiguous, aligned, native array of `type` (NPY_FLOAT, NPY_UINT8, ...).
 * Any layout is taken; other dtypes are converted where NumPy's "same_kind" allows it, integers to other integers
 * where every value fits.  The input is never written to (the result may be the input itself: do not write
 * there).  NULL: TypeError or ValueError naming the argument. */
PyArrayObject *oq_array_in(PyObject *object, const char *name, int type);

#endif
