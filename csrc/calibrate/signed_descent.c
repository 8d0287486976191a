#include "calibrate/signed_descent.h"

#define FARTHEST ((oq_real)0.5) /* beyond it a weight would skip its two nearest codes */

OQ_VECTORIZED static void update(oq_real *v, const oq_real *dv, int64_t count, oq_real rate)
{
    for (int64_t i = 0; i < count; i++) {
        const oq_real step = dv[i] > 0 ? rate : dv[i] < 0 ? -rate : 0;
        v[i] = oq_min(oq_max(v[i] - step, -FARTHEST), FARTHEST);
    }
}

void oq_signed_step(const oq_learnables *list, double rate, const oq_real *dtheta, oq_real *theta)
{
    for (int i = 0; i < list->entries; i++) {
        const oq_learnable *e = &list->entry[i];
        if (e->kind == OQ_OFFSET) update(theta + e->offset, dtheta + e->offset, e->count, (oq_real)rate);
    }
}
