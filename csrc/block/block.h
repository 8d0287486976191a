/* One transformer block, described by a spec: forward and backward.
 *
 *   h1 = norm1(x) [A1^-1]     q, k, v = h1 W^T + b     rope(q), rope(k)
 *   x2 = x + attention(q, k, v) Wo^T + bo
 *   h2 = norm2(x2) [A2^-1]    u = act(h2 Wg^T) * (h2 Wu^T)   (plain: act(h2 Wu^T))
 *   y  = x2 + u Wd^T + bd
 *
 * A parallel block's MLP reads x in place of x2 (y stays the sum of all three), and may share norm1.  There may be
 * norms of every head of q and k before RoPE, and of what Wo and Wd give.
 *
 * Instead of the MLP there may be experts: block/experts.h.
 *
 * Online rotations stand where block/rotation.h says, in a network made with them.
 * Every linear's input, and q, k, v, pass their quantizer on the way.
 * T tokens, H hidden, F ffn, n heads, m key/value heads, d head_dim. */
#ifndef OQ_BLOCK_BLOCK_H
#define OQ_BLOCK_BLOCK_H

#include "base/context.h"
#include "math/activation.h"
#include "math/norm.h"
#include "math/rope.h"
#include "math/scores.h"
#include "quant/forms.h"
#include "quant/quantizer.h"

typedef enum {
    OQ_SEQUENTIAL, /* the MLP reads norm2(x + attention) */
    OQ_PARALLEL,   /* the MLP reads norm2(x) */
    OQ_SHARED      /* the MLP reads norm1(x), as q, k and v do */
} oq_residual;

/* A mixture of experts (Shazeer et al. 2017) in place of the MLP: softmax of the router's logits, the likeliest
 * `used` of `count` MLPs of F a token, their outputs weighed by those probabilities.  The experts' matrices are
 * stacked by rows: gate and up [E F, H], down [E H, F].  Beside them there may be an MLP all tokens take, weighed by
 * the sigmoid of a router of its own (Qwen2-MoE). */
typedef struct {
    int64_t count, used; /* count 0: one MLP, no router */
    bool normalized;     /* the probabilities of those used sum to 1 */
    int64_t shared_ffn;  /* 0: none */
} oq_experts;

typedef struct {
    int64_t hidden, ffn, heads, kv_heads, head_dim;
    oq_norm_kind norm;
    double norm_eps;
    bool rope, gated;
    oq_activation activation;
    int64_t rotary_dim; /* of each head; 0: all */
    oq_residual residual;
    bool head_norms, post_norms;
    oq_score_rule scores;
    bool rotate_qk, rotate_heads, rotate_down; /* see block/rotation.h */
    oq_experts experts;
} oq_block_spec;

/* Linears of a block, in the order of the forward pass.  Routers stay in float, and so does what they read. */
enum {
    OQ_Q,
    OQ_K,
    OQ_V,
    OQ_O,
    OQ_GATE,
    OQ_UP,
    OQ_DOWN,
    OQ_ROUTER,
    OQ_SHARED_GATE,
    OQ_SHARED_UP,
    OQ_SHARED_DOWN,
    OQ_SHARED_ROUTER,
    OQ_LINEARS
};
/* Those in front of linears, which maps stand behind; then those behind linears. */
enum { OQ_NORM1, OQ_NORM2, OQ_INPUT_NORMS, OQ_POST1 = OQ_INPUT_NORMS, OQ_POST2, OQ_NORM_Q, OQ_NORM_K, OQ_NORMS };
/* What linears read: the norms' output, that of attention, that of the MLP's activation. */
enum { OQ_INPUT_NORM1, OQ_INPUT_O, OQ_INPUT_NORM2, OQ_INPUT_DOWN, OQ_INPUTS };

/* "q", "k", ... and "norm1", "post1", "q_norm", ...: the names Python uses. */
extern const char *const oq_linear_names[OQ_LINEARS];
extern const char *const oq_norm_names[OQ_NORMS];
extern const char *const oq_input_names[OQ_INPUTS]; /* "norm1", "o", "norm2", "down" */

typedef struct {
    int64_t out, in;
} oq_linear_shape;

bool oq_has_linear(const oq_block_spec *spec, int linear);
static inline bool oq_is_router(int linear) { return linear == OQ_ROUTER || linear == OQ_SHARED_ROUTER; }
/* Whether it holds a matrix of every expert, one's rows under another's. */
static inline bool oq_is_stacked(const oq_block_spec *spec, int linear)
{
    return spec->experts.count && (linear == OQ_GATE || linear == OQ_UP || linear == OQ_DOWN);
}
oq_linear_shape oq_shape_of(const oq_block_spec *spec, int linear);
bool oq_has_norm(const oq_block_spec *spec, int norm);
int64_t oq_norm_width(const oq_block_spec *spec, int norm);
/* The norm whose output the MLP reads. */
int oq_mlp_norm(const oq_block_spec *spec);
int oq_input_of(const oq_block_spec *spec, int linear);
int64_t oq_rotary_dim(const oq_block_spec *spec);
oq_code oq_check_spec(oq_context *context, const oq_block_spec *spec);

/* Borrowed tensors: weights [out, in], biases [out] or NULL, gains and norm biases [width], and the online map's
 * inverse [H, H] or NULL; an input's Kronecker map, its factors' inverses, and its quantizer's clipping logits [2]
 * (max, min), or NULL. Forms hold what faster products take beside the weight itself, which may then be missing. */
