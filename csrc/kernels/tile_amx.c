/* AMX: a tile of A is 16 rows by 64 inputs of activations as they lie, a tile of B 64 inputs by 16 outputs, which
 * the layout's quads are rows of. Some thousand inputs of a panel are unpacked; then a few rows at a time go through
 * all of them, so that their sums stay in the level 1 cache. */
#include "base/cpu.h"
#include "kernels/kernel.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <string.h>

#include "base/amx.h"
#include "base/scratch.h"
#include "kernels/avx512.h"

enum {
    DEEP = 64, /* tiles of inputs unpacked at a time: a quarter of a MiB, in the level 2 cache */
    QUADS = OQ_AMX_ROWS,
    INPUTS = 4 * QUADS, /* of a tile */
    PAIR = 2 * OQ_AMX_ROWS,
    ROWS = 2 * PAIR, /* through what is unpacked before others: its runs' codes stay near */
    PLANES = 3 * PAIR /* the same of three planes, which are flushed together */
};

/* A run, or a stretch of one, and where it is unpacked. */
typedef struct {
    oq_run run;
    int64_t unit, units; /* of the layout */
    int64_t tile, tiles; /* of inputs */
    bool first, last;    /* of its run */
    /* Its tiles of codes: where they lie, and bytes to a tile's next row, the next tile of inputs, and of outputs. */
    const uint8_t *codes;
    int64_t row, deep, beside;
} piece;

typedef struct {
    _Alignas(64) uint8_t w[DEEP][OQ_PANEL_TILES][QUADS][64];
    int32_t total[OQ_MOST_ROWS][OQ_PANEL];
    piece pieces[DEEP];
    int32_t code_sums[DEEP][OQ_PANEL]; /* of a piece that ends a run of several segments */
    int count;
    int64_t used;   /* tiles of inputs */
    int configured; /* rows */
} panel;

/* ---- unpacking ---------------------------------------------------------------- */

INLINE void unpack_bits(const oq_tiles *t, const piece *x, const int tiles, panel *p, const int bits)
{
    const int quads = bits == 8 ? 1 : bits == 4 ? 2 : bits == 2 ? 4 : 8, bytes = bits == 3 ? 192 : 64;
    const int each = QUADS / quads; /* units of a tile */
    const int64_t stride = oq_unit_stride(t);
    const uint8_t *codes = t->codes + x->unit * stride;
    for (int64_t k = 0; k * each < x->units; k++)
        for (int64_t u = 0; u < oq_least(each, x->units - k * each); u++, codes += stride)
            UNROLL for (int tile = 0; tile < tiles; tile++)
            {
                UNROLL for (int j = 0; j < quads; j++)
                    _mm512_store_si512(p->w[x->tile + k][tile][u * quads + j], quad_of(codes + tile * bytes, j, bits));
            }
}

INLINE void unpack_tiles(const oq_tiles *t, const piece *x, int tiles, panel *p, const int bits)
{
    if (tiles == OQ_PANEL_TILES)
        unpack_bits(t, x, OQ_PANEL_TILES, p, bits);
    else
        unpack_bits(t, x, tiles, p, bits);
}

/* All tiles of outputs, zeros behind the inputs to the end of a tile. */
VNNI static void unpack(const oq_tiles *t, const piece *x, int tiles, panel *p)
{
    const int bits = t->layout->stored_bits;
    if (bits == 2)
        unpack_tiles(t, x, tiles, p, 2);
    else if (bits == 3)
        unpack_tiles(t, x, tiles, p, 3);
    else if (bits == 4)
        unpack_tiles(t, x, tiles, p, 4);
    else
        unpack_tiles(t, x, tiles, p, 8);
    const int64_t quads = x->units * t->layout->unit / 4;
    if (quads % QUADS == 0) return;
    for (int tile = 0; tile < tiles; tile++)
        memset(p->w[x->tile + x->tiles - 1][tile][quads % QUADS], 0, (size_t)(QUADS - quads % QUADS) * 64);
}

/* ---- 32 rows by 32 outputs -------------------------------------------------------- */

/* total [32, 32] (+)= a [32, 64 deep] w, of as many rows as the tiles are configured for. What of a lies behind a run's
 * inputs meets zeros. */
