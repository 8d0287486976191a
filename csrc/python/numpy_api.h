/* NumPy's C API, one table for all files of the binding: module.c imports it. */
#ifndef OQ_PYTHON_NUMPY_API_H
#define OQ_PYTHON_NUMPY_API_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdio.h> /* NumPy names FILE; the limited API of 3.11 no longer brings it */

#define PY_ARRAY_UNIQUE_SYMBOL oq_numpy_api
#ifndef OQ_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#ifdef OQ_DOUBLE
#define OQ_NPY_REAL NPY_DOUBLE
#else
#define OQ_NPY_REAL NPY_FLOAT
#endif

#endif
