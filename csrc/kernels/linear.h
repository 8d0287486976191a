/* A linear layer on packed integer weights:  y [rows, out] = x [rows, in] W^T + bias,
 * W = (codes - zero_points) scales at 2 to 8 bits, one scale a group of inputs.
 *
 * Activations are quantized per token on the fly (2 to 8 bits, the arithmetic of quant/quantizer.h), or become fixed
 * point: every 128 inputs at most have a step, 1/32512 of their largest value at 16 bits and 1/8323072 at more, in two
 * or three planes of 8 bits.  Either way the product is one of integers.  Integer sums are exact and what is done
 * in float is done in one order, so the result is the same bits for every kernel and any number of threads.
 *
 *     size_t bytes;
 *     OQ_TRY(oq_qlinear_bytes(context, &spec, &bytes));           once, at load
 *     OQ_TRY(oq_qlinear_pack(context, &spec, &source, memory, &linear));
 *     OQ_TRY(oq_qlinear_run(context, &linear, x, rows, y));
 * or, where several layers read the same x,
 *     OQ_TRY(oq_qlinear_quantize(context, &q, x, rows, &activations));
 *     OQ_TRY(oq_qlinear_apply(context, &q, &activations, y_q));
 *     OQ_TRY(oq_qlinear_apply(context, &k, &activations, y_k));    oq_qlinear_shares(&q, &k)            */
#ifndef OQ_KERNELS_LINEAR_H
#define OQ_KERNELS_LINEAR_H

#include "base/context.h"
#include "quant/quantizer.h"

typedef struct {
    int64_t out, in;
    int64_t group;           /* consecutive inputs that share a scale, 1..in; the last group may be shorter */
    int bits;                /* 2..8; 5, 6 and 7 are stored as 8 */
    bool symmetric;          /* every zero point is 2^(bits - 1) */
    bool bias;               /* y += bias */
    oq_quantizer activation; /* 2..8 bits: one grid a token; 16 bits and more: fixed point */
    bool clipped;            /* a token's extremes are first multiplied by these */
    float keep_max, keep_min;
} oq_qlinear_spec;

/* What a layer is made of; not needed after packing. */
typedef struct {
    const uint8_t *codes;       /* [out, in]; [out, oq_packed_width(in, bits)] when dense */
    bool dense;                 /* codes are the bit streams of quant/pack.h */
    const float *scales;        /* [out, groups], finite */
    const uint8_t *zero_points; /* [out, groups] below 2^bits; NULL when symmetric */
    const float *bias;          /* [out]; NULL without one */
} oq_qlinear_source;

struct oq_kernel;

/* Planes of bytes that activations of so many bits become. */
static inline int oq_planes_of(oq_quantizer activation)
{
    return oq_is_quantized(activation) ? 1 : activation.bits == 16 ? 2 : 3;
}

/* Inputs are cut into groups, those into segments of at most 128, padded to whole units: see layout.h. */
typedef struct {
    int64_t in, group, groups;
    int64_t segments;    /* of all groups */
    int64_t run;         /* inputs of a group added up as integers at most */
    int64_t unit, units; /* inputs a unit, units of all segments */
    int64_t unit_bytes;  /* of 16 outputs */
    int stored_bits;     /* 2, 3, 4, 8 */
} oq_layout;

/* A view of packed memory; copying it is fine, freeing it needs nothing. */
typedef struct {
    oq_qlinear_spec spec;
    oq_layout layout;
    const uint8_t *codes;
    const float *scales;
    const int16_t *sums;                   /* of a segment's codes; one panel of zeros beside fixed point */
    const uint8_t *zeros;                  /* NULL when symmetric */
    const float *bias;                     /* NULL without one */
    const struct oq_kernel *kernel, *wide; /* the latter for many rows */
} oq_qlinear;

/* x of `rows` tokens as integers, in the arena of the call that made them. */
typedef struct {
    int64_t rows;
    int planes;     /* 1; 2 or 3 of fixed point */
    int64_t stride; /* codes of a plane of a row */
    int8_t *codes;  /* [rows, planes, stride], a' = code - 128 */
    int32_t *pairs; /* [rows, planes, segments]: -z' and -sum(a' - z'), 16 bits each */
    float *scales;  /* [rows], or [rows, segments] of fixed point */
} oq_activations;

/* Bytes a layer takes, a multiple of 64; OQ_INVALID_ARGUMENT where the spec makes no sense. */
oq_code oq_qlinear_bytes(oq_context *context, const oq_qlinear_spec *spec, size_t *bytes);

/* memory [oq_qlinear_bytes], 64-byte aligned, is filled and stays the caller's, alive as long as *linear is used.
 * Errors name the row and group of a code, scale or zero point that cannot be. */
oq_code oq_qlinear_pack(oq_context *context, const oq_qlinear_spec *spec, const oq_qlinear_source *source,
                        void *memory, oq_qlinear *linear);

/* Use the kernel of this name ("reference", "avx2", "avx512_vnni", "onednn"; NULL: the best for this processor, or
 * what the environment's OMNIQUANT_KERNEL names). OQ_UNSUPPORTED where it cannot run. */
oq_code oq_qlinear_use(oq_context *context, oq_qlinear *linear, const char *kernel);
const char *oq_qlinear_kernel(const oq_qlinear *linear);
/* The names of the kernels that run here, best first; NULL beyond the last. */
const char *oq_kernel_name(int index);

/* y [rows, out]. Takes scratch memory from the arena and gives it back. OQ_NOT_FINITE names a NaN or infinity of
 * x by row and column. */
oq_code oq_qlinear_run(oq_context *context, const oq_qlinear *linear, const float *x, int64_t rows, float *y);

/* x [rows, in] as the integers `linear` wants, in the arena until the caller rewinds it. */
oq_code oq_qlinear_quantize(oq_context *context, const oq_qlinear *linear, const float *x, int64_t rows,
                            oq_activations *activations);
oq_code oq_qlinear_apply(oq_context *context, const oq_qlinear *linear, const oq_activations *activations,
                         float *y);
/* Whether activations made for one layer serve the other: same inputs, group, bits and activation quantizer. */
bool oq_qlinear_shares(const oq_qlinear *a, const oq_qlinear *b);

#endif
