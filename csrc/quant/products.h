/* The kinds of products a training step may take. */
#ifndef OQ_QUANT_PRODUCTS_H
#define OQ_QUANT_PRODUCTS_H

#include <stdbool.h>

/* How a step multiplies; each has what the one before it has. */
typedef enum {
    OQ_PRODUCTS_FLOAT32,  /* everything in single precision */
    OQ_PRODUCTS_INTEGER,  /* quantized activations times quantized weights: exact, over integers */
    OQ_PRODUCTS_BFLOAT16, /* the other products of linears: operands rounded to bfloat16, sums in float */
    OQ_PRODUCTS
} oq_products;
extern const char *const oq_products_names[OQ_PRODUCTS + 1]; /* ends with NULL */
/* Whether this processor, with the oneDNN loaded, has them. */
bool oq_has_products(oq_products products);

#endif
