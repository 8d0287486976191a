#include "transform/equivalent.h"

#include <string.h>

#include "math/gemm.h"
#include "math/vector.h"
#include "transform/let.h"

void oq_center(const oq_real *x, const oq_real *shift, oq_real *centered, int64_t rows, int64_t width)
{
    memcpy(centered, x, sizeof *x * (size_t)(rows * width));
    for (int64_t r = 0; shift && r < rows; r++)
        for (int64_t i = 0; i < width; i++) centered[r * width + i] -= shift[i];
}

oq_code oq_center_backward(oq_context *context, const oq_real *dx, oq_real *dshift, int64_t rows, int64_t width)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_real *sums;
    OQ_NEW_ZERO(context, sums, width);
    OQ_TRY(oq_column_sums(context, dx, sums, rows, width));
    for (int64_t i = 0; i < width; i++) dshift[i] -= sums[i];
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* One product of every block's columns: out_b = x_b op(A^-1_b). */
static oq_code times_inverse(oq_context *context, const oq_map *map, bool transposed, const oq_real *x,
                             oq_real *out, int64_t rows)
{
    const int64_t n = map->affine.width, width = map->affine.blocks * n;
    for (int64_t b = 0; b < map->affine.blocks; b++)
        OQ_TRY(oq_gemm(context, &(oq_gemm_args){.transpose_b = transposed,
                                                .m = rows,
                                                .n = n,
                                                .k = n,
                                                .alpha = 1,
                                                .a = x + b * n,
                                                .lda = width,
                                                .b = map->inverse + b * n * n,
                                                .ldb = n,
                                                .c = out + b * n,
                                                .ldc = width}));
    return OQ_OK;
}

oq_code oq_map_input(oq_context *context, const oq_map *map, const oq_real *centered, oq_real *out, int64_t rows)
{
    const int64_t width = map->affine.blocks * map->affine.width;
    if (map->square) return times_inverse(context, map, false, centered, out, rows);
    memcpy(out, centered, sizeof *out * (size_t)(rows * width));
    if (map->kind != OQ_MAP_NONE) oq_scale_columns(out, map->inverse, rows, width);
    return OQ_OK;
}

static oq_code diagonal_backward(oq_context *context, oq_map *map, const oq_real *centered, const oq_real *dout,
                                 int64_t rows)
{
    const int64_t width = map->affine.blocks * map->affine.width;
    const oq_mark mark = oq_arena_mark(context->arena);
    double *sums;
    OQ_NEW_ZERO(context, sums, width);
    oq_scale_columns_backward(centered, dout, sums, rows, width);
    for (int64_t i = 0; i < width; i++) map->dinverse[i] += (oq_real)sums[i];
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

oq_code oq_map_input_backward(oq_context *context, oq_map *map, const oq_real *centered, const oq_real *dout,
                              oq_real *dx, int64_t rows)
{
    const int64_t n = map->affine.width, width = map->affine.blocks * n;
    if (!map->square) {
        if (map->kind != OQ_MAP_NONE) OQ_TRY(diagonal_backward(context, map, centered, dout, rows));
        return oq_map_input(context, map, dout, dx, rows); /* a diagonal is its own transpose */
    }
    for (int64_t b = 0; b < map->affine.blocks; b++)
        OQ_TRY(oq_gemm(context, &(oq_gemm_args){.transpose_a = true,
                                                .m = n,
                                                .n = n,
                                                .k = rows,
                                                .alpha = 1,
                                                .beta = 1,
                                                .a = centered + b * n,
                                                .lda = width,
                                                .b = dout + b * n,
                                                .ldb = width,
                                                .c = map->dinverse + b * n * n,
                                                .ldc = n}));
    return times_inverse(context, map, true, dout, dx, rows);
}

oq_code oq_shifted_bias(oq_context *context, const oq_real *w, const oq_real *shift, const oq_real *bias,
                        oq_real *out, int64_t rows, int64_t width)
{
    OQ_TRY(oq_linear_forward(context, shift, w, out, 1, width, rows));
    if (bias) oq_add(out, bias, rows);
    return OQ_OK;
}

oq_code oq_shifted_bias_backward(oq_context *context, const oq_real *w, const oq_real *shift, const oq_real *dbias,
                                 oq_real *dshift, oq_real *dw, int64_t rows, int64_t width)
{
    if (dw) OQ_TRY(oq_linear_backward_weight(context, dbias, shift, dw, 1, width, rows, true));
    return oq_linear_backward_input(context, dbias, w, dshift, 1, width, rows, true);
}
