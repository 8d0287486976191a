/* How every product is spread over threads: C [m, n] is cut into panels that depend on the shape alone. */
#ifndef OQ_MATH_GEMM_PANELS_H
#define OQ_MATH_GEMM_PANELS_H

#include <stdint.h>

#include "base/context.h"

typedef struct {
    int64_t row, rows, column, columns;
} oq_panel;

/* Computes one panel on the calling thread. */
typedef oq_code (*oq_panel_product)(const void *product, oq_panel panel);

/* Nothing where m or n is 0; an error names the product by its m, n and k. */
oq_code oq_over_panels(oq_context *context, int64_t m, int64_t n, int64_t k, oq_panel_product run,
                       const void *product);

/* The same in few panels, as many as keep the threads busy: for products whose sums do not depend on the cut. */
oq_code oq_over_threads(oq_context *context, int64_t m, int64_t n, int64_t k, oq_panel_product run,
                        const void *product);

#endif
