/* A mixture of experts at run time: of all experts, those a token takes. */
#ifndef OQ_RUNTIME_EXPERTS_H
#define OQ_RUNTIME_EXPERTS_H

#include "runtime/linears.h"

#ifndef OQ_DOUBLE

/* y [T, H] of the normed h [T, H], which may be rounded in place. */
oq_code oq_run_experts(oq_context *context, const oq_runtime_model *model, const oq_runtime_block *block, float *h,
                       int64_t T, float *y);

#endif

#endif
