/* A quantized matrix in the forms that products take; NULL where a form is not wanted. */
#ifndef OQ_QUANT_FORMS_H
#define OQ_QUANT_FORMS_H

#include "base/real.h"
#include "base/size.h"

typedef struct {
    oq_real *real;   /* [rows, width] x^ = (q - z) h */
    uint16_t *half;  /* [rows, width] x^ rounded to bfloat16 */
    uint8_t *codes;  /* [rows, width] q */
    int8_t *centred; /* [rows, width] q - z, for grids where that fits a byte */
    int most;        /* which no code and no |q - z| exceeds */
    /* One grid a row: */
    oq_real *scale; /* [rows] h */
    int32_t *zero;  /* [rows] z */
    int32_t *sum;   /* [rows] sum of q - z */
    bool byte_gradients; /* a weight's: backward products take bytes */
} oq_forms;

/* The forms of x [rows, width] from some row on. */
static inline oq_forms oq_forms_behind(const oq_forms *x, int64_t row, int64_t width)
{
    return (oq_forms){.real = OQ_AT(x->real, row * width),
                      .half = OQ_AT(x->half, row * width),
                      .codes = OQ_AT(x->codes, row * width),
                      .centred = OQ_AT(x->centred, row * width),
                      .most = x->most,
                      .scale = OQ_AT(x->scale, row),
                      .zero = OQ_AT(x->zero, row),
                      .sum = OQ_AT(x->sum, row),
                      .byte_gradients = x->byte_gradients};
}

#endif
