/* A block's spec, weights and options: from Python's dictionaries to the core's structs. */
#ifndef OQ_PYTHON_BLOCK_ARGS_H
#define OQ_PYTHON_BLOCK_ARGS_H

#include "calibrate/calibrate_block.h"
#include "python/function.h"
#include "quant/integer_product.h"

/* The fields of the dictionaries "spec", "activation" (None: nothing is quantized), "options", and of what
 * linears' weights are rounded to. */
extern const oq_argument oq_spec_fields[], oq_activation_fields[], oq_option_fields[], oq_scheme_fields[];

/* Each returns 0, or -1 with an exception.  Checks the spec and sets size H; weights need it. */
int oq_check_block(oq_call *call, const oq_block_spec *spec);
/* weights [OQ_LINEARS]: which linears come with their weights, not as codes; NULL: all. */
int oq_take_tensors(oq_call *call, PyObject *dict, const oq_block_spec *spec, const bool *weights,
                    oq_block_weights *to);
/* Data of dict[owner.what]; NULL with an exception, which begins with `whole` ("weights lack") where it is absent. */
void *oq_take_entry(oq_call *call, PyObject *dict, const char *whole, const char *owner, const char *what, oq_kind kind,
                    const char *shape);
/* Of linears whose codes have one scale a row, "q.codes", "q.scale", "q.zero_point"; the others' stay NULL, and all of
 * them if dict is NULL or None. */
int oq_take_row_codes(oq_call *call, PyObject *dict, const oq_block_spec *spec, oq_row_codes to[OQ_LINEARS]);
/* Sets the sizes of an input's tensors: a, b of its factors, c of its clipping. */
void oq_size_input(oq_call *call, const oq_block_spec *spec, int input);
/* Tables of at least T rows, where the spec asks for rotary positions. */
int oq_take_rope(oq_call *call, PyObject *cosine, PyObject *sine, const oq_block_spec *spec, oq_rope *rope);
/* A list of (spec, weights, cos, sin), one a block; None: none. */
int oq_take_followers(oq_call *call, PyObject *list, oq_followers *to);

#endif
