/* What a block's calibration is asked to do. */
#ifndef OQ_CALIBRATE_OPTIONS_H
#define OQ_CALIBRATE_OPTIONS_H

#include "block/block.h"
#include "calibrate/gptq.h"
#include "math/loss.h"
#include "quant/fake_quantize.h"
#include "quant/products.h"
#include "transform/map.h"

/* Where equivalent maps live: behind each norm, v -> o, q <-> k, up -> down; and the factors, left and right, of the
 * Kronecker maps on the inputs of linears, which are there for all inputs or for none. */
enum {
    OQ_SITE_NORM1,
    OQ_SITE_NORM2,
    OQ_SITE_VO,
    OQ_SITE_QK,
    OQ_SITE_UP_DOWN,
    OQ_SITE_FACTORS,
    OQ_SITES = OQ_SITE_FACTORS + 2 * OQ_INPUTS
};
static inline int oq_left_site(int input) { return OQ_SITE_FACTORS + 2 * input; }
static inline int oq_right_site(int input) { return OQ_SITE_FACTORS + 2 * input + 1; }
extern const char *const oq_site_names[OQ_SITES];

/* What to do with an affine map that would lose strict diagonal dominance. */
typedef enum {
    OQ_DOMINANCE_PROJECT, /* shrink the row's off-diagonals to the target margin */
    OQ_DOMINANCE_REJECT,  /* undo the step, halve the site's learning rate */
    OQ_DOMINANCE_RAISE,   /* stop with OQ_NOT_DOMINANT */
    OQ_DOMINANCE_MONITOR  /* report, repair nothing */
} oq_dominance_policy;

/* How weights come to their codes. */
typedef enum {
    OQ_ROUNDING_NEAREST,
    OQ_ROUNDING_GPTQ,   /* error feedback after the training (2210.17323) */
    OQ_ROUNDING_LEARNED /* an offset a weight inside the rounding, trained with the rest (SignRound, 2309.05516) */
} oq_rounding;

typedef struct {
    int64_t block; /* index, for messages and the order of samples */
    uint64_t seed;
    oq_quantizer weight;
    int64_t group_size; /* 0: one group a row */
    oq_schemes own;     /* of linears that differ from these two */
    oq_activation_quantizers activation;
    bool lwc;
    bool lac; /* learnable activation clipping */
    bool search; /* clipping and scales start at the best of a grid (AWQ), not at sigma(4) and SmoothQuant's */
    oq_rounding rounding;
    oq_gptq_options gptq;
    oq_map_kind map[OQ_SITES]; /* dense at a norm is the online map */
    bool shift;                /* only taken where producer and consumers carry bias slots */
    oq_parametrization parametrization;
    oq_dominance_policy dominance;
    double margin;    /* tau of the projection */
    double stability; /* alpha_s of the gradual mask */
    double alpha;     /* of SmoothQuant's initialisation */
    int64_t epochs, batch_size;
    int64_t patience; /* stop after so many epochs without progress; 0: never */
    double lr_lwc, lr_let;
    double lr_rounding; /* over the number of steps: what an offset moves a step, at 1 as far as it can go */
    bool cosine, shuffle, best_iterate;
    oq_loss_kind loss;
    bool without_sinks; /* sink tokens count nothing in it */
    oq_products products;
    bool byte_gradients; /* the backward products of quantized linears round the gradient to bytes */
} oq_options;

/* Sites whose map a linear feels: on its columns (from its input's side), on its rows; -1: none.
 * inverse: the rows take A^-T (q, v, up) instead of A (k). */
typedef struct {
    int columns, rows;
    bool inverse;
} oq_linear_sites;
oq_linear_sites oq_sites_of(const oq_block_spec *spec, int linear);
/* The site behind a norm that linears read. */
static inline int oq_site_of_norm(int norm) { return norm == OQ_NORM1 ? OQ_SITE_NORM1 : OQ_SITE_NORM2; }
/* Whether a linear's weight is quantized. */
bool oq_quantizes(const oq_options *options, int linear);
/* The map a site of this block takes: none behind a norm it does not have. */
oq_map_kind oq_map_at(const oq_block_spec *spec, const oq_options *options, int site);

/* Heads that share each block of the site's map on this linear (grouped-query attention). */
int64_t oq_repeat_of(const oq_block_spec *spec, int site, int linear);
/* Blocks and width of the site's map. */
oq_affine oq_site_geometry(const oq_block_spec *spec, int site);
bool oq_site_has_shift(const oq_block_spec *spec, const oq_options *options, const oq_block_weights *weights,
                       int site);
/* Whether any linear of the block has its weights rounded. */
bool oq_rounds_weights(const oq_block_spec *spec, const oq_options *options);

/* Everything that does not depend on a block's spec. */
oq_code oq_check_training(oq_context *context, const oq_options *options);
oq_code oq_check_options(oq_context *context, const oq_block_spec *spec, const oq_options *options);

/* What a linear's weights are rounded to: its own scheme, or that of all; routers stay in float. */
static inline oq_scheme oq_scheme_of(const oq_options *options, int linear)
{
    const oq_scheme own = options->own.of[linear];
    if (oq_is_router(linear)) return (oq_scheme){.quantizer = {.bits = 16}};
    return own.quantizer.bits ? own : (oq_scheme){options->weight, options->group_size};
}

#endif
