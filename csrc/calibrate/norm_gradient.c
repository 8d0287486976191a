#include "calibrate/norm_gradient.h"

#include "base/parallel.h"
#include "base/size.h"
#include "math/bf16.h"

enum { STRIP = 64 }; /* columns at a time */

/* sums [H] += over `count` rows of W^ of a linear: sum_n W^_ni dW_ni, or where dw is NULL sum_n W^_ni db_n. */
typedef struct {
    oq_forms forms; /* of W^, and its real form, from the first of those rows on */
    const oq_real *w;
    const oq_real *dw, *db;
    int64_t count, H;
    double *sums;
} job;

static bool reads(const oq_transformed *t, int site, int linear)
{
    return oq_has_linear(t->spec, linear) && oq_sites_of(t->spec, linear).columns == site;
}

static bool has_gradient(const oq_transformed *t, int linear) { return t->dweight[linear] || t->taken[linear]; }

bool oq_norm_learns_by_weights(const oq_transformed *t, int norm)
{
    const int site = oq_site_of_norm(norm);
    const oq_residual residual = t->spec->residual;
    const bool reads_x = norm == OQ_NORM1 || residual == OQ_PARALLEL; /* and not what attention gave */
    const bool has_mlp = norm == OQ_NORM2 || residual == OQ_SHARED;
    if (t->map[site].kind != OQ_MAP_DIAGONAL || !reads_x || oq_is_quantized(t->options->activation.x)) return false;
    if (t->options->map[OQ_SITE_FACTORS] != OQ_MAP_NONE || (has_mlp && t->spec->experts.count)) return false;
    for (int i = 0; i < OQ_LINEARS; i++)
        if (reads(t, site, i) && (!has_gradient(t, i) || (t->list->shift[site] >= 0 && !t->dbias[i]))) return false;
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
    const int64_t first = item * STRIP, count = oq_least(STRIP, j->H - first);
    oq_real room[STRIP];
    (void)worker;
    for (int64_t n = 0; n < j->count; n++) {
        const int64_t at = n * j->H + first;
        const oq_real *w = columns_of(&j->forms, j->w, at, count, room);
        if (j->dw)
            for (int64_t i = 0; i < count; i++) j->sums[first + i] += (double)w[i] * (double)j->dw[at + i];
        else
            for (int64_t i = 0; i < count; i++) j->sums[first + i] += (double)w[i] * (double)j->db[n];
    }
}

/* Of rows from `first` on; dw and db begin there. */
static void add_up(const oq_context *context, const oq_transformed *t, int linear, int64_t first, job j)
{
    const oq_block_weights weights = oq_transformed_weights(t);
    j.H = t->spec->hidden;
    j.forms = oq_forms_behind(&weights.forms[linear], first, j.H);
    j.w = OQ_AT(weights.weight[linear], first * j.H);
    oq_parallel_for(context->threads, oq_pieces(j.H, STRIP), one_strip, &j);
}

void oq_norm_take(const oq_context *context, const oq_transformed *t, int linear, int64_t first, int64_t count,
                  const oq_real *dw)
{
    for (int norm = 0; norm < OQ_INPUT_NORMS; norm++)
        if (t->by_weights[norm] && reads(t, oq_site_of_norm(norm), linear))
            add_up(context, t, linear, first, (job){.dw = dw, .count = count, .sums = t->along_weights[norm]});
}

oq_code oq_norm_backward_by_weights(oq_context *context, oq_transformed *t, oq_real *dtheta, int norm)
{
    const int site = oq_site_of_norm(norm);
    const int64_t H = t->spec->hidden;
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_map *map = &t->map[site];
    oq_real *dshift = oq_part(t->list, t->list->shift[site], dtheta);
    double *along_biases;
    OQ_NEW_ZERO(context, along_biases, H);
    for (int i = 0; i < OQ_LINEARS; i++) {
        if (!reads(t, site, i)) continue;
        const int64_t out = oq_shape_of(t->spec, i).out;
        if (t->dweight[i]) oq_norm_take(context, t, i, 0, out, t->dweight[i]);
        if (dshift) add_up(context, t, i, 0, (job){.db = t->dbias[i], .count = out, .sums = along_biases});
    }
    /* h = (g x^ + b - delta) / s, so dh h summed up is d(1/s) times 1/s. */
    for (int64_t i = 0; i < H; i++) {
        map->dinverse[i] += (oq_real)(t->along_weights[norm][i] / (double)map->inverse[i]);
        if (dshift) dshift[i] -= (oq_real)(along_biases[i] * (double)map->inverse[i]);
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
