/* A block's spec, weights and options: from Python's dictionaries to the core's structs. */
#ifndef OQ_PYTHON_BLOCK_ARGS_H
#define OQ_PYTHON_BLOCK_ARGS_H

#include "calibrate/calibrate_block.h"
#include "python/function.h"

/* The fields of the dictionaries "spec", "activation" (None: nothing is quantized) and "options". */
extern const oq_argument oq_spec_fields[], oq_activation_fields[], oq_option_fields[];

/* Each returns 0, or -1 with an exception.  Checks the spec and sets size H; weights need it. */
int oq_check_block(oq_call *call, const oq_block_spec *spec);
int oq_take_weights(oq_call *call, PyObject *dict, const oq_block_spec *spec, oq_block_weights *weights);
/* The same, without the linears' weights where those come as codes. */
int oq_take_tensors(oq_call *call, PyObject *dict, const oq_block_spec *spec, bool weights, oq_block_weights *to);
/* Tables of at least T rows, where the spec asks for rotary positions. */
int oq_take_rope(oq_call *call, PyObject *cosine, PyObject *sine, const oq_block_spec *spec, oq_rope *rope);

/* ---- the hand-written way, until its last user has a table ------------------------------------------------- */

typedef struct {
    PyObject *keep;
    oq_block_spec spec;
    oq_block_weights weights;
} oq_block_args;
int oq_block_args_begin(oq_block_args *args);
void oq_block_args_end(oq_block_args *args);
int oq_parse_spec(PyObject *dict, oq_block_spec *spec);
int oq_parse_activation(PyObject *dict, oq_activation_quantizers *quantizers);
int oq_parse_tensors(PyObject *dict, oq_block_args *args, bool weights);

#endif
