/* The functions of the module, one table a topic (py_*.c), each ended by a row
 * of zeros. A new topic: declare its table here and list it in module.c. */
#ifndef OQ_PYTHON_TOPICS_H
#define OQ_PYTHON_TOPICS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

extern PyMethodDef oq_runtime_methods[];
extern PyMethodDef oq_product_methods[];
extern PyMethodDef oq_block_methods[];
extern PyMethodDef oq_kernels_methods[];
extern PyMethodDef oq_head_methods[];
extern PyMethodDef oq_decoder_methods[];
extern PyMethodDef oq_linear_methods[];
extern PyMethodDef oq_quant_methods[];
extern PyMethodDef oq_transform_methods[];

#endif
