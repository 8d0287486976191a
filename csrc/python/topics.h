/* The functions of the module, one table a topic (py_*.c), each ended by a row of zeros. */
#ifndef OQ_PYTHON_TOPICS_H
#define OQ_PYTHON_TOPICS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* A new topic is its file and a name here. */
#define OQ_TOPICS(X) X(runtime) X(product) X(kernels) X(block) X(head) X(decoder) X(linear) X(quant) X(transform)
#define OQ_DECLARE_TOPIC(name) extern PyMethodDef oq_##name##_methods[];
OQ_TOPICS(OQ_DECLARE_TOPIC)

#endif
