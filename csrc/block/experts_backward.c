#include <string.h>

#include "base/size.h"
#include "block/act_quant.h"
#include "block/experts.h"
#include "block/linear.h"

/* What every step of the backward pass needs; an MLP's own part of it is given beside it. */
typedef struct {
    const oq_block_run *run;
    const oq_block_weights *weights;
    const oq_block_gradients *gradients;
} pass;

/* dx [R, in] (+)= dy [R, out]: each expert's rows by its own part of the weight, forms of x as they were. */
static oq_code each_backward(oq_context *context, const pass *p, int which, const oq_routing *r, const oq_forms *x,
                             const oq_real *dy, oq_real *dx, bool accumulate)
{
    for (int64_t e = 0; e < p->run->spec->experts.count; e++) {
        const oq_linear_rows rows = oq_rows_of_expert(p->run->spec, which, e);
        const int64_t at = r->begin[e];
        const oq_forms part = oq_forms_behind(x, at, rows.in);
        OQ_TRY(oq_rows_backward(context, p->weights, p->gradients, rows, &part, dy + at * rows.out,
                                r->begin[e + 1] - at, OQ_AT(dx, at * rows.in), accumulate));
    }
    return OQ_OK;
}

static oq_code one_backward(oq_context *context, const pass *p, int which, const oq_routing *r, const oq_forms *x,
                            const oq_real *dy, oq_real *dx, bool accumulate)
{
    if (r) return each_backward(context, p, which, r, x, dy, dx, accumulate);
    return oq_block_linear_backward(context, p->run, p->weights, p->gradients, which, x, dy, dx, accumulate);
}

/* dx [rows, H] (+)= from dout [rows, H]; NULL: not wanted. */
static oq_code mlp_backward(oq_context *context, const pass *p, oq_mlp of, const oq_routing *r, const oq_forms *x,
                            int64_t rows, const oq_saved_mlp *s, const oq_real *dout, oq_real *dx, bool accumulate)
{
    const oq_activation act = p->run->spec->activation;
    const int64_t count = rows * of.ffn;
    oq_real *du, *dup;
    OQ_NEW(context, du, count);
    OQ_NEW(context, dup, s->gate ? count : 0);
    OQ_TRY(one_backward(context, p, of.down, r, &s->u_hat, dout, du, false));
    OQ_TRY(oq_act_quant_backward(context, p->run->quantizers->x, p->weights->clip[OQ_INPUT_DOWN], s->activated,
                                 s->u_ranges, du, p->gradients->clip[OQ_INPUT_DOWN], rows, of.ffn));
    if (!s->gate) {
        oq_activation_backward(context, act, s->up, NULL, du, du, NULL, count);
        return one_backward(context, p, of.up, r, x, du, dx, accumulate);
    }
    oq_activation_backward(context, act, s->gate, s->up, du, du, dup, count);
    OQ_TRY(one_backward(context, p, of.gate, r, x, du, dx, accumulate));
    return one_backward(context, p, of.up, r, x, dup, dx, true);
}

/* From y += weight [rows] out: dout [rows, H] = weight dy and dweight [rows] = dy out, dy by tokens. */
static void weighed_backward(const oq_real *dy, const oq_real *out, const oq_real *weight, const int64_t *token,
                             int64_t rows, int64_t H, oq_real *dout, oq_real *dweight)
{
    for (int64_t r = 0; r < rows; r++) {
        const oq_real *d = dy + (token ? token[r] : r) * H;
        double sum = 0;
        for (int64_t i = 0; i < H; i++) {
            dout[r * H + i] = weight[r] * d[i];
            sum += (double)d[i] * (double)out[r * H + i];
        }
        dweight[r] = (oq_real)sum;
    }
}

/* dh_hat and dh [T, H] = through the experts and through their router. */
static oq_code routed_backward(oq_context *context, const pass *p, const oq_saved_experts *s, const oq_real *dy,
                               oq_real *dh_hat, oq_real *dh)
{
    const oq_block_spec *spec = p->run->spec;
    const oq_routing *r = &s->routing;
    const int64_t T = p->run->tokens, H = spec->hidden, rows = T * spec->experts.used;
    const oq_forms floats = {.real = (oq_real *)s->h};
    oq_real *dout, *dshare, *dlogits, *dx = NULL;
    OQ_NEW(context, dout, rows * H);
    OQ_NEW(context, dshare, rows);
    OQ_NEW(context, dlogits, T * spec->experts.count);
    if (dh_hat) OQ_NEW(context, dx, rows * H);
    weighed_backward(dy, s->routed.out, r->share, r->token, rows, H, dout, dshare);
    OQ_TRY(mlp_backward(context, p, oq_routed_mlp(spec), r, &s->gathered, rows, &s->routed, dout, dx, false));
    oq_route_backward(&spec->experts, T, r, dshare, dlogits);
    if (dh_hat) {
        memset(dh_hat, 0, sizeof *dh_hat * (size_t)(T * H));
        for (int64_t i = 0; i < rows; i++)
            for (int64_t c = 0; c < H; c++) dh_hat[r->token[i] * H + c] += dx[i * H + c];
    }
    return oq_block_linear_backward(context, p->run, p->weights, p->gradients, OQ_ROUTER, &floats, dlogits, dh, false);
}

/* dh_hat and dh [T, H] += through the shared MLP and its router. */
static oq_code shared_backward(oq_context *context, const pass *p, const oq_saved_experts *s, const oq_forms *h_hat,
                               const oq_real *dy, oq_real *dh_hat, oq_real *dh)
{
    const int64_t T = p->run->tokens, H = p->run->spec->hidden;
    const oq_forms floats = {.real = (oq_real *)s->h};
    oq_real *dout, *dopen;
    OQ_NEW(context, dout, T * H);
    OQ_NEW(context, dopen, T);
    weighed_backward(dy, s->shared.out, s->open, NULL, T, H, dout, dopen);
    OQ_TRY(mlp_backward(context, p, oq_shared_mlp(p->run->spec), NULL, h_hat, T, &s->shared, dout, dh_hat, true));
    for (int64_t t = 0; t < T; t++) dopen[t] *= s->open[t] * (1 - s->open[t]);
    return oq_block_linear_backward(context, p->run, p->weights, p->gradients, OQ_SHARED_ROUTER, &floats, dopen, dh,
                                    true);
}

oq_code oq_experts_backward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                            const oq_block_gradients *gradients, const oq_saved_experts *s, const oq_forms *h_hat,
                            const oq_real *dy, oq_real *dh_hat, oq_real *dh)
{
    const pass p = {run, weights, gradients};
    const oq_mark mark = oq_arena_mark(context->arena);
    OQ_TRY(routed_backward(context, &p, s, dy, dh_hat, dh));
    if (s->open) OQ_TRY(shared_backward(context, &p, s, h_hat, dy, dh_hat, dh));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
