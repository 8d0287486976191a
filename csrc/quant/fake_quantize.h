/* Fake quantization of a matrix in groups, with straight-through gradients:
 * weights (rows = output channels, LWC), activations (rows = tokens, min-max)
 * and Q, K, V (rows = tokens of one head) alike. */
#ifndef OQ_QUANT_FAKE_QUANTIZE_H
#define OQ_QUANT_FAKE_QUANTIZE_H

#include "base/context.h"
#include "quant/forms.h"
#include "quant/quantizer.h"
#include "quant/scaling.h"

typedef struct {
    int64_t rows, width;
    int64_t group; /* consecutive values of a row that share a grid; the last group may be shorter */
    oq_quantizer quantizer;
} oq_groups;

/* Inputs that share a grid where `group_size` was asked for: 0, and more than a row, are the whole row. */
static inline int64_t oq_group_within(int64_t group_size, int64_t width)
{
    return group_size > 0 && group_size < width ? group_size : width;
}

static inline int64_t oq_groups_per_row(const oq_groups *groups)
{
    return (groups->width + groups->group - 1) / groups->group;
}

/* What is learned of a matrix's grids and of its rounding, and the diagonal maps it passes on its way to them: a
 * scaled matrix is never written. */
typedef struct {
    const oq_real *max_logit, *min_logit; /* LWC's, [rows, groups] each; both NULL: plain min-max */
    const oq_real *offset;                /* [rows, width] V of round(x / h + V); NULL: round to nearest */
    oq_scaling scaling;                   /* LET's: all below is of x columns rows */
} oq_clip;

/* Their gradients, added to; NULL where there is none. */
typedef struct {
    oq_real *max_logit, *min_logit, *offset;
    double *columns, *rows; /* of the scaling's factors, where they are */
} oq_clip_gradients;

/* Both, of the rows of a matrix from some row on. */
static inline oq_clip oq_clip_behind(oq_clip clip, const oq_groups *groups, int64_t row)
{
    const int64_t at = row * oq_groups_per_row(groups);
    if (clip.max_logit) clip.max_logit += at, clip.min_logit += at;
    if (clip.offset) clip.offset += row * groups->width;
    if (clip.scaling.rows) clip.scaling.rows += row;
    return clip;
}
static inline oq_clip_gradients oq_clip_gradients_behind(oq_clip_gradients g, const oq_groups *groups, int64_t row)
{
    const int64_t at = row * oq_groups_per_row(groups);
    if (g.max_logit) g.max_logit += at, g.min_logit += at;
    if (g.offset) g.offset += row * groups->width;
    if (g.rows) g.rows += row;
    return g;
}

/* The wanted forms of fake_quantize(x); ranges [rows, groups] keeps each group's min and max for the backward
 * pass. Integer forms are for one grid a row. */
oq_code oq_quantize_forms(oq_context *context, const oq_groups *groups, oq_clip clip, const oq_real *x,
                          const oq_forms *forms, oq_range *ranges);
/* The real form alone: out [rows, width]; out may be x. */
oq_code oq_fake_quantize_forward(oq_context *context, const oq_groups *groups, oq_clip clip, const oq_real *x,
                                 oq_real *out, oq_range *ranges);

/* dx [rows, width] = gradient of x, before its scaling, from dout; dx may be dout, or NULL when x is a constant.
 * The offset's is straight through too: h dout inside the range, 0 where clipped. */
oq_code oq_fake_quantize_backward(oq_context *context, const oq_groups *groups, oq_clip clip, const oq_real *x,
                                  const oq_range *ranges, const oq_real *dout, oq_real *dx,
                                  oq_clip_gradients dclip);

/* codes [rows, width] 0..2^n - 1, scale and zero_point [rows, groups]. */
oq_code oq_quantize(oq_context *context, const oq_groups *groups, oq_clip clip, const oq_real *x, uint8_t *codes,
                    oq_real *scale, uint8_t *zero_point);
/* out = (q - z) h, the very bits oq_fake_quantize_forward gives. */
oq_code oq_dequantize(oq_context *context, const oq_groups *groups, const uint8_t *codes, const oq_real *scale,
                      const uint8_t *zero_point, oq_real *out);
/* dscale [rows, groups] of dout [rows, width], the codes as they are: dh = sum (q - z) dout. */
oq_code oq_dequantize_backward(oq_context *context, const oq_groups *groups, const uint8_t *codes,
                               const uint8_t *zero_point, const oq_real *dout, oq_real *dscale);

#endif
