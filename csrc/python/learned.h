/* Learnables and folded tensors as dictionaries of arrays. */
#ifndef OQ_PYTHON_LEARNED_H
#define OQ_PYTHON_LEARNED_H

#include "calibrate/fold.h"
#include "python/block_args.h"

/* {name: array}, a new reference; NULL with an exception. */
PyObject *oq_learnables_to_dict(const oq_learnables *list, const oq_real *theta);
/* theta [list->total] from a dict that has every learnable, of its shape; 0 or -1. */
int oq_learnables_from_dict(const oq_learnables *list, PyObject *dict, oq_real *theta);

/* dict[key] = a new array; its data, or NULL with an exception. */
void *oq_put_new(PyObject *dict, const char *key, int type, int ndim, npy_intp a, npy_intp b);

/* New arrays for everything oq_fold_block fills, in a new dict, and the pointers into them. */
PyObject *oq_folded_arrays(const oq_block_args *args, oq_folded *folded);

#endif
