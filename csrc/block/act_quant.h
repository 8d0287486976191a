/* Activation quantizers inside the block: one grid a row, its extremes clipped by a learned share where `clip` is
 * given: the two logits (max, min) of all rows, LWC's twin for activations. */
#ifndef OQ_BLOCK_ACT_QUANT_H
#define OQ_BLOCK_ACT_QUANT_H

#include "block/block.h"
#include "quant/fake_quantize.h"

/* x_hat [rows, width] = quantized x; nothing to do where the quantizer is off (x_hat is x then). */
oq_code oq_act_quant_forward(oq_context *context, oq_quantizer quantizer, const oq_real *clip, const oq_real *x,
                             oq_real *x_hat, oq_range *ranges, int64_t rows, int64_t width);
/* The forms of a linear's input x [rows, width]; where the quantizer is off, of x itself. */
oq_code oq_input_forms(oq_context *context, oq_quantizer quantizer, const oq_real *clip, const oq_real *x,
                       const oq_forms *forms, oq_range *ranges, int64_t rows, int64_t width);
/* d [rows, width]: gradient of x_hat in, gradient of x out; dclip [2] += ... unless NULL. */
oq_code oq_act_quant_backward(oq_context *context, oq_quantizer quantizer, const oq_real *clip, const oq_real *x,
                              const oq_range *ranges, oq_real *d, oq_real *dclip, int64_t rows, int64_t width);

/* The same for keys or values x [T, m d] of a run, a row a head; those of sink tokens stay as they are. */
oq_code oq_kv_quant_forward(oq_context *context, const oq_block_run *run, oq_quantizer quantizer, const oq_real *x,
                            oq_real *x_hat, oq_range *ranges);
oq_code oq_kv_quant_backward(oq_context *context, const oq_block_run *run, oq_quantizer quantizer, const oq_real *x,
                             const oq_range *ranges, oq_real *d);

#endif