static void multiply_pair(const piece *x, const int8_t *a, const int8_t *below, int64_t a_stride, int tile, bool alone,
                          int32_t *total)
{
    const uint8_t *w = x->codes + tile * x->beside, *beside = alone ? w : w + x->beside;
    int32_t *c = total + tile * OQ_TILE;
    enum { STRIDE = OQ_PANEL * sizeof *c };
    oq_amx_take(!x->first, c, STRIDE);
    for (int64_t k = 0; k < x->tiles; k++) {
        OQ_TILE_LOAD(4, a + k * INPUTS, a_stride);
        OQ_TILE_LOAD(6, w + k * x->deep, x->row);
        OQ_TILE_LOAD(7, beside + k * x->deep, x->row);
        OQ_TILE_LOAD(5, below + k * INPUTS, a_stride);
        OQ_AMX_MULTIPLY(OQ_TILE_S8U8);
    }
    oq_amx_put(c, STRIDE);
}

/* ---- what is done once a run ------------------------------------------------------- */

/* sum -= z_a sum(w) + z_w sum(a - z_a): products of pairs of 16 bits, of one row and segment. */
INLINE void correct(__m512i *sum, __m512i columns, const int32_t *pair)
{
    __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(*sum) : "v"(columns), "m"(*pair));
}

/* total -= z_a sum(w) + z_w sum(a - z_a). */
VNNI static void correct_long(const oq_tiles *t, const piece *x, panel *p, int row, int rows)
{
    const oq_run *run = &x->run;
    const uint8_t *zeros = t->zeros + run->group * t->zero_stride;
    const int32_t *sums = p->code_sums[x - p->pieces];
    for (int r = row; r < row + rows; r++) {
        const int32_t *pairs = t->pairs + r * t->layout->segments;
        const int32_t minus_z = (int16_t)(pairs[run->segment] & 0xffff), minus_sum = row_total(run, pairs);
        for (int64_t i = 0; i < t->width; i++) p->total[r][i] += minus_z * sums[i] + minus_sum * zeros[i];
    }
}

/* Before a row's first run there is nothing to add to: zero. */
INLINE __mmask16 sums_before(const oq_run *run) { return run->segment ? 0xffff : 0; }

/* Rows of some tiles: t->sums += float(total) scale. */
INLINE void flush_tiles(const oq_tiles *t, const oq_run *run, const panel *p, int row, int rows, int first,
                        const int tiles, const int planes)
{
    const int64_t segments = t->layout->segments, lane = first * OQ_TILE;
    const int32_t *pairs = t->pairs + row * segments + run->segment;
    const float *x_scale = planes > 1 ? t->x_scales + row / planes * segments + run->segment : NULL;
    float *to = t->sums + row / planes * OQ_PANEL + lane;
    const __mmask16 before = sums_before(run);
    __m512i columns[OQ_PANEL_TILES];
    __m512 scales[OQ_PANEL_TILES];
    UNROLL for (int n = 0; n < tiles; n++)
    {
        columns[n] = run->segments > 1 ? _mm512_setzero_si512() /* it is corrected */
                                       : columns_of(t, run, lane + n * OQ_TILE, run->segment);
        scales[n] = _mm512_loadu_ps(t->scales + run->group * t->width + lane + n * OQ_TILE);
    }
    for (int r = row; r < row + rows; r += planes, to += OQ_PANEL, pairs += planes * segments) {
        UNROLL for (int n = 0; n < tiles; n++)
        {
            __m512i sums[3];
            UNROLL for (int i = 0; i < planes; i++)
            {
                sums[i] = _mm512_loadu_si512(&p->total[r + i][lane + n * OQ_TILE]);
                correct(&sums[i], columns[n], pairs + i * segments);
            }
            add_scaled(before, to + n * OQ_TILE, join(sums, planes), scales[n], x_scale);
        }
        if (planes > 1) x_scale += segments;
    }
}

INLINE void flush_kind(const oq_tiles *t, const oq_run *run, const panel *p, int row, int rows, int tiles,
                       const int planes)
{
    if (tiles == OQ_PANEL_TILES)
        flush_tiles(t, run, p, row, rows, 0, OQ_PANEL_TILES, planes);
    else
        for (int tile = 0; tile < tiles; tile++) flush_tiles(t, run, p, row, rows, tile, 1, planes);
}

VNNI static void flush(const oq_tiles *t, const piece *x, panel *p, int row, int rows, int tiles)
{
    const oq_run *run = &x->run;
    if (run->segments > 1) correct_long(t, x, p, row, rows);
    if (t->planes == 1)
        flush_kind(t, run, p, row, rows, tiles, 1);
    else if (t->planes == 2)
        flush_kind(t, run, p, row, rows, tiles, 2);
    else
        flush_kind(t, run, p, row, rows, tiles, 3);
}

