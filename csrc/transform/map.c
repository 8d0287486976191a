#include "transform/map.h"

#include <string.h>

#include "math/inverse.h"
#include "transform/let.h"

int64_t oq_map_parameter_count(oq_map_kind kind, int64_t blocks, int64_t width)
{
    switch (kind) {
    case OQ_MAP_NONE: return 0;
    case OQ_MAP_DIAGONAL: return blocks * width;
    case OQ_MAP_TIED: return blocks * (width / 2);
    case OQ_MAP_ROTATION: return 2 * blocks * (width / 2);
    case OQ_MAP_DENSE: break;
    }
    return blocks * width * width;
}

/* The channels of pair p of a block: *first and what is returned. */
static int64_t pair_of(const oq_affine *affine, int64_t p, int64_t *first)
{
    const int64_t rotated = affine->rotary / 2, half = affine->width / 2;
    *first = p < rotated ? p : p + rotated;
    return *first + (p < rotated ? rotated : half - rotated);
}

/* The pair of channel c of a block. */
static int64_t pair_with(const oq_affine *affine, int64_t c)
{
    const int64_t r = affine->rotary, rest = affine->width - r;
    return c < r ? c % (r / 2) : r / 2 + (c - r) % (rest / 2);
}

static int64_t stored_count(const oq_map *map)
{
    return map->affine.blocks * map->affine.width * (map->square ? map->affine.width : 1);
}

oq_code oq_map_create(oq_context *context, oq_map *map, oq_map_kind kind, oq_affine affine, bool pivot)
{
    *map = (oq_map){
        .kind = kind, .affine = affine, .pivot = pivot, .square = kind == OQ_MAP_ROTATION || kind == OQ_MAP_DENSE};
    if (kind == OQ_MAP_NONE) return OQ_OK;
    const int64_t count = stored_count(map);
    OQ_NEW(context, map->a, count);
    OQ_NEW(context, map->inverse, count);
    OQ_NEW(context, map->da, count);
    OQ_NEW(context, map->dinverse, count);
    if (!map->square) return OQ_OK;
    OQ_NEW(context, map->exact, count);
    OQ_NEW(context, map->exact_inverse, count);
    return OQ_OK;
}

void oq_map_from_diagonal(const oq_map *map, const oq_real *s, oq_real *parameters)
{
    const int64_t n = map->affine.width, half = n / 2;
    memset(parameters, 0, sizeof *parameters * (size_t)oq_map_parameter_count(map->kind, map->affine.blocks, n));
    for (int64_t b = 0; b < map->affine.blocks; b++)
        for (int64_t i = 0; i < n; i++) {
            const oq_real value = s ? s[b * n + i] : 1;
            if (map->kind == OQ_MAP_DIAGONAL) parameters[b * n + i] = value;
            if (map->kind == OQ_MAP_DENSE) parameters[(b * n + i) * n + i] = value;
        }
    if (map->kind != OQ_MAP_TIED && map->kind != OQ_MAP_ROTATION) return;
    for (int64_t p = 0; p < map->affine.blocks * half; p++) {
        int64_t first;
        const int64_t second = pair_of(&map->affine, p % half, &first), base = p / half * n;
        parameters[p] = s ? oq_sqrt(s[base + first] * s[base + second]) : 1;
    }
}

void oq_map_identity(const oq_map *map, oq_real *parameters) { oq_map_from_diagonal(map, NULL, parameters); }

/* ---- parameters -> A, A^-1 ---------------------------------------------- */

static void diagonal_forward(oq_map *map, const oq_real *parameters)
{
    const int64_t n = map->affine.width, half = n / 2;
    for (int64_t i = 0; i < map->affine.blocks * n; i++) {
        const int64_t from = map->kind == OQ_MAP_TIED ? i / n * half + pair_with(&map->affine, i % n) : i;
        map->a[i] = parameters[from];
        map->inverse[i] = 1 / parameters[from];
    }
}

static void diagonal_backward(const oq_map *map, oq_real *dparameters)
{
    const int64_t n = map->affine.width, half = n / 2;
    for (int64_t i = 0; i < map->affine.blocks * n; i++) {
        const int64_t to = map->kind == OQ_MAP_TIED ? i / n * half + pair_with(&map->affine, i % n) : i;
        dparameters[to] += map->da[i] - map->dinverse[i] * map->inverse[i] * map->inverse[i];
    }
}

