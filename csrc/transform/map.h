/* One equivalent map A of a site, materialised: applied to the rows of the producer and the columns of the
 * consumer, with its inverse and the gradients of both.
 *
 *   kind        parameters           A
 *   diagonal    [blocks n]           diag(s)                       LET
 *   tied        [blocks n/2]         diag(s), both of a pair s_p   LET at q <-> k, exact under RoPE
 *   rotation    [2, blocks n/2]      [[a, -b], [b, a]] a pair      commutes with RoPE; det a^2 + b^2
 *   dense       [blocks, n, n]       see affine.h                  AffineQuant
 *
 * Pairs are those of RoPE, (i, i + r/2) of the r rotary dims, then the same of the dims that stay. */
#ifndef OQ_TRANSFORM_MAP_H
#define OQ_TRANSFORM_MAP_H

#include "base/context.h"
#include "transform/affine.h"

typedef enum { OQ_MAP_NONE, OQ_MAP_DIAGONAL, OQ_MAP_TIED, OQ_MAP_ROTATION, OQ_MAP_DENSE } oq_map_kind;

typedef struct {
    oq_map_kind kind;
    oq_affine affine;     /* blocks and width for every kind; the rest for dense maps alone */
    bool pivot;           /* dense: dominance is not kept (policy monitor), so LU pivots */
    bool square;          /* A and its inverse are stored as [blocks, n, n], not as diagonals [blocks n] */
    oq_real *a, *inverse; /* real: what products read */
    double *exact, *exact_inverse; /* square only */
    oq_real *da, *dinverse;
} oq_map;

int64_t oq_map_parameter_count(oq_map_kind kind, int64_t blocks, int64_t width);
/* Allocate everything the map needs from the context's arena. */
oq_code oq_map_create(oq_context *context, oq_map *map, oq_map_kind kind, oq_affine affine, bool pivot);
/* Parameters of the identity, or of diag(s) when s [blocks n] is given (tied: the mean of a pair, geometric). */
void oq_map_identity(const oq_map *map, oq_real *parameters);
void oq_map_from_diagonal(const oq_map *map, const oq_real *s, oq_real *parameters);

/* parameters -> A, A^-1; zeroes the gradients. `name` is for messages. */
oq_code oq_map_forward(oq_context *context, oq_map *map, const oq_real *parameters, const char *name);
/* dparameters += from da and dinverse. */
oq_code oq_map_backward(oq_context *context, const oq_map *map, const oq_real *parameters, oq_real *dparameters);
/* Keep parameters away from the singular: |s|, |A_ii| and |(a, b)| >= the floor. */
void oq_map_floor(const oq_map *map, oq_real *parameters);

/* `repeat`: how many heads of the matrix share each block (grouped-query attention). */
/* factors [heads n]: the diagonal of a map that has no more, of A or its inverse, as rows or columns meet it. */
void oq_map_factors(const oq_map *map, bool inverse, int64_t repeat, oq_real *factors);
void oq_map_factors_backward(oq_map *map, bool inverse, int64_t repeat, const double *dfactors);
/* out [heads n, width]: rows of each head times A (k) or, when inverse, A^-T (q, v). out != w. */
oq_code oq_map_rows(oq_context *context, const oq_map *map, bool inverse, int64_t repeat, const oq_real *w,
                    oq_real *out, int64_t width);
/* da or dinverse += ...; dw (may be NULL) is overwritten. */
oq_code oq_map_rows_backward(oq_context *context, oq_map *map, bool inverse, int64_t repeat, const oq_real *w,
                             const oq_real *dout, oq_real *dw, int64_t width);
/* out [rows, heads n] = w A^T in every head's columns. out != w. */
oq_code oq_map_columns(oq_context *context, const oq_map *map, int64_t repeat, const oq_real *w, oq_real *out,
                       int64_t rows);
/* da += ...: w is a constant, it has no gradient. */
oq_code oq_map_columns_backward(oq_context *context, oq_map *map, int64_t repeat, const oq_real *w,
                                const oq_real *dout, int64_t rows);

#endif
