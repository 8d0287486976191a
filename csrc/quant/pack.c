#include "quant/pack.h"

#include "base/parallel.h"

#define ROW_CHUNK 64

typedef struct {
    const uint8_t *from;
    uint8_t *to;
    int64_t rows, width;
    int bits;
    void (*row)(const uint8_t *from, uint8_t *to, int64_t width, int bits);
    int64_t from_stride, to_stride;
} job;

int64_t oq_packed_width(int64_t width, int bits)
{
    if (bits < 1 || bits > 8 || width < 0 || width > (INT64_MAX - 7) / 8) return -1;
    return (width * bits + 7) / 8;
}

static void pack_row(const uint8_t *codes, uint8_t *packed, int64_t width, int bits)
{
    uint32_t pending = 0;
    int held = 0; /* bits of pending not yet written: below 8 between codes */
    for (int64_t i = 0; i < width; i++) {
        pending |= (uint32_t)codes[i] << held;
        held += bits;
        if (held < 8) continue;
        *packed++ = (uint8_t)pending;
        pending >>= 8;
        held -= 8;
    }
    if (held > 0) *packed = (uint8_t)pending;
}

static void unpack_row(const uint8_t *packed, uint8_t *codes, int64_t width, int bits)
{
    const uint32_t mask = (1u << bits) - 1;
    uint32_t pending = 0;
    int held = 0;
    for (int64_t i = 0; i < width; i++) {
        if (held < bits) {
            pending |= (uint32_t)*packed++ << held;
            held += 8;
        }
        codes[i] = (uint8_t)(pending & mask);
        pending >>= bits;
        held -= bits;
    }
}

static void run_chunk(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t begin = item * ROW_CHUNK, end = begin + ROW_CHUNK < j->rows ? begin + ROW_CHUNK : j->rows;
    (void)worker;
    for (int64_t r = begin; r < end; r++)
        j->row(j->from + r * j->from_stride, j->to + r * j->to_stride, j->width, j->bits);
}

static oq_code check_sizes(oq_context *context, int64_t width, int bits)
{
    if (oq_packed_width(width, bits) >= 0) return OQ_OK;
    return oq_fail(context, OQ_INVALID_ARGUMENT, "bits must be 1..8 and a row's width positive, got %d and %lld",
                   bits, (long long)width);
}

oq_code oq_pack(oq_context *context, const uint8_t *codes, int64_t rows, int64_t width, int bits, uint8_t *packed)
{
    OQ_TRY(check_sizes(context, width, bits));
    const int64_t bytes = oq_packed_width(width, bits);
    for (int64_t i = 0; i < rows * width; i++)
        if (codes[i] >> bits)
            return oq_fail(context, OQ_INVALID_ARGUMENT, "code %d at row %lld column %lld does not fit in %d bits",
                           codes[i], (long long)(i / width), (long long)(i % width), bits);
    job j = {codes, packed, rows, width, bits, pack_row, width, bytes};
    oq_parallel_for(context->threads, (rows + ROW_CHUNK - 1) / ROW_CHUNK, run_chunk, &j);
    return OQ_OK;
}

oq_code oq_unpack(oq_context *context, const uint8_t *packed, int64_t rows, int64_t width, int bits,
                  uint8_t *codes)
{
    OQ_TRY(check_sizes(context, width, bits));
    const int64_t bytes = oq_packed_width(width, bits);
    job j = {packed, codes, rows, width, bits, unpack_row, bytes, width};
    oq_parallel_for(context->threads, (rows + ROW_CHUNK - 1) / ROW_CHUNK, run_chunk, &j);
    return OQ_OK;
}