/* The 2x2 block of pair i: A = [[a, -b], [b, a]], A^-1 = [[a, b], [-b, a]] / (a^2 + b^2). */
static void rotation_forward(oq_map *map, const oq_real *parameters)
{
    const int64_t n = map->affine.width, half = n / 2, pairs = map->affine.blocks * half;
    memset(map->exact, 0, sizeof *map->exact * (size_t)stored_count(map));
    memset(map->exact_inverse, 0, sizeof *map->exact_inverse * (size_t)stored_count(map));
    for (int64_t p = 0; p < pairs; p++) {
        const double a = (double)parameters[p], b = (double)parameters[pairs + p], det = a * a + b * b;
        int64_t i;
        const int64_t j = pair_of(&map->affine, p % half, &i), base = p / half * n * n;
        const int64_t at[4] = {base + i * n + i, base + i * n + j, base + j * n + i, base + j * n + j};
        const double forward[4] = {a, -b, b, a};
        for (int c = 0; c < 4; c++) {
            map->exact[at[c]] = forward[c];
            map->exact_inverse[at[c]] = (c == 0 || c == 3 ? forward[c] : -forward[c]) / det;
        }
    }
}

static void rotation_backward(const oq_map *map, const double *da, oq_real *dparameters)
{
    const int64_t n = map->affine.width, half = n / 2, pairs = map->affine.blocks * half;
    for (int64_t p = 0; p < pairs; p++) {
        int64_t i;
        const int64_t j = pair_of(&map->affine, p % half, &i);
        const double *block = da + p / half * n * n;
        dparameters[p] += (oq_real)(block[i * n + i] + block[j * n + j]);
        dparameters[pairs + p] += (oq_real)(block[j * n + i] - block[i * n + j]);
    }
}

static oq_code dense_forward(oq_context *context, oq_map *map, const oq_real *parameters, const char *name)
{
    const int64_t n = map->affine.width;
    oq_affine_forward(&map->affine, parameters, map->exact);
    for (int64_t b = 0; b < map->affine.blocks; b++)
        OQ_TRY(oq_inverse(context, map->exact + b * n * n, map->exact_inverse + b * n * n, n, map->pivot, name));
    return OQ_OK;
}

oq_code oq_map_forward(oq_context *context, oq_map *map, const oq_real *parameters, const char *name)
{
    if (map->kind == OQ_MAP_NONE) return OQ_OK;
    const int64_t count = stored_count(map);
    memset(map->da, 0, sizeof *map->da * (size_t)count);
    memset(map->dinverse, 0, sizeof *map->dinverse * (size_t)count);
    if (!map->square) {
        diagonal_forward(map, parameters);
        return OQ_OK;
    }
    if (map->kind == OQ_MAP_ROTATION)
        rotation_forward(map, parameters);
    else
        OQ_TRY(dense_forward(context, map, parameters, name));
    for (int64_t i = 0; i < count; i++) {
        map->a[i] = (oq_real)map->exact[i];
        map->inverse[i] = (oq_real)map->exact_inverse[i];
    }
    return OQ_OK;
}

/* The whole gradient of A in double: its own and, through the inverse, -A^-T dA^-1 A^-T. */
oq_code oq_map_backward(oq_context *context, const oq_map *map, const oq_real *parameters, oq_real *dparameters)
{
    if (map->kind == OQ_MAP_NONE) return OQ_OK;
    if (!map->square) {
        diagonal_backward(map, dparameters);
        return OQ_OK;
    }
    const int64_t n = map->affine.width, count = stored_count(map);
    const oq_mark mark = oq_arena_mark(context->arena);
    double *da, *dinverse;
    OQ_NEW(context, da, count);
    OQ_NEW(context, dinverse, count);
    for (int64_t i = 0; i < count; i++) {
        da[i] = (double)map->da[i];
        dinverse[i] = (double)map->dinverse[i];
    }
    for (int64_t b = 0; b < map->affine.blocks; b++)
        OQ_TRY(
            oq_inverse_backward(context, map->exact_inverse + b * n * n, dinverse + b * n * n, da + b * n * n, n));
    if (map->kind == OQ_MAP_ROTATION)
        rotation_backward(map, da, dparameters);
    else
        oq_affine_backward(&map->affine, parameters, da, dparameters);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

static void rotation_floor(const oq_map *map, oq_real *parameters)
{
    const int64_t pairs = map->affine.blocks * (map->affine.width / 2);
    for (int64_t p = 0; p < pairs; p++) {
        const double radius = hypot((double)parameters[p], (double)parameters[pairs + p]);
        if (radius >= OQ_LET_FLOOR) continue;
        if (radius == 0)
            parameters[p] = (oq_real)OQ_LET_FLOOR;
        else {
            parameters[p] *= (oq_real)(OQ_LET_FLOOR / radius);
            parameters[pairs + p] *= (oq_real)(OQ_LET_FLOOR / radius);
        }
    }
}

void oq_map_floor(const oq_map *map, oq_real *parameters)
{
    switch (map->kind) {
    case OQ_MAP_NONE: break;
    case OQ_MAP_DIAGONAL:
    case OQ_MAP_TIED:
        oq_let_floor(parameters, oq_map_parameter_count(map->kind, map->affine.blocks, map->affine.width));
        break;
    case OQ_MAP_ROTATION: rotation_floor(map, parameters); break;
    case OQ_MAP_DENSE: oq_affine_floor_diagonal(&map->affine, parameters, OQ_LET_FLOOR); break;
    }
}
