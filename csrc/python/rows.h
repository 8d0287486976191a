/* Arrays of any number of dimensions as rows along the last axis, and arrays shaped like them. */
#ifndef OQ_PYTHON_ROWS_H
#define OQ_PYTHON_ROWS_H

#include "python/array.h"

typedef struct {
    PyArrayObject *array; /* a reference of the caller's, NULL on failure */
    int64_t rows, width;
} oq_rows;

/* As oq_array_in for any ndim >= 1: [..., width]. 0 or -1. */
int oq_rows_in(PyObject *object, const char *name, int type, oq_rows *rows);
/* The same, of shape like.shape[:-1] + (width,). */
int oq_rows_in_like(PyObject *object, const char *name, int type, PyArrayObject *like, int64_t width,
                    oq_rows *rows);
/* A new array of shape like.shape[:-1] + (width,). */
PyArrayObject *oq_rows_new(int type, PyArrayObject *like, int64_t width);

#endif
