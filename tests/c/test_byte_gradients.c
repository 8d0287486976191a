/* Matrices rounded to bytes, and the backward products that take them. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "math/byte_vectors.h"
#include "math/transpose_bytes.h"
#include "quant/gradient_products.h"

enum { MOST = 300, COUNT = MOST * MOST };

static oq_real x[COUNT], turned[COUNT], factors[MOST];
static uint8_t bytes[COUNT], bytes_turned[COUNT];

static double draw(double low, double high) { return low + (high - low) * rand() / RAND_MAX; }

static void draw_matrix(int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c) turned[c * rows + r] = x[r * width + c] = (oq_real)draw(-3, 3);
    for (int64_t r = 0; r < rows; ++r) factors[r] = (oq_real)draw(0.1, 2);
}

/* Vectors of x [vectors, length], an element of a vector times its factor: the nearest codes. */
static void check_codes(const oq_byte_vectors *v, const oq_real *of, int64_t vectors, int64_t length) {
    for (int64_t i = 0; i < vectors; ++i) {
        int peak = 0;
        for (int64_t k = 0; k < length; ++k) {
            const int code = v->zero ? v->codes[i * length + k] - v->zero : (int8_t)v->codes[i * length + k];
            const double value = (double)of[i * length + k] * (double)factors[k], step = (double)v->scale[i];
            CHECK(fabs(code * step - value) <= 0.5001 * step);
            peak = abs(code) > peak ? abs(code) : peak;
        }
        CHECK(peak == 127);
    }
}

static void rounds_to_the_nearest_codes(int64_t vectors, int64_t length) {
    oq_context context = new_context(2);
    oq_byte_vectors rows, columns;
    draw_matrix(length, vectors); /* turned [vectors, length] */
    CHECK(oq_byte_vectors_create(&context, vectors, length, 128, &rows) == OQ_OK);
    CHECK(oq_byte_vectors_create(&context, vectors, length, 0, &columns) == OQ_OK);
    oq_bytes_of_rows(&context, turned, factors, vectors, length, &rows);
    oq_bytes_of_columns(&context, &(oq_byte_source){.real = x, .rows = length, .width = vectors}, factors, &columns);
    check_codes(&rows, turned, vectors, length);
    check_codes(&columns, turned, vectors, length);
    CHECK(!memcmp(rows.scale, columns.scale, sizeof *rows.scale * (size_t)vectors));
    for (int64_t i = 0; i < vectors * length; ++i) CHECK(rows.codes[i] == (uint8_t)(columns.codes[i] + 128));
    oq_arena_destroy(context.arena);
}

/* One row of zeros, one with a value that is none, one that is infinite, one too small for a step. */
static void odd_vectors_have_odd_scales(void) {
    enum { LENGTH = 70 };
    oq_context context = new_context(1);
    oq_byte_vectors rows;
    memset(x, 0, sizeof x);
    for (int i = LENGTH; i < 4 * LENGTH; ++i) x[i] = 1;
    x[LENGTH + 40] = (oq_real)NAN, x[2 * LENGTH + 68] = (oq_real)-INFINITY;
    for (int i = 3 * LENGTH; i < 4 * LENGTH; ++i) x[i] = OQ_REAL_MIN_NORMAL / 2;
    CHECK(oq_byte_vectors_create(&context, 4, LENGTH, 0, &rows) == OQ_OK);
    oq_bytes_of_rows(&context, x, NULL, 4, LENGTH, &rows);
    CHECK(rows.scale[0] == 0 && isnan(rows.scale[1]) && isnan(rows.scale[2]));
    for (int i = 0; i < LENGTH; ++i) CHECK(rows.codes[i] == 0 && rows.codes[3 * LENGTH + i] == 0);
    oq_arena_destroy(context.arena);
}

static void transposes(int64_t rows, int64_t width, uint8_t flip) {
    oq_context context = new_context(2);
    for (int64_t i = 0; i < rows * width; ++i) bytes[i] = (uint8_t)rand();
    oq_transpose_bytes(&context, bytes, rows, width, flip, bytes_turned);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c)
            CHECK(bytes_turned[c * rows + r] == (uint8_t)(bytes[r * width + c] ^ flip));
    oq_arena_destroy(context.arena);
}

/* ---- products ------------------------------------------------------------------ */

/* Whole numbers of which 127 is the largest in every row and column: bytes hold them as they are. */
static void draw_whole(oq_real *to, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c)
            to[r * width + c] = (oq_real)(r % width == c || c % rows == r ? 127 : rand() % 255 - 127);
}

static bool close(oq_real found, double expected) {
    return fabs((double)found - expected) <= 1e-5 * (fabs(expected) + 1);
}

