#include "block/experts.h"

#include <string.h>

#include "block/act_quant.h"
#include "block/linear.h"
#include "quant/lwc.h"

/* ---- create --------------------------------------------------------------- */

static oq_code create_mlp(oq_context *context, const oq_block_run *run, int64_t rows, int64_t ffn, oq_saved_mlp *m)
{
    if (run->spec->gated) OQ_NEW(context, m->gate, rows * ffn);
    OQ_NEW(context, m->up, rows * ffn);
    OQ_TRY(oq_input_create(context, run, rows, ffn, &m->activated, &m->u_hat, &m->u_ranges));
    OQ_NEW(context, m->out, rows * run->spec->hidden);
    return OQ_OK;
}

/* Room for the forms of h_hat, and for h itself where it stays float. */
static oq_code create_gathered(oq_context *context, const oq_block_run *run, int64_t rows, oq_forms *forms)
{
    const int64_t H = run->spec->hidden;
    OQ_TRY(oq_forms_create(context, run, rows, H, forms));
    if (!oq_is_quantized(run->quantizers->x)) OQ_NEW(context, forms->real, rows * H);
    return OQ_OK;
}

oq_code oq_saved_experts_create(oq_context *context, const oq_block_run *run, oq_saved_experts **saved)
{
    const oq_block_spec *spec = run->spec;
    const int64_t T = run->tokens, rows = T * spec->experts.used;
    OQ_NEW(context, *saved, 1);
    memset(*saved, 0, sizeof **saved);
    OQ_TRY(oq_routing_create(context, &spec->experts, T, &(*saved)->routing));
    OQ_TRY(create_gathered(context, run, rows, &(*saved)->gathered));
    OQ_TRY(create_mlp(context, run, rows, spec->ffn, &(*saved)->routed));
    if (!spec->experts.shared_ffn) return OQ_OK;
    OQ_NEW(context, (*saved)->open, T);
    return create_mlp(context, run, T, spec->experts.shared_ffn, &(*saved)->shared);
}

/* ---- forward -------------------------------------------------------------- */

/* to [rows, width] = the tokens' rows of from, size bytes a row. */
static void gather(const oq_routing *r, int64_t rows, const void *from, void *to, size_t size)
{
    for (int64_t i = 0; to && i < rows; i++)
        memcpy((char *)to + (size_t)i * size, (const char *)from + (size_t)r->token[i] * size, size);
}

static void gather_forms(const oq_routing *r, int64_t rows, int64_t width, const oq_forms *from, const oq_forms *to)
{
    const size_t count = (size_t)width;
    gather(r, rows, from->real, to->real, count * sizeof *to->real);
    gather(r, rows, from->half, to->half, count * sizeof *to->half);
    gather(r, rows, from->codes, to->codes, count);
    gather(r, rows, from->scale, to->scale, sizeof *to->scale);
    gather(r, rows, from->zero, to->zero, sizeof *to->zero);
}

/* y [R, out] of x [R, in]: each expert's rows by its own part of the weight. */
static oq_code each_forward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights, int which,
                            const oq_routing *r, const oq_forms *x, oq_real *y)
{
    for (int64_t e = 0; e < run->spec->experts.count; e++) {
        const oq_linear_rows rows = oq_rows_of_expert(run->spec, which, e);
        const oq_forms part = oq_forms_behind(x, r->begin[e], rows.in);
        OQ_TRY(oq_rows_forward(context, weights, rows, &part, r->begin[e + 1] - r->begin[e],
                               y + r->begin[e] * rows.out));
    }
    return OQ_OK;
}

/* A linear of an MLP: of every expert where there is a routing, of the shared one where it is NULL. */
static oq_code one_forward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights, int which,
                           const oq_routing *r, const oq_forms *x, oq_real *y)
{
    if (r) return each_forward(context, run, weights, which, r, x, y);
    return oq_block_linear_forward(context, run, weights, which, x, y);
}

static oq_code mlp_forward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights, oq_mlp of,
                           const oq_routing *r, const oq_forms *x, int64_t rows, oq_saved_mlp *s)
{
    if (s->gate) OQ_TRY(one_forward(context, run, weights, of.gate, r, x, s->gate));
    OQ_TRY(one_forward(context, run, weights, of.up, r, x, s->up));
    oq_activation_forward(context, run->spec->activation, s->gate ? s->gate : s->up, s->gate ? s->up : NULL,
                          s->activated, rows * of.ffn);
    OQ_TRY(oq_input_forms(context, run->quantizers->x, weights->clip[OQ_INPUT_DOWN], s->activated, &s->u_hat,
                          s->u_ranges, rows, of.ffn));
    return one_forward(context, run, weights, of.down, r, &s->u_hat, s->out);
}

/* y [T, H] += weight [T] * x, or with rows [R, H] of tokens the same row by row, in their order. */
static void add_weighed(const oq_real *x, const oq_real *weight, const int64_t *token, int64_t rows, int64_t H,
                        oq_real *y)
{
    for (int64_t r = 0; r < rows; r++) {
        oq_real *to = y + (token ? token[r] : r) * H;
        for (int64_t i = 0; i < H; i++) to[i] += weight[r] * x[r * H + i];
    }
}

static oq_code shared_forward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                              const oq_forms *h, const oq_forms *h_hat, oq_saved_experts *s, oq_real *y)
{
    const int64_t T = run->tokens;
    if (!s->open) return OQ_OK;
    OQ_TRY(oq_block_linear_forward(context, run, weights, OQ_SHARED_ROUTER, h, s->open));
    for (int64_t t = 0; t < T; t++) s->open[t] = oq_sigmoid(s->open[t]);
    OQ_TRY(mlp_forward(context, run, weights, oq_shared_mlp(run->spec), NULL, h_hat, T, &s->shared));
    add_weighed(s->shared.out, s->open, NULL, T, run->spec->hidden, y);
    return OQ_OK;
}

oq_code oq_experts_forward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                           const oq_real *h, const oq_forms *h_hat, oq_saved_experts *s, oq_real *y)
{
    const oq_block_spec *spec = run->spec;
    const oq_routing *r = &s->routing;
    const int64_t T = run->tokens, H = spec->hidden, rows = T * spec->experts.used;
    const oq_forms floats = {.real = (oq_real *)h};
    s->h = h;
    OQ_TRY(oq_block_linear_forward(context, run, weights, OQ_ROUTER, &floats, r->probability));
    OQ_TRY(oq_route(context, &spec->experts, T, r));
    gather_forms(r, rows, H, h_hat, &s->gathered);
    OQ_TRY(mlp_forward(context, run, weights, oq_routed_mlp(spec), r, &s->gathered, rows, &s->routed));
    memset(y, 0, sizeof *y * (size_t)(T * H));
    add_weighed(s->routed.out, r->share, r->token, rows, H, y);
    return shared_forward(context, run, weights, &floats, h_hat, s, y);
}