/* ---- a panel -------------------------------------------------------------------------- */

/* Tiles for so many rows, at most 32. */
static void configure(panel *p, int rows)
{
    if (p->configured == rows) return;
    p->configured = rows;
    oq_amx_begin_rows((int)oq_least(rows, OQ_AMX_ROWS), rows > OQ_AMX_ROWS ? rows - OQ_AMX_ROWS : 0);
}

static void multiply_rows(const oq_tiles *t, panel *p, const piece *x, int row, int rows, int tiles)
{
    const int8_t *a = t->a + row * t->a_stride + x->unit * t->layout->unit;
    const int8_t *below = rows > OQ_AMX_ROWS ? a + OQ_AMX_ROWS * t->a_stride : a;
    configure(p, rows);
    for (int tile = 0; tile < tiles; tile += 2)
        multiply_pair(x, a, below, t->a_stride, tile, tile + 1 == tiles, p->total[row]);
}

/* Some rows through all that is unpacked, `step` of them flushed at once. */
static void add_rows(const oq_tiles *t, panel *p, int first, int end, int step, int tiles)
{
    for (const piece *x = p->pieces; x < p->pieces + p->count; x++)
        for (int begin = first; begin < end; begin += step) {
            const int stop = (int)oq_least(begin + step, end);
            for (int row = begin; row < stop; row += PAIR)
                multiply_rows(t, p, x, row, (int)oq_least(PAIR, stop - row), tiles);
            if (x->last) flush(t, x, p, begin, stop - begin, tiles);
        }
}

/* Whole tiles of bytes are taken as they lie, all others unpacked. */
static void find_codes(const oq_tiles *t, piece *x, int tiles, panel *p)
{
    const int64_t stride = oq_unit_stride(t);
    if (t->layout->stored_bits == 8 && x->units % QUADS == 0) {
        x->codes = t->codes + x->unit * stride;
        x->row = stride;
        x->deep = QUADS * stride;
        x->beside = t->layout->unit_bytes;
        return;
    }
    x->codes = p->w[x->tile][0][0];
    x->row = sizeof p->w[0][0][0];
    x->deep = sizeof p->w[0];
    x->beside = sizeof p->w[0][0];
    unpack(t, x, tiles, p);
}

/* What all rows share. */
static void prepare(const oq_tiles *t, panel *p, int tiles)
{
    for (int i = 0; i < p->count; i++) {
        piece *x = p->pieces + i;
        find_codes(t, x, tiles, p);
        if (x->last && x->run.segments > 1) add_segments(t, &x->run, p->code_sums[i]);
    }
}

static void finish_block(const oq_tiles *t, panel *p, int rows, int tiles)
{
    const int some = t->planes == 3 ? PLANES : ROWS, step = t->planes == 3 ? PLANES : PAIR;
    prepare(t, p, tiles);
    for (int row = 0; row < rows; row += some) add_rows(t, p, row, (int)oq_least(row + some, rows), step, tiles);
    p->count = 0;
    p->used = 0;
}

/* A run is cut where a block is full. */
static void add_run(const oq_tiles *t, panel *p, const oq_run *run, int rows, int tiles)
{
    const int64_t each = INPUTS / t->layout->unit; /* units of a tile */
    for (int64_t done = 0, units; done < run->units; done += units) {
        units = oq_least(run->units - done, (DEEP - p->used) * each);
        p->pieces[p->count++] = (piece){.run = *run,
                                        .unit = run->unit + done,
                                        .units = units,
                                        .tile = p->used,
                                        .tiles = oq_pieces(units, each),
                                        .first = done == 0,
                                        .last = done + units == run->units};
        p->used += oq_pieces(units, each);
        if (p->used == DEEP) finish_block(t, p, rows, tiles);
    }
}

static oq_code multiply(const oq_tiles *t, int rows, int tiles)
{
    panel *p = oq_scratch(sizeof *p);
    oq_run run = {0};
    if (!p) return OQ_OUT_OF_MEMORY;
    p->count = 0;
    p->used = 0;
    p->configured = 0;
    while (oq_next_run(t->layout, &run)) add_run(t, p, &run, rows, tiles);
    if (p->count > 0) finish_block(t, p, rows, tiles);
    oq_amx_end();
    return OQ_OK;
}

static bool available(void) { return oq_cpu_features()->amx_int8; }

const oq_kernel oq_kernel_amx = {"amx", available, OQ_MOST_ROWS, PAIR, multiply};

#else

const oq_kernel oq_kernel_amx = OQ_ABSENT_KERNEL("amx");

#endif
