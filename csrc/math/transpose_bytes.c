#include "math/transpose_bytes.h"

#include "base/parallel.h"
#include "base/size.h"

enum {
    SIDE = 16,  /* of the squares that are transposed in registers */
    STRIP = 64, /* columns at a time, and rows: a line of the cache is written as a whole */
};

static void turn_edge(const uint8_t *x, int64_t ld, int64_t rows, int64_t width, uint8_t flip, uint8_t *to,
                      int64_t ldto)
{
    for (int64_t j = 0; j < width; j++)
        for (int64_t i = 0; i < rows; i++) to[j * ldto + i] = x[i * ld + j] ^ flip;
}

#if defined(__SSE2__) && defined(__GNUC__)
#include <emmintrin.h>

#define UNROLL _Pragma("GCC unroll 16")

/* The first half of the rows shuffled with the second like cards, four times. */
static void turn_square(const uint8_t *x, int64_t ld, uint8_t flip, uint8_t *to, int64_t ldto)
{
    const __m128i bits = _mm_set1_epi8((char)flip);
    __m128i a[SIDE], b[SIDE];
    UNROLL for (int i = 0; i < SIDE; i++) a[i] = _mm_xor_si128(_mm_loadu_si128((const void *)(x + i * ld)), bits);
    UNROLL for (int round = 0; round < 4; round++)
    {
        UNROLL for (int i = 0; i < SIDE / 2; i++)
        {
            b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + SIDE / 2]);
            b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + SIDE / 2]);
        }
        UNROLL for (int i = 0; i < SIDE; i++) a[i] = b[i];
    }
    UNROLL for (int i = 0; i < SIDE; i++) _mm_storeu_si128((void *)(to + i * ldto), a[i]);
}
#else
static void turn_square(const uint8_t *x, int64_t ld, uint8_t flip, uint8_t *to, int64_t ldto)
{
    turn_edge(x, ld, SIDE, SIDE, flip, to, ldto);
}
#endif

void oq_transpose_few_bytes(const uint8_t *x, int64_t ld, int64_t rows, int64_t width, uint8_t flip, uint8_t *to,
                            int64_t ldto)
{
    for (int64_t j = 0; j < width; j += SIDE)
        for (int64_t i = 0; i < rows; i += SIDE) {
            const int64_t high = oq_least(SIDE, rows - i), wide = oq_least(SIDE, width - j);
            if (high == SIDE && wide == SIDE)
                turn_square(x + i * ld + j, ld, flip, to + j * ldto + i, ldto);
            else
                turn_edge(x + i * ld + j, ld, high, wide, flip, to + j * ldto + i, ldto);
        }
}

typedef struct {
    const uint8_t *x;
    uint8_t *to;
    int64_t rows, width;
    uint8_t flip;
} job;

static void turn_strip(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t column = item * STRIP, columns = oq_least(STRIP, j->width - column);
    (void)worker;
    for (int64_t row = 0; row < j->rows; row += STRIP)
        oq_transpose_few_bytes(j->x + row * j->width + column, j->width, oq_least(STRIP, j->rows - row), columns,
                               j->flip, j->to + column * j->rows + row, j->rows);
}

void oq_transpose_bytes(const oq_context *context, const uint8_t *x, int64_t rows, int64_t width, uint8_t flip,
                        uint8_t *to)
{
    const job j = {x, to, rows, width, flip};
    oq_parallel_for(context->threads, oq_pieces(width, STRIP), turn_strip, (void *)&j);
}
