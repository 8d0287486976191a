/* A materialised map on the rows or columns of a weight: forward and backward side by side. */
#include <string.h>

#include "math/gemm.h"
#include "math/vector.h"
#include "transform/let.h"
#include "transform/map.h"

/* ---- diagonal maps as factors --------------------------------------------- */

static int64_t channels(const oq_map *map, int64_t repeat)
{
    return map->affine.blocks * repeat * map->affine.width;
}

/* The map's channel behind channel c of the matrix. */
static int64_t shared(const oq_map *map, int64_t repeat, int64_t c)
{
    const int64_t n = map->affine.width;
    return c / n / repeat * n + c % n;
}

void oq_map_factors(const oq_map *map, bool inverse, int64_t repeat, oq_real *factors)
{
    const oq_real *s = inverse ? map->inverse : map->a;
    for (int64_t c = 0; c < channels(map, repeat); c++) factors[c] = s[shared(map, repeat, c)];
}

void oq_map_factors_backward(oq_map *map, bool inverse, int64_t repeat, const double *dfactors)
{
    oq_real *ds = inverse ? map->dinverse : map->da;
    for (int64_t c = 0; c < channels(map, repeat); c++) ds[shared(map, repeat, c)] += (oq_real)dfactors[c];
}

/* ---- rows: y = A w, or y = A^-T w ---------------------------------------- */

static void diagonal_rows(const oq_map *map, bool inverse, int64_t repeat, const oq_real *w, oq_real *out,
                          int64_t width)
{
    const int64_t rows = channels(map, repeat);
    const oq_real *s = inverse ? map->inverse : map->a;
    if (out != w) memcpy(out, w, sizeof *out * (size_t)(rows * width));
    for (int64_t r = 0; r < rows; r++) oq_scale(out + r * width, s[shared(map, repeat, r)], width);
}

static void diagonal_rows_backward(oq_map *map, bool inverse, int64_t repeat, const oq_real *w,
                                   const oq_real *dout, int64_t width)
{
    oq_real *ds = inverse ? map->dinverse : map->da;
    for (int64_t r = 0; r < channels(map, repeat); r++)
        ds[shared(map, repeat, r)] += (oq_real)oq_scale_row_backward(w + r * width, dout + r * width, width);
}

oq_code oq_map_rows(oq_context *context, const oq_map *map, bool inverse, int64_t repeat, const oq_real *w,
                    oq_real *out, int64_t width)
{
    const int64_t n = map->affine.width;
    if (!map->square) {
        diagonal_rows(map, inverse, repeat, w, out, width);
        return OQ_OK;
    }
    for (int64_t h = 0; h < map->affine.blocks * repeat; h++) {
        const int64_t block = h / repeat * n * n;
        OQ_TRY(oq_gemm(context, &(oq_gemm_args){.transpose_a = inverse,
                                                .m = n,
                                                .n = width,
                                                .k = n,
                                                .alpha = 1,
                                                .a = (inverse ? map->inverse : map->a) + block,
                                                .lda = n,
                                                .b = w + h * n * width,
                                                .ldb = width,
                                                .c = out + h * n * width,
                                                .ldc = width}));
    }
    return OQ_OK;
}

/* y = A w: dA += dy w^T, dw = A^T dy.  y = B^T w with B = A^-1: dB += w dy^T, dw = B dy. */
static oq_code square_rows_backward(oq_context *context, oq_map *map, bool inverse, int64_t repeat,
                                    const oq_real *w, const oq_real *dout, oq_real *dw, int64_t width)
{
    const int64_t n = map->affine.width;
    for (int64_t h = 0; h < map->affine.blocks * repeat; h++) {
        const int64_t block = h / repeat * n * n;
        const oq_real *wh = w + h * n * width, *dyh = dout + h * n * width;
        OQ_TRY(oq_gemm(context, &(oq_gemm_args){.transpose_b = true,
                                                .m = n,
                                                .n = n,
                                                .k = width,
                                                .alpha = 1,
                                                .beta = 1,
                                                .a = inverse ? wh : dyh,
                                                .lda = width,
                                                .b = inverse ? dyh : wh,
                                                .ldb = width,
                                                .c = (inverse ? map->dinverse : map->da) + block,
                                                .ldc = n}));
        if (!dw) continue;
        OQ_TRY(oq_gemm(context, &(oq_gemm_args){.transpose_a = !inverse,
                                                .m = n,
                                                .n = width,
                                                .k = n,
                                                .alpha = 1,
                                                .a = (inverse ? map->inverse : map->a) + block,
                                                .lda = n,
                                                .b = dyh,
                                                .ldb = width,
                                                .c = dw + h * n * width,
                                                .ldc = width}));
    }
    return OQ_OK;
}

