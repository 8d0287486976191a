/* A Kronecker map on the input of linears, multiplied at run time behind any rotation: x (A1^-1 (x) A2^-1). */
#ifndef OQ_BLOCK_INPUT_MAP_H
#define OQ_BLOCK_INPUT_MAP_H

#include "block/block.h"
#include "transform/kronecker.h"

/* The sizes of an input's factors, a b = its width: heads and head_dim before o, else as square as it goes. */
oq_kronecker oq_input_factors(const oq_block_spec *spec, int input);
/* to [rows, width] = x under the map; where there is none, to is x. */
oq_code oq_input_map(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights, int input,
                     const oq_real *x, oq_real *to, int64_t rows);
/* d [rows, width]: gradient behind the map in, before it out. */
oq_code oq_input_map_backward(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights,
                              const oq_block_gradients *gradients, int input, const oq_real *x, oq_real *d,
                              int64_t rows);

#endif
