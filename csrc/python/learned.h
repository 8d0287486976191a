/* Learnables and folded tensors as dictionaries of arrays. */
#ifndef OQ_PYTHON_LEARNED_H
#define OQ_PYTHON_LEARNED_H

#include "calibrate/learnables.h"
#include "python/function.h"

/* {name: array}, a new reference; NULL with an exception. */
PyObject *oq_learnables_to_dict(oq_call *call, const oq_learnables *list, const oq_real *theta);
/* theta [list->total] from a dict that has every learnable, of its shape; 0 or -1. */
int oq_learnables_from_dict(oq_call *call, const oq_learnables *list, PyObject *dict, oq_real *theta);

/* A dict owned by the call, or NULL with an exception. */
PyObject *oq_new_dict(oq_call *call);

/* A tensor that is to be made: dict["owner.key"] (or "key"), and the pointer to it at `to`. */
typedef struct {
    const char *key;
    bool wanted;
    oq_kind kind;
    const char *shape;
    void *to;
} oq_tensor;

/* Those wanted, by the sizes of the call; 0 or -1. */
int oq_put_tensors(oq_call *call, PyObject *dict, const char *owner, const oq_tensor *tensors, size_t count);

#endif
