#include "calibrate/adamw.h"

#define BETA1 0.9
#define BETA2 0.999
#define EPSILON 1e-8

oq_code oq_adamw_create(oq_context *context, oq_adamw *adamw, const oq_learnables *list)
{
    OQ_NEW_ZERO(context, adamw->m, list->adaptive);
    OQ_NEW_ZERO(context, adamw->v, list->adaptive);
    adamw->step = 0;
    for (int i = 0; i < OQ_MAX_LEARNABLES; i++) adamw->lr_factor[i] = 1;
    return OQ_OK;
}

OQ_VECTORIZED static void update(oq_real *theta, const oq_real *d, oq_real *m, oq_real *v, int64_t count,
                                 oq_real rate, oq_real correction)
{
    const oq_real b1 = (oq_real)BETA1, b2 = (oq_real)BETA2, eps = (oq_real)EPSILON;
    for (int64_t i = 0; i < count; i++) {
        m[i] = b1 * m[i] + (1 - b1) * d[i];
        v[i] = b2 * v[i] + (1 - b2) * d[i] * d[i];
        theta[i] -= rate * m[i] / (oq_sqrt(v[i]) * correction + eps);
    }
}

void oq_adamw_step(oq_adamw *adamw, const oq_learnables *list, const oq_options *options, double schedule,
                   const oq_real *dtheta, oq_real *theta)
{
    const double t = (double)++adamw->step;
    const double bias1 = 1 - pow(BETA1, t), bias2 = 1 - pow(BETA2, t);
    for (int i = 0; i < list->entries; i++) {
        const oq_learnable *e = &list->entry[i];
        if (e->kind == OQ_OFFSET) continue;
        const bool clipping = e->kind == OQ_LWC_MAX || e->kind == OQ_LWC_MIN || e->kind == OQ_LAC;
        const double rate =
            (clipping ? options->lr_lwc : options->lr_let) * schedule * adamw->lr_factor[i] / bias1;
        update(theta + e->offset, dtheta + e->offset, adamw->m + e->offset, adamw->v + e->offset, e->count,
               (oq_real)rate, (oq_real)(1 / sqrt(bias2)));
    }
}
