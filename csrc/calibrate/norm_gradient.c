#include "calibrate/norm_gradient.h"

#include "base/parallel.h"
#include "base/size.h"
#include "math/bf16.h"

enum { STRIP = 64 }; /* columns at a time */

typedef struct {
    const oq_transformed *t;
    int site;
    double *with_dw, *with_db; /* [H] sum_n W^_ni dW_ni, sum_n W^_ni db_n; the second may be NULL */
} job;

static bool reads(const oq_transformed *t, int site, int linear)
{
    return oq_has_linear(t->spec, linear) && oq_sites_of(t->spec, linear).columns == site;
}

bool oq_norm_learns_by_weights(const oq_transformed *t, int norm)
{
    const int site = oq_site_of_norm(norm);
    const oq_residual residual = t->spec->residual;
    const bool reads_x = norm == OQ_NORM1 || residual == OQ_PARALLEL; /* and not what attention gave */
    const bool has_mlp = norm == OQ_NORM2 || residual == OQ_SHARED;
    if (t->map[site].kind != OQ_MAP_DIAGONAL || !reads_x || oq_is_quantized(t->options->activation.x)) return false;
    if (t->options->map[OQ_SITE_FACTORS] != OQ_MAP_NONE || (has_mlp && t->spec->experts.count)) return false;
    for (int i = 0; i < OQ_LINEARS; i++)
        if (reads(t, site, i) && (!t->dweight[i] || (t->list->shift[site] >= 0 && !t->dbias[i]))) return false;
    return true;
}

/* Some columns of W^, a row. */
static const oq_real *columns_of(const oq_forms *forms, const oq_real *w, int64_t at, int64_t count, oq_real *room)
{
    if (!forms->half) return w + at;
    for (int64_t i = 0; i < count; i++) room[i] = oq_float_of_bf16(forms->half[at + i]);
    return room;
}

static void one_strip(void *user, int64_t item, int worker)
{
    const job *j = user;
    const oq_transformed *t = j->t;
    const oq_block_weights weights = oq_transformed_weights(t);
    const int64_t H = t->spec->hidden, first = item * STRIP, count = oq_least(STRIP, H - first);
    oq_real room[STRIP];
    (void)worker;
    for (int linear = 0; linear < OQ_LINEARS; linear++) {
        if (!reads(t, j->site, linear)) continue;
        for (int64_t n = 0; n < oq_shape_of(t->spec, linear).out; n++) {
            const int64_t at = n * H + first;
            const oq_real *w = columns_of(&weights.forms[linear], weights.weight[linear], at, count, room);
            const oq_real *dw = t->dweight[linear] + at;
            for (int64_t i = 0; i < count; i++) j->with_dw[first + i] += (double)w[i] * (double)dw[i];
            if (!j->with_db) continue;
            const double db = (double)t->dbias[linear][n];
            for (int64_t i = 0; i < count; i++) j->with_db[first + i] += (double)w[i] * db;
        }
    }
}

oq_code oq_norm_backward_by_weights(oq_context *context, oq_transformed *t, oq_real *dtheta, int norm)
{
    const int site = oq_site_of_norm(norm);
    const int64_t H = t->spec->hidden;
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_map *map = &t->map[site];
    oq_real *dshift = oq_part(t->list, t->list->shift[site], dtheta);
    job j = {t, site, NULL, NULL};
    OQ_NEW_ZERO(context, j.with_dw, H);
    if (dshift) OQ_NEW_ZERO(context, j.with_db, H);
    oq_parallel_for(context->threads, oq_pieces(H, STRIP), one_strip, &j);
    /* h = (g x^ + b - delta) / s, so dh h summed up is d(1/s) times 1/s. */
    for (int64_t i = 0; i < H; i++) {
        map->dinverse[i] += (oq_real)(j.with_dw[i] / (double)map->inverse[i]);
        if (dshift) dshift[i] -= (oq_real)(j.with_db[i] * (double)map->inverse[i]);
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
