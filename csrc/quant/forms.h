/* A quantized matrix in the forms that products take; NULL where a form is not wanted. */
#ifndef OQ_QUANT_FORMS_H
#define OQ_QUANT_FORMS_H

#include "base/real.h"

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
    return (oq_forms){.real = x->real ? x->real + row * width : NULL,
                      .half = x->half ? x->half + row * width : NULL,
                      .codes = x->codes ? x->codes + row * width : NULL,
                      .centred = x->centred ? x->centred + row * width : NULL,
                      .most = x->most,
                      .scale = x->scale ? x->scale + row : NULL,
                      .zero = x->zero ? x->zero + row : NULL,
                      .sum = x->sum ? x->sum + row : NULL,
                      .byte_gradients = x->byte_gradients};
}

#endif