typedef struct {
    int64_t rows, in, out;
    oq_real dy[COUNT], w[COUNT], x[COUNT], dx[COUNT], dw[COUNT];
    int8_t centred[COUNT];
    uint8_t codes[COUNT];
    oq_real x_scale[MOST], w_scale[MOST];
    int32_t zero[MOST];
} linear;

/* Codes of so many bits and what they stand for; or, with none, whole numbers. */
static void draw_operands(linear *l, int bits) {
    draw_whole(l->dy, l->rows, l->out);
    draw_whole(l->w, l->out, l->in);
    draw_whole(l->x, l->rows, l->in);
    if (!bits) return;
    for (int64_t o = 0; o < l->out; ++o) {
        l->w_scale[o] = 0.5; /* a power of two: dy times it is as exact */
        for (int64_t i = o * l->in; i < (o + 1) * l->in; ++i) {
            l->centred[i] = (int8_t)(rand() % (1 << (bits - 1)) - rand() % (1 << (bits - 1)));
            l->w[i] = (oq_real)l->centred[i] * l->w_scale[o];
        }
    }
    for (int64_t r = 0; r < l->rows; ++r) {
        l->x_scale[r] = 0.25, l->zero[r] = rand() % (1 << bits);
        for (int64_t i = r * l->in; i < (r + 1) * l->in; ++i) {
            l->codes[i] = (uint8_t)(rand() % (1 << bits));
            l->x[i] = (oq_real)(l->codes[i] - l->zero[r]) * l->x_scale[r];
        }
    }
}

static void check_products(const linear *l, double before) {
    for (int64_t r = 0; r < l->rows; ++r)
        for (int64_t i = 0; i < l->in; ++i) {
            double sum = before;
            for (int64_t o = 0; o < l->out; ++o) sum += (double)l->dy[r * l->out + o] * (double)l->w[o * l->in + i];
            CHECK(close(l->dx[r * l->in + i], sum));
        }
    for (int64_t o = 0; o < l->out; ++o)
        for (int64_t i = 0; i < l->in; ++i) {
            double sum = before;
            for (int64_t r = 0; r < l->rows; ++r) sum += (double)l->dy[r * l->out + o] * (double)l->x[r * l->in + i];
            CHECK(close(l->dw[o * l->in + i], sum));
        }
}

static void what_bytes_hold_is_multiplied_exactly(int64_t rows, int64_t in, int64_t out, int bits, bool accumulate) {
    static linear l;
    oq_context context = new_context(2);
    l.rows = rows, l.in = in, l.out = out;
    draw_operands(&l, bits);
    oq_forms x_forms = {.real = l.x}, w_forms = {.real = l.w};
    if (bits) {
        x_forms = (oq_forms){.codes = l.codes, .scale = l.x_scale, .zero = l.zero, .most = (1 << bits) - 1};
        w_forms = (oq_forms){.centred = l.centred, .scale = l.w_scale, .most = 1 << (bits - 1)};
    }
    for (int i = 0; i < COUNT; ++i) l.dx[i] = l.dw[i] = 1000;
    CHECK(oq_byte_gradient_of_input(&context, l.dy, &w_forms, l.dx, rows, in, out, accumulate) == OQ_OK);
    oq_byte_gradient of;
    CHECK(oq_byte_gradient_of_weight(&context, l.dy, &x_forms, rows, in, out, &of) == OQ_OK);
    const int64_t upper = out / 3; /* in two lots */
    CHECK(oq_byte_gradient_rows(&context, &of, upper, out - upper, l.dw + upper * in, accumulate) == OQ_OK);
    CHECK(oq_byte_gradient_rows(&context, &of, 0, upper, l.dw, accumulate) == OQ_OK);
    check_products(&l, accumulate ? 1000 : 0);
    oq_arena_destroy(context.arena);
}

void test_byte_gradients(void) {
    odd_vectors_have_odd_scales();
    for (int i = 0; i < 40; ++i) {
        rounds_to_the_nearest_codes(1 + rand() % MOST, 1 + rand() % MOST);
        transposes(1 + rand() % MOST, 1 + rand() % MOST, i % 2 ? 0x80 : 0);
    }
    transposes(128, 64, 0);
    for (int i = 0; i < 20; ++i) {
        static const int bits[] = {0, 2, 4, 7, 8};
        what_bytes_hold_is_multiplied_exactly(1 + rand() % 67, 1 + rand() % 67, 1 + rand() % 67, bits[i % 5], i % 2);
    }
    what_bytes_hold_is_multiplied_exactly(130, 270, 258, 3, true);
    what_bytes_hold_is_multiplied_exactly(258, 130, 270, 0, false);
}
