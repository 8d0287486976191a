/* The quantizer on arrays: fake quantization forward and backward, codes, and their bit streams. */
#include "math/check.h"
#include "python/function.h"
#include "python/topics.h"
#include "quant/fake_quantize.h"
#include "quant/pack.h"

/* Rows of k values in g groups; p bytes of a packed row. */
struct values {
    const oq_real *x, *dout, *max_logit, *min_logit, *scales;
    const uint8_t *codes, *zero_points, *packed;
    int bits, scale_bits;
    int64_t group_size, width;
    bool symmetric, full_range;
    oq_real *out, *dx, *dmax_logit, *dmin_logit, *scale;
    uint8_t *code, *zero_point;
};

static oq_groups groups_of(const oq_call *call, const values *v)
{
    const int64_t k = oq_size(call, 'k'), size = v->group_size;
    return (oq_groups){.rows = oq_size(call, '*'),
                       .width = k,
                       .group = size > 0 && size < k ? size
                                : k                  ? k
                                                     : 1,
                       .quantizer = {v->bits, v->symmetric, v->full_range, v->scale_bits}};
}

static oq_clip clip_of(const values *v) { return (oq_clip){.max_logit = v->max_logit, .min_logit = v->min_logit}; }

static int count_groups(oq_call *call, values *v)
{
    const oq_groups groups = groups_of(call, v);
    call->size['g'] = oq_groups_per_row(&groups);
    return 0;
}

static int both_or_none(oq_call *call, values *v)
{
    (void)call;
    if (!v->max_logit == !v->min_logit) return 0;
    PyErr_SetString(PyExc_ValueError, "max_logit and min_logit go together: give both or none");
    return -1;
}

#define GROUP_SIZE OQ_SCALAR(group_size, .flags = OQ_KEYWORD, .range = "[0, inf)", .then = count_groups)
#define QUANTIZER                                                                                            \
    OQ_SCALAR(bits, .flags = OQ_KEYWORD | OQ_NEEDED), GROUP_SIZE, OQ_SCALAR(symmetric, .flags = OQ_KEYWORD), \
        OQ_SCALAR(full_range, .flags = OQ_KEYWORD),                                                          \
        OQ_SCALAR(scale_bits, .flags = OQ_KEYWORD, .range = "[0, 11]"),                                      \
        OQ_ARRAY(max_logit, "*g", .flags = OQ_KEYWORD | OQ_FINITE),                                          \
        OQ_ARRAY(min_logit, "*g", .flags = OQ_KEYWORD | OQ_FINITE, .then = both_or_none)

/* ---- fake_quantize, fake_quantize_backward --------------------------------- */

static oq_code forward(oq_call *call, const values *v, oq_real *out, oq_range **ranges)
{
    const oq_groups groups = groups_of(call, v);
    OQ_TRY(oq_check_quantizable(&call->context, "x", v->x, groups.rows, groups.width));
    OQ_NEW(&call->context, *ranges, groups.rows * oq_groups_per_row(&groups));
    return oq_fake_quantize_forward(&call->context, &groups, clip_of(v), v->x, out, *ranges);
}

static const oq_argument fake_quantize_arguments[] = {
    OQ_ARRAY(x, "*k"),
    QUANTIZER,
    OQ_THREADS,
    OQ_RESULT(out, "*k"),
};

static oq_code fake_quantize_run(oq_call *call, values *v)
{
    oq_range *ranges;
    return forward(call, v, v->out, &ranges);
}

static const oq_argument fake_quantize_backward_arguments[] = {
    OQ_ARRAY(x, "*k"),
    OQ_ARRAY(dout, "*k", .flags = OQ_FINITE),
    QUANTIZER,
    OQ_THREADS,
    OQ_RESULT(dx, "*k"),
    OQ_RESULT(dmax_logit, "*g", .when = offsetof(values, max_logit)),
    OQ_RESULT(dmin_logit, "*g", .when = offsetof(values, max_logit)),
};

static oq_code fake_quantize_backward_run(oq_call *call, values *v)
{
    const oq_groups groups = groups_of(call, v);
    const size_t logits = v->max_logit ? (size_t)(groups.rows * oq_groups_per_row(&groups)) : 0;
    oq_range *ranges;
    OQ_TRY(forward(call, v, v->dx, &ranges));
    if (logits) memset(v->dmax_logit, 0, sizeof(oq_real) * logits);
    if (logits) memset(v->dmin_logit, 0, sizeof(oq_real) * logits);
    return oq_fake_quantize_backward(&call->context, &groups, clip_of(v), v->x, ranges, v->dout, v->dx,
                                     (oq_clip_gradients){.max_logit = v->dmax_logit, .min_logit = v->dmin_logit});
}

/* ---- quantize, dequantize, its gradient -------------------------------------------------- */

static const oq_argument quantize_arguments[] = {
    OQ_ARRAY(x, "*k"),           QUANTIZER, OQ_THREADS, OQ_RESULT(code, "*k"), OQ_RESULT(scale, "*g"),
    OQ_RESULT(zero_point, "*g"),
};