oq_code oq_map_rows_backward(oq_context *context, oq_map *map, bool inverse, int64_t repeat, const oq_real *w,
                             const oq_real *dout, oq_real *dw, int64_t width)
{
    if (map->square) return square_rows_backward(context, map, inverse, repeat, w, dout, dw, width);
    diagonal_rows_backward(map, inverse, repeat, w, dout, width);
    if (dw) diagonal_rows(map, inverse, repeat, dout, dw, width);
    return OQ_OK;
}

/* ---- columns: y = w A^T --------------------------------------------------- */

static oq_code diagonal_columns_backward(oq_context *context, oq_map *map, int64_t repeat, const oq_real *w,
                                         const oq_real *dout, int64_t rows)
{
    const int64_t width = channels(map, repeat);
    const oq_mark mark = oq_arena_mark(context->arena);
    double *ds;
    OQ_NEW_ZERO(context, ds, width);
    oq_scale_columns_backward(w, dout, ds, rows, width);
    oq_map_factors_backward(map, false, repeat, ds);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

static oq_code diagonal_columns(oq_context *context, const oq_map *map, int64_t repeat, const oq_real *w,
                                oq_real *out, int64_t rows)
{
    const int64_t width = channels(map, repeat);
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_real *s;
    OQ_NEW(context, s, width);
    oq_map_factors(map, false, repeat, s);
    memcpy(out, w, sizeof *out * (size_t)(rows * width));
    oq_scale_columns(out, s, rows, width);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

oq_code oq_map_columns(oq_context *context, const oq_map *map, int64_t repeat, const oq_real *w, oq_real *out,
                       int64_t rows)
{
    if (!map->square) return diagonal_columns(context, map, repeat, w, out, rows);
    const int64_t n = map->affine.width, width = map->affine.blocks * repeat * n;
    for (int64_t h = 0; h < map->affine.blocks * repeat; h++)
        OQ_TRY(oq_gemm(context, &(oq_gemm_args){.transpose_b = true,
                                                .m = rows,
                                                .n = n,
                                                .k = n,
                                                .alpha = 1,
                                                .a = w + h * n,
                                                .lda = width,
                                                .b = map->a + h / repeat * n * n,
                                                .ldb = n,
                                                .c = out + h * n,
                                                .ldc = width}));
    return OQ_OK;
}

oq_code oq_map_columns_backward(oq_context *context, oq_map *map, int64_t repeat, const oq_real *w,
                                const oq_real *dout, int64_t rows)
{
    if (!map->square) return diagonal_columns_backward(context, map, repeat, w, dout, rows);
    const int64_t n = map->affine.width, width = map->affine.blocks * repeat * n;
    for (int64_t h = 0; h < map->affine.blocks * repeat; h++)
        OQ_TRY(oq_gemm(context, &(oq_gemm_args){.transpose_a = true,
                                                .m = n,
                                                .n = n,
                                                .k = rows,
                                                .alpha = 1,
                                                .beta = 1,
                                                .a = dout + h * n,
                                                .lda = width,
                                                .b = w + h * n,
                                                .ldb = width,
                                                .c = map->da + h / repeat * n * n,
                                                .ldc = n}));
    return OQ_OK;
}
