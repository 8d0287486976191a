/* Linears of a model at run time, packed or in float. */
#ifndef OQ_RUNTIME_LINEARS_H
#define OQ_RUNTIME_LINEARS_H

#include "runtime/model.h"

#ifndef OQ_DOUBLE

/* One linear and where its output [rows, out] goes. */
typedef struct {
    const oq_runtime_linear *linear;
    float *y;
} oq_linear_output;

/* Several linears of one of a block's inputs, x [rows, in], which is quantized once where they agree; x may be rounded
 * in place. */
oq_code oq_run_linears(oq_context *context, const oq_runtime_model *model, const oq_runtime_block *block, int input,
                       float *x, int64_t rows, const oq_linear_output *outputs, int count);
/* x [rows, width] rounded to a grid a row, in place; as it is where the quantizer is off. */
oq_code oq_round_rows(oq_context *context, oq_quantizer quantizer, const float *clip, float *x, int64_t rows,
                      int64_t width);

#endif

#endif
