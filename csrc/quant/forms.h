/* A quantized matrix in the forms that products take; NULL where a form is not wanted. */
#ifndef OQ_QUANT_FORMS_H
#define OQ_QUANT_FORMS_H

#include "base/real.h"

typedef struct {
    oq_real *real;   /* [rows, width] x^ = (q - z) h */
    uint16_t *half;  /* [rows, width] x^ rounded to bfloat16 */
    uint8_t *codes;  /* [rows, width] q */
    int8_t *centred; /* [rows, width] q - z, for grids where that fits a byte */
    /* One grid a row: */
    oq_real *scale; /* [rows] h */
    int32_t *zero;  /* [rows] z */
    int32_t *sum;   /* [rows] sum of q - z */
} oq_forms;

#endif
