#include "block/routing.h"

#include <string.h>

oq_code oq_routing_create(oq_context *context, const oq_experts *experts, int64_t tokens, oq_routing *routing)
{
    const int64_t rows = tokens * experts->used;
    OQ_NEW(context, routing->probability, tokens * experts->count);
    OQ_NEW(context, routing->share, rows);
    OQ_NEW(context, routing->token, rows);
    OQ_NEW(context, routing->row, rows);
    OQ_NEW(context, routing->begin, experts->count + 1);
    return OQ_OK;
}

static void softmax(oq_real *x, int64_t count)
{
    oq_real most = x[0];
    double sum = 0;
    for (int64_t i = 1; i < count; i++) most = oq_max(x[i], most);
    for (int64_t i = 0; i < count; i++) sum += exp((double)(x[i] - most));
    for (int64_t i = 0; i < count; i++) x[i] = (oq_real)(exp((double)(x[i] - most)) / sum);
}

/* taken [E] = 1 for the likeliest `used`. */
static void choose(const oq_experts *experts, const oq_real *probability, uint8_t *taken)
{
    memset(taken, 0, (size_t)experts->count);
    for (int64_t k = 0; k < experts->used; k++) {
        int64_t best = -1;
        for (int64_t e = 0; e < experts->count; e++)
            if (!taken[e] && (best < 0 || probability[e] > probability[best])) best = e;
        taken[best] = 1;
    }
}

/* Rows in order of experts: first how many each has, then where each token's go. */
static void place(const oq_experts *experts, int64_t tokens, const uint8_t *taken, const oq_routing *r, int64_t *next)
{
    const int64_t E = experts->count, used = experts->used;
    memset(r->begin, 0, sizeof *r->begin * (size_t)(E + 1));
    for (int64_t i = 0; i < tokens * E; i++) r->begin[i % E + 1] += taken[i];
    for (int64_t e = 0; e < E; e++) r->begin[e + 1] += r->begin[e];
    memcpy(next, r->begin, sizeof *next * (size_t)E);
    for (int64_t t = 0; t < tokens; t++) {
        const oq_real *p = r->probability + t * E;
        double sum = 0;
        for (int64_t e = 0; e < E; e++) sum += taken[t * E + e] ? (double)p[e] : 0;
        for (int64_t e = 0, k = 0; e < E; e++) {
            if (!taken[t * E + e]) continue;
            const int64_t row = next[e]++;
            r->token[row] = t;
            r->row[t * used + k++] = row;
            r->share[row] = experts->normalized ? (oq_real)((double)p[e] / sum) : p[e];
        }
    }
}

oq_code oq_route(oq_context *context, const oq_experts *experts, int64_t tokens, const oq_routing *routing)
{
    const int64_t E = experts->count;
    const oq_mark mark = oq_arena_mark(context->arena);
    uint8_t *taken;
    int64_t *next;
    OQ_NEW(context, taken, tokens * E);
    OQ_NEW(context, next, E);
    for (int64_t t = 0; t < tokens; t++) {
        softmax(routing->probability + t * E, E);
        choose(experts, routing->probability + t * E, taken + t * E);
    }
    place(experts, tokens, taken, routing, next);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* The expert whose rows hold this one. */
static int64_t expert_of(const oq_experts *experts, const oq_routing *routing, int64_t row)
{
    int64_t e = 0;
    while (e + 1 < experts->count && routing->begin[e + 1] <= row) e++;
    return e;
}

void oq_route_backward(const oq_experts *experts, int64_t tokens, const oq_routing *routing, const oq_real *dshare,
                       oq_real *dlogits)
{
    const int64_t E = experts->count, used = experts->used;
    for (int64_t t = 0; t < tokens; t++) {
        const oq_real *p = routing->probability + t * E;
        const int64_t *rows = routing->row + t * used;
        oq_real *d = dlogits + t * E;
        double mean = 0;
        memset(d, 0, sizeof *d * (size_t)E);
        for (int64_t k = 0; k < used; k++) mean += (double)dshare[rows[k]] * (double)routing->share[rows[k]];
        /* Shares that sum to 1 are the softmax over those used alone. */
        for (int64_t k = 0; k < used; k++) {
            const double one = (double)dshare[rows[k]] - (experts->normalized ? mean : 0);
            d[expert_of(experts, routing, rows[k])] = (oq_real)((double)routing->share[rows[k]] * one);
        }
        for (int64_t e = 0; !experts->normalized && e < E; e++) d[e] -= (oq_real)(mean * (double)p[e]);
    }
}
