#include "calibrate/calibrate_linear.h"

#include <string.h>

#include "block/act_quant.h"
#include "calibrate/initialize.h"
#include "math/check.h"
#include "math/gemm.h"
#include "math/vector.h"
#include "quant/fake_quantize.h"
#include "quant/lwc.h"
#include "transform/dominance.h"
#include "transform/equivalent.h"

#define SMALLEST_CHUNK 256 /* rows the evaluation takes at a time, at least */

typedef struct {
    const oq_layer *layer;
    const oq_options *options;
    oq_learnables list;
    oq_map map;
    oq_groups groups;
    oq_real *mapped;    /* [out, in] W~; the weight itself is read where there is no map */
    oq_real *quantized; /* [out, in]; NULL: weights stay float */
    oq_range *ranges;   /* [out, groups] */
    oq_real *bias;      /* [out] W delta; NULL without a shift */
    oq_real *dweight, *dbias;
    int64_t chunk;                                           /* B: the rows everything below holds */
    oq_real *x, *centered, *input, *input_hat, *dinput, *dx; /* [B, in]; input_hat is input where floating */
    oq_range *input_ranges;
    oq_real *y, *target, *dy; /* [B, out] */
    double *weights;          /* [B] */
} session;

/* ---- create ----------------------------------------------------------------- */

static oq_code check(oq_context *context, const oq_layer *l, const oq_options *o)
{
    OQ_TRY(oq_check_training(context, o));
    if (l->rows < 1 || l->in < 1 || l->out < 1)
        return oq_fail(context, OQ_INVALID_ARGUMENT,
                       "a layer of %lld x %lld on %lld rows has nothing to calibrate", (long long)l->out,
                       (long long)l->in, (long long)l->rows);
    OQ_TRY(oq_check_quantizable(context, "weight", l->weight, l->out, l->in));
    OQ_TRY(oq_check_quantizable(context, "x", l->x, l->rows, l->in));
    return l->bias ? oq_check_finite(context, "bias", l->bias, 1, l->out) : OQ_OK;
}

static oq_code create_batch(oq_context *context, session *s)
{
    const oq_layer *l = s->layer;
    const int64_t wanted = s->options->batch_size > SMALLEST_CHUNK ? s->options->batch_size : SMALLEST_CHUNK;
    s->chunk = wanted < l->rows ? wanted : l->rows;
    OQ_NEW(context, s->x, s->chunk * l->in);
    OQ_NEW(context, s->centered, s->chunk * l->in);
    OQ_NEW(context, s->input, s->chunk * l->in);
    s->input_hat = s->input;
    if (oq_is_quantized(s->options->activation.x)) OQ_NEW(context, s->input_hat, s->chunk * l->in);
    OQ_NEW(context, s->dinput, s->chunk * l->in);
    OQ_NEW(context, s->dx, s->chunk * l->in);
    OQ_NEW(context, s->input_ranges, s->chunk);
    OQ_NEW(context, s->y, s->chunk * l->out);
    OQ_NEW(context, s->target, s->chunk * l->out);
    OQ_NEW(context, s->dy, s->chunk * l->out);
    OQ_NEW(context, s->weights, s->chunk);
    return OQ_OK;
}

static oq_code create(oq_context *context, session *s)
{
    const oq_layer *l = s->layer;
    const oq_options *o = s->options;
    const oq_affine affine = {
        .parametrization = o->parametrization, .mask = {l->in - 1, o->stability}, .blocks = 1, .width = l->in};
    oq_learnables_of_layer(l->out, l->in, o, &s->list);
    OQ_TRY(oq_map_create(context, &s->map, o->map[OQ_SITE_NORM1], affine, o->dominance == OQ_DOMINANCE_MONITOR));
    const oq_scheme scheme = oq_scheme_of(o, 0);
    s->groups = (oq_groups){l->out, l->in, oq_group_within(scheme.group_size, l->in), scheme.quantizer};
    if (s->map.kind != OQ_MAP_NONE) OQ_NEW(context, s->mapped, l->out * l->in);
    if (oq_is_quantized(scheme.quantizer)) {
        OQ_NEW(context, s->quantized, l->out * l->in);
        OQ_NEW(context, s->ranges, l->out * oq_groups_per_row(&s->groups));
    }
    OQ_NEW(context, s->dweight, l->out * l->in);
    OQ_NEW(context, s->dbias, l->out);
    if (s->list.shift[0] >= 0) OQ_NEW(context, s->bias, l->out);
    return create_batch(context, s);
}

