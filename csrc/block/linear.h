/* One linear of a block, its operands in whatever forms the run's products take. */
#ifndef OQ_BLOCK_LINEAR_H
#define OQ_BLOCK_LINEAR_H

#include "block/block.h"

/* Rows [first, first + out) of a linear's weight: all of them, or those of one expert. */
typedef struct {
    int which;
    int64_t first, out, in;
} oq_linear_rows;
oq_linear_rows oq_all_rows(const oq_block_spec *spec, int which);
oq_linear_rows oq_rows_of_expert(const oq_block_spec *spec, int which, int64_t expert);

/* Room for the forms of a linear's input [rows, width] this run's products take, but for x itself where it stays
 * float. */
oq_code oq_forms_create(oq_context *context, const oq_block_run *run, int64_t rows, int64_t width, oq_forms *forms);
/* x [rows, width] of a linear and the forms of it this run's products take; ranges are NULL where it stays float. */
oq_code oq_input_create(oq_context *context, const oq_block_run *run, int64_t rows, int64_t width, oq_real **x,
                        oq_forms *forms, oq_range **ranges);

/* Give the weights of every linear but routers their bfloat16 forms, in the arena: for weights that stand still. */
oq_code oq_weights_to_bf16(oq_context *context, const oq_block_spec *spec, oq_block_weights *weights);
/* The backward products of the same linears take bytes, where sums over outputs and over tokens are not too long. */
void oq_weights_take_byte_gradients(const oq_block_run *run, oq_block_weights *weights);
/* The sums of a linear's backward product to its input: its outputs, or those of one expert. */
int64_t oq_outputs_summed(const oq_block_spec *spec, int which);

/* y [T, out] = x W^T + b, x [T, in]. */
oq_code oq_block_linear_forward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                                int which, const oq_forms *x, oq_real *y);
/* dW, db += from dy [T, out]; dx [T, in] (+)= dy W unless dx is NULL. */
oq_code oq_block_linear_backward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                                 const oq_block_gradients *gradients, int which, const oq_forms *x,
                                 const oq_real *dy, oq_real *dx, bool accumulate);

/* The same for T rows of x and some rows of the weight; with T = 0 the gradient is none. */
oq_code oq_rows_forward(oq_context *context, const oq_block_weights *weights, oq_linear_rows rows, const oq_forms *x,
                        int64_t T, oq_real *y);
oq_code oq_rows_backward(oq_context *context, const oq_block_weights *weights, const oq_block_gradients *gradients,
                         oq_linear_rows rows, const oq_forms *x, const oq_real *dy, int64_t T, oq_real *dx,
                         bool accumulate);

#endif