static oq_code quantize_run(oq_call *call, values *v)
{
    const oq_groups groups = groups_of(call, v);
    OQ_TRY(oq_check_quantizable(&call->context, "x", v->x, groups.rows, groups.width));
    return oq_quantize(&call->context, &groups, clip_of(v), v->x, v->code, v->scale, v->zero_point);
}

static const oq_argument dequantize_arguments[] = {
    OQ_ARRAY(codes, "*k"),
    OQ_ARRAY(scales, "*g", .flags = OQ_FINITE),
    OQ_ARRAY(zero_points, "*g"),
    GROUP_SIZE,
    OQ_THREADS,
    OQ_RESULT(out, "*k"),
};

static oq_code dequantize_run(oq_call *call, values *v)
{
    oq_groups groups = groups_of(call, v);
    groups.quantizer.bits = 8; /* codes of any grid */
    return oq_dequantize(&call->context, &groups, v->codes, v->scales, v->zero_points, v->out);
}

static const oq_argument dequantize_backward_arguments[] = {
    OQ_ARRAY(codes, "*k"), OQ_ARRAY(zero_points, "*g"), OQ_ARRAY(dout, "*k"), GROUP_SIZE,
    OQ_THREADS,            OQ_RESULT(scale, "*g"),
};

static oq_code dequantize_backward_run(oq_call *call, values *v)
{
    oq_groups groups = groups_of(call, v);
    groups.quantizer.bits = 8; /* codes of any grid */
    return oq_dequantize_backward(&call->context, &groups, v->codes, v->zero_points, v->dout, v->scale);
}

static const oq_argument round_scales_arguments[] = {
    OQ_ARRAY(scales, "*k"),
    OQ_SCALAR(scale_bits, .range = "[0, 11]"),
    OQ_RESULT(scale, "*k"),
};

static oq_code round_scales_run(oq_call *call, values *v)
{
    const int64_t count = oq_size(call, '*') * oq_size(call, 'k');
    for (int64_t i = 0; i < count; i++) v->scale[i] = (oq_real)oq_rounded_scale(v->scale_bits, (double)v->scales[i]);
    return OQ_OK;
}

/* ---- pack, unpack ---------------------------------------------------------- */

static int count_bytes(oq_call *call, values *v)
{
    if (oq_size(call, 'k') < 0) call->size['k'] = v->width; /* of unpack */
    const int64_t k = oq_size(call, 'k'), bytes = oq_packed_width(k, v->bits), given = oq_size(call, 'p');
    call->size['p'] = bytes;
    if (bytes < 0)
        PyErr_Format(PyExc_ValueError, "expected bits in 1..8 and a width of at least 0, got %d and %lld", v->bits,
                     (long long)k);
    else if (given >= 0 && given != bytes)
        PyErr_Format(PyExc_ValueError, "packed: a row of %lld codes of %d bits has %lld bytes, not %lld",
                     (long long)k, v->bits, (long long)bytes, (long long)given);
    return PyErr_Occurred() ? -1 : 0;
}

static const oq_argument pack_arguments[] = {
    OQ_ARRAY(codes, "*k"),
    OQ_SCALAR(bits, .then = count_bytes),
    OQ_RESULT(code, "*p"),
};

static oq_code pack_run(oq_call *call, values *v)
{
    return oq_pack(&call->context, v->codes, oq_size(call, '*'), oq_size(call, 'k'), v->bits, v->code);
}

static const oq_argument unpack_arguments[] = {
    OQ_ARRAY(packed, "*p"),
    OQ_SCALAR(bits),
    OQ_SCALAR(width, .then = count_bytes),
    OQ_RESULT(code, "*k"),
};

static oq_code unpack_run(oq_call *call, values *v)
{
    return oq_unpack(&call->context, v->packed, oq_size(call, '*'), v->width, v->bits, v->code);
}

OQ_FUNCTION(fake_quantize);
OQ_FUNCTION(fake_quantize_backward);
OQ_FUNCTION(quantize);
OQ_FUNCTION(dequantize);
OQ_FUNCTION(dequantize_backward);
OQ_FUNCTION(round_scales);
OQ_FUNCTION(pack);
OQ_FUNCTION(unpack);

PyMethodDef oq_quant_methods[] = {
    OQ_METHOD(fake_quantize, "Round to the grid of each group and back."),
    OQ_METHOD(fake_quantize_backward, "Straight-through gradients of fake_quantize."),
    OQ_METHOD(quantize, "Codes, scales and zero points."),
    OQ_METHOD(dequantize, "(q - z) h."),
    OQ_METHOD(dequantize_backward, "The gradient of its scales."),
    OQ_METHOD(round_scales, "Scales of so many significant bits."),
    OQ_METHOD(pack, "Codes as a little-endian bit stream a row."),
    OQ_METHOD(unpack, "The codes of a bit stream."),
    {NULL, NULL, 0, NULL},
};