/* ---- the weight's side --------------------------------------------------------- */

static const oq_real *mapped_weight(const session *s) { return s->mapped ? s->mapped : s->layer->weight; }
static const oq_real *used_weight(const session *s) { return s->quantized ? s->quantized : mapped_weight(s); }
static const oq_real *shift_of(const session *s, const oq_real *theta)
{
    return oq_part_const(&s->list, s->list.shift[0], theta);
}
static oq_clip clip_of(const session *s, const oq_real *theta)
{
    return (oq_clip){.max_logit = oq_part_const(&s->list, s->list.lwc_max[0], theta),
                     .min_logit = oq_part_const(&s->list, s->list.lwc_min[0], theta),
                     .offset = oq_part_const(&s->list, s->list.offset[0], theta)};
}

static oq_code apply(oq_context *context, void *user, const oq_real *theta, int64_t epoch)
{
    session *s = user;
    const oq_layer *l = s->layer;
    s->map.affine.mask.band = oq_mask_band(l->in, epoch, s->options->epochs);
    OQ_TRY(oq_map_forward(context, &s->map, oq_part_const(&s->list, s->list.map[0], theta), "input map"));
    if (s->mapped) OQ_TRY(oq_map_columns(context, &s->map, 1, l->weight, s->mapped, l->out));
    if (s->bias) OQ_TRY(oq_shifted_bias(context, l->weight, shift_of(s, theta), NULL, s->bias, l->out, l->in));
    memset(s->dweight, 0, sizeof *s->dweight * (size_t)(l->out * l->in));
    memset(s->dbias, 0, sizeof *s->dbias * (size_t)l->out);
    if (!s->quantized) return OQ_OK;
    return oq_fake_quantize_forward(context, &s->groups, clip_of(s, theta), mapped_weight(s), s->quantized,
                                    s->ranges);
}

static oq_code apply_backward(oq_context *context, session *s, const oq_real *theta, oq_real *dtheta)
{
    const oq_layer *l = s->layer;
    oq_real *dw = s->dweight; /* of W^, then of W~ */
    const oq_clip_gradients dclip = {.max_logit = oq_part(&s->list, s->list.lwc_max[0], dtheta),
                                     .min_logit = oq_part(&s->list, s->list.lwc_min[0], dtheta),
                                     .offset = oq_part(&s->list, s->list.offset[0], dtheta)};
    if (s->quantized)
        OQ_TRY(oq_fake_quantize_backward(context, &s->groups, clip_of(s, theta), mapped_weight(s), s->ranges, dw,
                                         dw, dclip));
    if (s->bias)
        OQ_TRY(oq_shifted_bias_backward(context, l->weight, shift_of(s, theta), s->dbias,
                                        oq_part(&s->list, s->list.shift[0], dtheta), NULL, l->out, l->in));
    if (!s->mapped) return OQ_OK;
    OQ_TRY(oq_map_columns_backward(context, &s->map, 1, l->weight, dw, l->out));
    return oq_map_backward(context, &s->map, oq_part_const(&s->list, s->list.map[0], theta),
                           oq_part(&s->list, s->list.map[0], dtheta));
}

/* ---- the input's side ------------------------------------------------------------- */

