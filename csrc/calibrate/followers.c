#include "calibrate/followers.h"

#include "block/linear.h"
#include "math/vector.h"

oq_code oq_ahead_create(oq_context *context, oq_ahead *ahead, const oq_followers *followers, int64_t tokens,
                        bool bf16)
{
    if (!followers || followers->count == 0) return OQ_OK;
    const int64_t count = tokens * followers->spec[0].hidden;
    ahead->followers = followers;
    for (int64_t i = 0; i < followers->count; i++) {
        ahead->weights[i] = followers->weights[i];
        if (bf16) OQ_TRY(oq_weights_to_bf16(context, &followers->spec[i], &ahead->weights[i]));
        ahead->run[i] = (oq_block_run){.spec = &followers->spec[i],
                                       .quantizers = &oq_in_float,
                                       .rope = followers->rope[i],
                                       .tokens = tokens,
                                       .bf16 = bf16};
        OQ_TRY(oq_saved_create(context, &ahead->run[i], &ahead->saved[i]));
        OQ_NEW(context, ahead->y[i], count);
    }
    OQ_NEW(context, ahead->d, count);
    OQ_NEW(context, ahead->dx, count);
    return OQ_OK;
}

oq_code oq_ahead_forward(oq_context *context, oq_ahead *ahead, const oq_real *x, const oq_real **y)
{
    for (int64_t i = 0; i < ahead->followers->count; i++, x = *y) {
        OQ_TRY(oq_block_forward(context, &ahead->run[i], &ahead->weights[i], x, &ahead->saved[i], ahead->y[i]));
        *y = ahead->y[i];
    }
    return OQ_OK;
}

oq_code oq_ahead_backward(oq_context *context, oq_ahead *ahead, oq_real *dx)
{
    const int64_t count = ahead->run[0].tokens * ahead->followers->spec[0].hidden;
    for (int64_t i = ahead->followers->count - 1; i >= 0; i--) {
        const oq_block_gradients gradients = {.x = ahead->dx};
        oq_real *spent = ahead->d;
        OQ_TRY(oq_block_backward(context, &ahead->run[i], &ahead->weights[i], &ahead->saved[i], ahead->d,
                                 &gradients));
        ahead->d = ahead->dx;
        ahead->dx = spent;
    }
    oq_add(dx, ahead->d, count);
    return OQ_OK;
}
