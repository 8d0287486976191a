/* The blocks behind the one that is calibrated, in full precision: what a reconstruction over a window of blocks looks
 * through (CBQ, 2312.07950, trains all blocks of its window; here the others stand still, and the window slides by
 * one).  The loss behind the last of them tells how much of an error they carry on. */
#ifndef OQ_CALIBRATE_FOLLOWERS_H
#define OQ_CALIBRATE_FOLLOWERS_H

#include "block/block.h"

enum { OQ_MOST_FOLLOWERS = 7 };

/* Borrowed. */
typedef struct {
    int64_t count;
    oq_block_spec spec[OQ_MOST_FOLLOWERS];
    oq_block_weights weights[OQ_MOST_FOLLOWERS];
    oq_rope rope[OQ_MOST_FOLLOWERS];
} oq_followers;

/* What going through them takes. */
typedef struct {
    const oq_followers *followers;
    oq_block_weights weights[OQ_MOST_FOLLOWERS]; /* with the forms that fast products take */
    oq_block_run run[OQ_MOST_FOLLOWERS];
    oq_saved saved[OQ_MOST_FOLLOWERS];
    oq_real *y[OQ_MOST_FOLLOWERS]; /* [T, H] behind each */
    oq_real *d, *dx;               /* [T, H] */
} oq_ahead;

/* followers NULL: none. bf16: products in bfloat16. */
oq_code oq_ahead_create(oq_context *context, oq_ahead *ahead, const oq_followers *followers, int64_t tokens,
                        bool bf16);
/* Through all of them from x [T, H]; *y [T, H] is what the last gives. */
oq_code oq_ahead_forward(oq_context *context, oq_ahead *ahead, const oq_real *x, const oq_real **y);
/* ahead->d, the gradient of that y, is spent; dx [T, H] += that of x. */
oq_code oq_ahead_backward(oq_context *context, oq_ahead *ahead, oq_real *dx);

#endif