/* Loss of `count` rows of s->x, and dy when learn is set. */
static oq_code forward(oq_context *context, session *s, const oq_real *theta, int64_t count, bool learn,
                       double *loss)
{
    const oq_layer *l = s->layer;
    OQ_TRY(oq_linear_forward(context, s->x, l->weight, s->target, count, l->in, l->out));
    oq_center(s->x, shift_of(s, theta), s->centered, count, l->in);
    OQ_TRY(oq_map_input(context, &s->map, s->centered, s->input, count));
    OQ_TRY(oq_act_quant_forward(context, s->options->activation.x, NULL, s->input, s->input_hat, s->input_ranges,
                                count, l->in));
    OQ_TRY(oq_linear_forward(context, s->input_hat, used_weight(s), s->y, count, l->in, l->out));
    if (s->bias) oq_add_to_rows(s->y, s->bias, count, l->out);
    oq_loss_weights(OQ_LOSS_MSE, s->target, s->x, s->weights, count, l->out);
    if (learn) memset(s->dy, 0, sizeof *s->dy * (size_t)(count * l->out));
    *loss = oq_loss(s->y, s->target, s->weights, learn ? s->dy : NULL, count, l->out);
    return OQ_OK;
}

static oq_code backward(oq_context *context, session *s, oq_real *dtheta, int64_t count)
{
    const oq_layer *l = s->layer;
    OQ_TRY(oq_linear_backward_weight(context, s->dy, s->input_hat, s->dweight, count, l->in, l->out, true));
    if (!s->mapped) return OQ_OK;
    OQ_TRY(oq_linear_backward_input(context, s->dy, used_weight(s), s->dinput, count, l->in, l->out, false));
    OQ_TRY(oq_act_quant_backward(context, s->options->activation.x, NULL, s->input, s->input_ranges, s->dinput,
                                 NULL, count, l->in));
    OQ_TRY(oq_map_input_backward(context, &s->map, s->centered, s->dinput, s->dx, count));
    if (!s->bias) return OQ_OK;
    OQ_TRY(oq_column_sums(context, s->dy, s->dbias, count, l->out));
    return oq_center_backward(context, s->dx, oq_part(&s->list, s->list.shift[0], dtheta), count, l->in);
}

static void gather(session *s, const int64_t *rows, int64_t first, int64_t count)
{
    const int64_t in = s->layer->in;
    for (int64_t i = 0; i < count; i++)
        memcpy(s->x + i * in, s->layer->x + (rows ? rows[first + i] : first + i) * in, sizeof *s->x * (size_t)in);
}

/* Mean loss over `count` rows, chunk by chunk; gradients are added when learn is set. */
static oq_code over_rows(oq_context *context, session *s, const oq_real *theta, const int64_t *rows, int64_t count,
                         oq_real *dtheta, double *loss)
{
    *loss = 0;
    for (int64_t first = 0; first < count; first += s->chunk) {
        const int64_t part = count - first < s->chunk ? count - first : s->chunk;
        double one;
        OQ_TRY(oq_check_cancel(context));
        gather(s, rows, first, part);
        OQ_TRY(forward(context, s, theta, part, dtheta != NULL, &one));
        *loss += one * ((double)part / (double)count);
        if (dtheta) OQ_TRY(backward(context, s, dtheta, part));
    }
    return OQ_OK;
}

/* ---- the objective ------------------------------------------------------------------- */

static oq_code evaluate(oq_context *context, void *user, const oq_real *theta, int64_t epoch, double *loss)
{
    session *s = user;
    OQ_TRY(apply(context, s, theta, epoch));
    return over_rows(context, s, theta, NULL, s->layer->rows, NULL, loss);
}

/* A micro-batch fits the scratch in one piece, so its mean needs no weighting of chunks. */
static oq_code gradients(oq_context *context, void *user, const oq_real *theta, int64_t epoch, const int64_t *rows,
                         int64_t count, oq_real *dtheta, double *loss)
{
    session *s = user;
    OQ_TRY(apply(context, s, theta, epoch));
    OQ_TRY(over_rows(context, s, theta, rows, count, dtheta, loss));
    return apply_backward(context, s, theta, dtheta);
}

/* ---- start and end -------------------------------------------------------------------- */

