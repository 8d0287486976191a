#include "calibrate/guard.h"

#include <string.h>

#include "math/inverse.h"
#include "transform/dominance.h"

typedef struct {
    oq_dominance weakest;
    int64_t head;
} map_dominance;

oq_code oq_guard_create(oq_context *context, oq_guard *guard, const oq_guarded *t)
{
    memset(guard, 0, sizeof *guard);
    guard->report.min_margin = INFINITY;
    guard->report.worst_map = -1;
    for (int which = 0; which < t->count; which++)
        if (t->maps[which].kind == OQ_MAP_DENSE) guard->report.any_affine = true;
    if (t->options->dominance != OQ_DOMINANCE_REJECT) return OQ_OK;
    OQ_NEW(context, guard->theta, t->list->adaptive);
    OQ_NEW(context, guard->m, t->list->adaptive);
    OQ_NEW(context, guard->v, t->list->adaptive);
    return OQ_OK;
}

void oq_guard_remember(oq_guard *guard, const oq_guarded *t, const oq_adamw *adamw, const oq_real *theta)
{
    if (!guard->theta) return;
    const size_t bytes = sizeof *theta * (size_t)t->list->adaptive;
    memcpy(guard->theta, theta, bytes);
    memcpy(guard->m, adamw->m, bytes);
    memcpy(guard->v, adamw->v, bytes);
}

/* Put one map's learnables back as they were and halve their learning rate. */
static void undo(const oq_guard *guard, const oq_guarded *t, oq_adamw *adamw, oq_real *theta, int which)
{
    const int entry = t->entry[which];
    const oq_learnable *e = &t->list->entry[entry];
    const size_t bytes = sizeof *theta * (size_t)e->count;
    memcpy(theta + e->offset, guard->theta + e->offset, bytes);
    memcpy(adamw->m + e->offset, guard->m + e->offset, bytes);
    memcpy(adamw->v + e->offset, guard->v + e->offset, bytes);
    adamw->lr_factor[entry] *= 0.5;
}

/* The weakest row of a map's blocks, from map->exact. */
static map_dominance weakest_of(const oq_map *map)
{
    const int64_t n = map->affine.width;
    map_dominance worst = {.weakest = {.margin = INFINITY, .row = -1}};
    for (int64_t b = 0; b < map->affine.blocks; b++) {
        const oq_dominance found = oq_weakest_row(map->exact + b * n * n, n);
        if (worst.weakest.row < 0 || !(found.margin >= worst.weakest.margin))
            worst = (map_dominance){.weakest = found, .head = b};
    }
    return worst;
}

static void note(oq_dominance_report *report, int which, map_dominance found)
{
    if (found.weakest.margin >= report->min_margin) return;
    report->min_margin = found.weakest.margin;
    report->worst_map = which;
    report->worst_head = found.head;
    report->worst_row = found.weakest.row;
}

static oq_code not_dominant(oq_context *context, const oq_guarded *t, int which, map_dominance found,
                            const char *when)
{
    const oq_dominance d = found.weakest;
    return oq_fail(context, OQ_NOT_DOMINANT,
                   "%s %s map head %lld row %lld: |diagonal| %.6g <= off-diagonal sum %.6g %s", t->where,
                   t->names[which], (long long)found.head, (long long)d.row, d.diagonal, d.diagonal - d.margin,
                   when);
}

static oq_code check_map(oq_context *context, oq_guard *guard, const oq_guarded *t, oq_adamw *adamw,
                         oq_real *theta, int which)
{
    oq_map *map = &t->maps[which];
    oq_real *parameters = oq_part(t->list, t->entry[which], theta);
    const oq_dominance_policy policy = t->options->dominance;
    if (policy == OQ_DOMINANCE_PROJECT)
        guard->report.rows_projected += oq_affine_project(&map->affine, parameters, t->options->margin);
    oq_affine_forward(&map->affine, parameters, map->exact);
    map_dominance found = weakest_of(map);
    if (policy == OQ_DOMINANCE_REJECT && !(found.weakest.margin > 0)) {
        undo(guard, t, adamw, theta, which);
        guard->report.steps_rejected++;
        oq_affine_forward(&map->affine, parameters, map->exact);
        found = weakest_of(map);
    }
    note(&guard->report, which, found);
    if (policy == OQ_DOMINANCE_MONITOR || found.weakest.margin > 0) return OQ_OK;
    return not_dominant(context, t, which, found, "after a step");
}

oq_code oq_guard_after_step(oq_context *context, oq_guard *guard, const oq_guarded *t, oq_adamw *adamw,
                            oq_real *theta, int64_t epoch, int64_t step)
{
    for (int which = 0; which < t->count; which++) {
        oq_map *map = &t->maps[which];
        if (map->kind == OQ_MAP_NONE) continue;
        const oq_learnable *e = &t->list->entry[t->entry[which]];
        const oq_real *parameters = theta + e->offset;
        for (int64_t i = 0; i < e->count; i++)
            if (!isfinite((double)parameters[i]))
                return oq_fail(context, OQ_NOT_FINITE, "%s epoch %lld step %lld: %s is not finite", t->where,
                               (long long)epoch, (long long)step, e->name);
        oq_map_floor(map, theta + e->offset);
        if (map->kind == OQ_MAP_DENSE) OQ_TRY(check_map(context, guard, t, adamw, theta, which));
    }
    return OQ_OK;
}

oq_code oq_guard_before_fold(oq_context *context, oq_guard *guard, const oq_guarded *t, double *max_condition,
                             double *varah_bound)
{
    double condition = 0, bound = 0;
    *max_condition = *varah_bound = 0;
    for (int which = 0; which < t->count; which++) {
        const oq_map *map = &t->maps[which];
        if (map->kind != OQ_MAP_DENSE) continue;
        const int64_t n = map->affine.width;
        const map_dominance found = weakest_of(map);
        note(&guard->report, which, found);
        if (!(found.weakest.margin > 0) && t->options->dominance != OQ_DOMINANCE_MONITOR)
            return not_dominant(context, t, which, found, "before folding");
        /* Both figures of a Kronecker product are the products of its factors'. */
        const bool right = which >= t->factors && (which - t->factors) % 2;
        const double condition_left = right ? condition : 1, bound_left = right ? bound : 1;
        condition = 0;
        for (int64_t b = 0; b < map->affine.blocks; b++)
            condition =
                fmax(condition, oq_condition_inf(map->exact + b * n * n, map->exact_inverse + b * n * n, n));
        condition *= condition_left;
        bound = bound_left * oq_varah_bound(found.weakest.margin);
        *varah_bound = fmax(*varah_bound, bound);
        *max_condition = fmax(*max_condition, condition);
    }
    if (*max_condition <= 1e12) return OQ_OK;
    return oq_fail(context, OQ_SINGULAR, "%s: condition number %.3g of an affine map is beyond 1e12", t->where,
                   *max_condition);
}
