#include "quant/products.h"

#include <stddef.h>

#include "math/bf16.h"
#include "math/igemm.h"

const char *const oq_products_names[OQ_PRODUCTS + 1] = {"float32", "integer", "bfloat16", NULL};

bool oq_has_products(oq_products products)
{
#ifdef OQ_DOUBLE
    return products == OQ_PRODUCTS_FLOAT32;
#else
    return products == OQ_PRODUCTS_FLOAT32 ||
           (oq_has_igemm() && (products == OQ_PRODUCTS_INTEGER || oq_has_bf16()));
#endif
}
