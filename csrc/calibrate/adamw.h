/* AdamW (0.9, 0.999, 1e-8, no decay) over the adaptive part of one flat vector, a learning rate an entry. */
#ifndef OQ_CALIBRATE_ADAMW_H
#define OQ_CALIBRATE_ADAMW_H

#include "calibrate/learnables.h"

typedef struct {
    oq_real *m, *v;                      /* [adaptive] first and second moments */
    int64_t step;                        /* steps taken */
    double lr_factor[OQ_MAX_LEARNABLES]; /* 1, halved by a rejected step */
} oq_adamw;

oq_code oq_adamw_create(oq_context *context, oq_adamw *adamw, const oq_learnables *list);
/* theta <- theta - lr m^ / (sqrt(v^) + eps); schedule scales every learning rate. */
void oq_adamw_step(oq_adamw *adamw, const oq_learnables *list, const oq_options *options, double schedule,
                   const oq_real *dtheta, oq_real *theta);

#endif
