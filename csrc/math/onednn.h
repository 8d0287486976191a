/* oneDNN, loaded at run time: one of the two files that include dnnl.h. */
#ifndef OQ_MATH_ONEDNN_H
#define OQ_MATH_ONEDNN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* Load libdnnl from path. Call once, before the first product, from one
 * thread. On failure *error says why and the reference products stay. */
oq_code oq_onednn_load(const char *path, oq_error *error);
bool oq_onednn_loaded(void);
/* "3.2.0", or "" when not loaded. */
const char *oq_onednn_version(void);

/* Row-major single-precision product on the calling thread alone. */
oq_code oq_onednn_sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                        const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                        int64_t ldc);

#endif
