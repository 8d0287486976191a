/* The frame of a call into the core: scratch memory made before, freed after.
 *
 *     oq_context context;
 *     if (oq_call_begin(&context, threads) < 0) ... NULL
 *     oq_code code;
 *     Py_BEGIN_ALLOW_THREADS
 *     code = oq_something(&context, ...);
 *     Py_END_ALLOW_THREADS
 *     return oq_call_end(&context, code, (PyObject *)result);               */
#ifndef OQ_PYTHON_CALL_H
#define OQ_PYTHON_CALL_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "base/context.h"

/* threads 0: as many as OpenMP would use. -1 with ValueError or MemoryError set. */
int oq_call_begin(oq_context *context, int threads);

/* Frees the scratch memory. Hands result on, or drops it and raises what went wrong. */
PyObject *oq_call_end(oq_context *context, oq_code code, PyObject *result);

#endif
