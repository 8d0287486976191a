/* Errors of the core as Python exceptions. */
#ifndef OQ_PYTHON_RAISE_H
#define OQ_PYTHON_RAISE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "base/status.h"

/* Raise the exception that belongs to error->code, with its message. Returns NULL. */
PyObject *oq_raise(const oq_error *error);

#endif