typedef struct {
    const oq_real *weight[OQ_LINEARS], *bias[OQ_LINEARS];
    oq_forms forms[OQ_LINEARS];
    const oq_real *gain[OQ_NORMS], *norm_bias[OQ_NORMS], *map_inverse[OQ_INPUT_NORMS];
    const oq_real *left[OQ_INPUTS], *right[OQ_INPUTS], *clip[OQ_INPUTS];
} oq_block_weights;

/* Takes gradients of weights in passing, dw [count, in] of rows from `first` on: they are not kept. */
typedef struct {
    oq_code (*take)(oq_context *context, void *user, int linear, int64_t first, int64_t count, const oq_real *dw);
    void *user;
    bool of[OQ_LINEARS]; /* the linears whose it takes */
} oq_weight_taker;

/* Gradients of the same, norms behind linears being constants; what is NULL is not wanted, unless it is a weight's that
 * is taken. All are added to, but weights' are overwritten if fresh, and x's always. */
typedef struct {
    bool fresh;
    oq_weight_taker taker;
    oq_real *x; /* [T, H] */
    oq_real *weight[OQ_LINEARS], *bias[OQ_LINEARS];
    oq_real *gain[OQ_INPUT_NORMS], *norm_bias[OQ_INPUT_NORMS], *map_inverse[OQ_INPUT_NORMS];
    oq_real *left[OQ_INPUTS], *right[OQ_INPUTS], *clip[OQ_INPUTS];
} oq_block_gradients;

/* What a linear's weights are rounded to; bits 0: not told. */
typedef struct {
    oq_quantizer quantizer;
    int64_t group_size; /* 0: one group a row */
} oq_scheme;
typedef struct {
    oq_scheme of[OQ_LINEARS];
} oq_schemes;

/* Quantizers of activations: x for every linear's input; 16 bits and more: none. */
typedef struct {
    oq_quantizer x, q, k, v;
    int64_t sink_tokens; /* keys and values of a text's first tokens, which draw attention, stay in float */
} oq_activation_quantizers;

/* Nothing rounded. */
extern const oq_activation_quantizers oq_in_float;

typedef struct {
    const oq_block_spec *spec;
    const oq_activation_quantizers *quantizers;
    oq_rope rope;
    int64_t tokens;         /* of one window */
    const int32_t *lengths; /* [texts] of texts in a window that do not see each other, or NULL; forward alone */
    const int32_t *shared;  /* [texts] how many tokens of the last text that shares none (0) stand before a text, or
                               NULL: none */
    int64_t texts;
    bool bf16;              /* keep the inputs of linears in bfloat16, for weights that have that form too */
    bool integer;           /* keep codes of quantized activations, for weights that have codes too */
    bool maps;              /* keep what enters the Kronecker maps, for weights that have some */
} oq_block_run;

/* The texts of a window: one, or as many as there are lengths. */
static inline int64_t oq_texts(const oq_block_run *run) { return run->lengths ? run->texts : 1; }
static inline int64_t oq_text_length(const oq_block_run *run, int64_t i)
{
    return run->lengths ? run->lengths[i] : run->tokens;
}
static inline int64_t oq_text_shared(const oq_block_run *run, int64_t i) { return run->shared ? run->shared[i] : 0; }

/* What the forward pass keeps for the backward pass.  A quantized twin is the very same pointer where its
 * quantizer is off; the input of a linear has the forms its products take. */
typedef struct {
    const oq_real *x;                           /* [T, H] */
    oq_norm_stats *stats[OQ_NORMS];             /* [T], of heads [T n] and [T m] */
    oq_real *raw[OQ_NORMS];                     /* what a norm behind a linear reads */
    oq_real *normed[OQ_INPUT_NORMS];            /* [T, H] before an online map */
    oq_real *h[OQ_INPUT_NORMS];                 /* [T, H] */
    oq_real *q, *k, *v, *q_hat, *k_hat, *v_hat; /* [T, n d] or [T, m d], after RoPE */
    oq_real *attended, *mixed, *o_in;           /* [T, n d]; behind the heads' rotation; behind the map */
    oq_real *log_sum;                           /* [n, T] */
    oq_real *x2;                                /* [T, H] */
    oq_real *gate, *up;                         /* [T, F]; plain: gate is NULL */
    oq_real *activated, *u, *down_in;           /* [T, F]; behind the rotation; behind the map */
    oq_forms h_hat[OQ_INPUT_NORMS], attended_hat, u_hat;
    oq_range *h_ranges[OQ_INPUT_NORMS], *q_ranges, *k_ranges, *v_ranges, *attended_ranges, *u_ranges;
    struct oq_saved_experts *experts; /* in place of gate to u_ranges */
} oq_saved;

/* Whether some input passes a Kronecker map: what a run has to know. */
bool oq_has_maps(const oq_block_weights *weights);
/* Allocate what a run keeps from the context's arena. */
oq_code oq_saved_create(oq_context *context, const oq_block_run *run, oq_saved *saved);
/* y [T, H] = block(x [T, H]); y may be x. */
oq_code oq_block_forward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                         const oq_real *x, oq_saved *saved, oq_real *y);
/* The same for windows x [N, T, H], with its own scratch memory; the caller may stop it between windows. */
oq_code oq_block_forward_windows(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                                 const oq_real *x, oq_real *y, int64_t samples);
/* From dy [T, H], the gradients. */
oq_code oq_block_backward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                          const oq_saved *saved, const oq_real *dy, const oq_block_gradients *gradients);

#endif
