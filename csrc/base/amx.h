/* AMX, Intel's tiles: 8 registers of 16 rows by 64 bytes, and one instruction for the product of two of them.
 *
 *   a row of A    64 bytes of k: 16 words, each 4 bytes or 2 of bfloat16
 *   a row of B    a word of k, of 16 columns
 *   a row of C    16 sums of 32 bits
 *
 * Instructions rather than intrinsics: gcc 12 does not know that its intrinsics read memory, and moves stores across
 * them. Compilers keep nothing in tiles, so nobody else's is overwritten. */
#ifndef OQ_BASE_AMX_H
#define OQ_BASE_AMX_H

#include <stdbool.h>
#include <stdint.h>

enum { OQ_AMX_ROWS = 16, OQ_AMX_WORDS = 16, OQ_AMX_BYTES = 64, OQ_AMX_TILE = 1024 };

#define OQ_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::: "memory")
#define OQ_TILE_LOAD(tile, from, stride)                                                                    \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"((const void *)(from)), "r"((int64_t)(stride)) \
                     : "memory")
/* What streams through and should not drive the rest out of the level 1 cache. */
#define OQ_TILE_STREAM(tile, from, stride)                                                                    \
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile ::"r"((const void *)(from)), "r"((int64_t)(stride)) \
                     : "memory")
#define OQ_TILE_STORE(tile, to, stride)                                                                 \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"((void *)(to)), "r"((int64_t)(stride)) \
                     : "memory")
/* C += A B: floats of bfloat16; integers of unsigned by signed bytes, of signed by unsigned. */
#define OQ_TILE_BF16(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")
#define OQ_TILE_U8S8(c, a, b) __asm__ volatile("tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")
#define OQ_TILE_S8U8(c, a, b) __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")

/* Before the first instruction above, on each thread anew: all tiles at their full size, but for C's and A's rows of a
 * product at the edge: tiles 0, 1 and 4 have `above` rows, 2, 3 and 5 `below`, one where there are none. */
static inline void oq_amx_begin_rows(int above, int below)
{
    const uint8_t a = (uint8_t)above, b = (uint8_t)(below ? below : 1);
    const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } configuration = {.palette = 1,
                       .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                       .rows = {a, a, b, b, a, b, OQ_AMX_ROWS, OQ_AMX_ROWS}};
    __asm__ volatile("ldtilecfg %0" ::"m"(configuration));
}

static inline void oq_amx_begin(void) { oq_amx_begin_rows(OQ_AMX_ROWS, OQ_AMX_ROWS); }

/* C of 32 by 32 words is in tiles 0 to 3, row by row: taken from memory, or zeros unless it is added to, and put there.
 * The stride is in bytes. */
static inline void oq_amx_take(bool add, const int32_t *c, int64_t stride)
{
    const int32_t *below = c + OQ_AMX_ROWS * (stride / (int64_t)sizeof *c);
    if (!add) {
        OQ_TILE_ZERO(0);
        OQ_TILE_ZERO(1);
        OQ_TILE_ZERO(2);
        OQ_TILE_ZERO(3);
        return;
    }
    OQ_TILE_LOAD(0, c, stride);
    OQ_TILE_LOAD(1, c + OQ_AMX_WORDS, stride);
    OQ_TILE_LOAD(2, below, stride);
    OQ_TILE_LOAD(3, below + OQ_AMX_WORDS, stride);
}

static inline void oq_amx_put(int32_t *c, int64_t stride)
{
    int32_t *below = c + OQ_AMX_ROWS * (stride / (int64_t)sizeof *c);
    OQ_TILE_STORE(0, c, stride);
    OQ_TILE_STORE(1, c + OQ_AMX_WORDS, stride);
    OQ_TILE_STORE(2, below, stride);
    OQ_TILE_STORE(3, below + OQ_AMX_WORDS, stride);
}

/* C += A B, 32 rows of A in tiles 4 and 5, 32 columns of B in 6 and 7. */
#define OQ_AMX_MULTIPLY(instruction) \
    do {                             \
        instruction(0, 4, 6);        \
        instruction(1, 4, 7);        \
        instruction(2, 5, 6);        \
        instruction(3, 5, 7);        \
    } while (0)

/* Behind the last: the system need not save 8 KiB a thread any more. */
static inline void oq_amx_end(void) { __asm__ volatile("tilerelease" ::: "memory"); }

#endif