static oq_code start(oq_context *context, session *s, oq_real *initial, oq_real *rtn)
{
    const oq_layer *l = s->layer;
    oq_real *lo, *hi;
    double *largest;
    for (int64_t i = 0; i < s->list.total; i++) initial[i] = rtn[i] = 0;
    oq_fill_clipping(&s->list, OQ_LWC_INIT, initial);
    oq_fill_clipping(&s->list, OQ_LWC_IDENTITY, rtn);
    if (s->map.kind == OQ_MAP_NONE) return OQ_OK;
    OQ_NEW(context, lo, l->in);
    OQ_NEW(context, hi, l->in);
    OQ_NEW_ZERO(context, largest, l->in);
    memcpy(lo, l->x, sizeof *lo * (size_t)l->in);
    memcpy(hi, l->x, sizeof *hi * (size_t)l->in);
    for (int64_t i = 0; i < l->rows * l->in; i++) {
        lo[i % l->in] = oq_min(l->x[i], lo[i % l->in]);
        hi[i % l->in] = oq_max(l->x[i], hi[i % l->in]);
    }
    for (int64_t i = 0; i < l->out * l->in; i++)
        largest[i % l->in] = fmax(largest[i % l->in], fabs((double)l->weight[i]));
    oq_map_identity(&s->map, oq_part(&s->list, s->list.map[0], rtn));
    return oq_initialize_map(context, &s->map, lo, hi, largest, s->options->alpha,
                             oq_part(&s->list, s->list.map[0], initial),
                             oq_part(&s->list, s->list.shift[0], initial));
}

static void copy(oq_real *to, const oq_real *from, int64_t count)
{
    if (to && from) memcpy(to, from, sizeof *to * (size_t)count);
}

static oq_code fold(oq_context *context, const session *s, const oq_real *theta, const oq_folded_layer *f)
{
    const oq_layer *l = s->layer;
    const int64_t stored = s->map.square ? l->in * l->in : l->in;
    copy(f->bias, s->bias, l->out);
    if (f->bias && !s->bias) memset(f->bias, 0, sizeof *f->bias * (size_t)l->out);
    if (f->bias && l->bias) oq_add(f->bias, l->bias, l->out);
    copy(f->map, s->map.a, stored);
    copy(f->map_inverse, s->map.inverse, stored);
    copy(f->shift, shift_of(s, theta), l->in);
    for (int64_t i = 0; f->margins && i < l->in; i++)
        f->margins[i] = oq_row_margin(s->map.exact + i * l->in, i, l->in);
    copy(f->weight, mapped_weight(s), l->out * l->in);
    if (!s->quantized) return OQ_OK;
    return oq_quantize(context, &s->groups, clip_of(s, theta), mapped_weight(s), f->codes, f->scale,
                       f->zero_point);
}

oq_code oq_calibrate_linear(oq_context *context, const oq_layer *layer, const oq_options *options,
                            const oq_hooks *hooks, oq_calibration_result *result, const oq_folded_layer *folded)
{
    static const char *const names[] = {"input"};
    session s = {.layer = layer, .options = options};
    oq_real *initial, *rtn;
    OQ_TRY(check(context, layer, options));
    OQ_TRY(create(context, &s));
    OQ_NEW(context, initial, s.list.total);
    OQ_NEW(context, rtn, s.list.total);
    OQ_TRY(start(context, &s, initial, rtn));
    const oq_objective objective = {&s, layer->rows, apply, evaluate, gradients, NULL};
    oq_guarded guarded = {.maps = &s.map,
                          .names = names,
                          .entry = s.list.map,
                          .count = 1,
                          .factors = 1,
                          .list = &s.list,
                          .options = options,
                          .where = "layer"};
    OQ_TRY(oq_train(context, &objective, &guarded, hooks, initial, rtn, result));
    return fold(context, &s, result->theta, folded);
}

oq_code oq_linear_loss(oq_context *context, const oq_layer *layer, const oq_options *options, const oq_real *theta,
                       int64_t epoch, double *loss, oq_real *dtheta)
{
    oq_options whole = *options;
    session s = {.layer = layer, .options = &whole};
    whole.batch_size = layer->rows; /* all rows are one micro-batch, in one piece */
    OQ_TRY(check(context, layer, options));
    OQ_TRY(create(context, &s));
    memset(dtheta, 0, sizeof *dtheta * (size_t)s.list.total);
    return gradients(context, &s, theta, epoch, NULL, layer->rows, dtheta, loss);
}
