#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "check.h"
#include "kernels/linear.h"
#include "quant/pack.h"

enum { MOST_OUT = 70, MOST_IN = 300, ROWS = 9 };

typedef struct {
    oq_qlinear_spec spec;
    int64_t groups;
    uint8_t codes[MOST_OUT * MOST_IN], zeros[MOST_OUT * MOST_IN], stream[MOST_OUT * MOST_IN];
    float scales[MOST_OUT * MOST_IN], bias[MOST_OUT], x[ROWS * MOST_IN], y[ROWS * MOST_OUT], first[ROWS * MOST_OUT];
} layer;

static void draw(layer *l, int bits, int64_t out, int64_t in, int64_t group, int activation) {
    l->spec = (oq_qlinear_spec){.out = out, .in = in, .group = group, .bits = bits};
    l->spec.symmetric = out % 2 == 0;
    l->spec.bias = out % 3 == 0;
    l->spec.activation = (oq_quantizer){.bits = activation, .symmetric = in % 2 == 0};
    l->groups = (in + group - 1) / group;
    for (int64_t i = 0; i < out * in; ++i) l->codes[i] = (uint8_t)(rand() % (1 << bits));
    for (int64_t i = 0; i < out * l->groups; ++i) {
        l->zeros[i] = (uint8_t)(rand() % (1 << bits));
        l->scales[i] = (float)(1 + rand() % 100) / 64.0f;
    }
    for (int64_t i = 0; i < out; ++i) l->bias[i] = (float)(rand() % 100);
    for (int64_t i = 0; i < ROWS * in; ++i) l->x[i] = (float)(rand() % 2001 - 1000) / 8.0f;
}

/* y of the row and output in double, from what x is known to become: x within half a step. */
static double plain(const layer *l, int64_t row, int64_t n, double *size) {
    const oq_qlinear_spec *s = &l->spec;
    double sum = s->bias ? (double)l->bias[n] : 0;
    *size = fabs(sum);
    for (int64_t k = 0; k < s->in; ++k) {
        const int64_t g = n * l->groups + k / s->group;
        const int zero = s->symmetric ? 1 << (s->bits - 1) : l->zeros[g];
        const double w = (l->codes[n * s->in + k] - zero) * (double)l->scales[g];
        sum += w * (double)l->x[row * s->in + k];
        *size += fabs(w) * 125;
    }
    return sum;
}

static void check_values(const layer *l, const float *y) {
    /* A step at the end of the grid: half by rounding, half where the zero point was rounded. */
    const int bits = l->spec.activation.bits;
    const double tolerance = bits == 32 ? 1e-6 : bits == 16 ? 0.501 / 32512 : 2.2 / (1 << bits);
    int64_t wrong = 0;
    for (int64_t row = 0; row < ROWS; ++row) {
        for (int64_t n = 0; n < l->spec.out; ++n) {
            double size;
            const double expected = plain(l, row, n, &size);
            wrong += !(fabs((double)y[row * l->spec.out + n] - expected) <= tolerance * size);
        }
    }
    CHECK(wrong == 0);
}

/* Packed from codes or from their bit streams, by every kernel: the same bits. */
static void check_layer(oq_context *context, layer *l, bool dense) {
    oq_qlinear q;
    size_t bytes;
    CHECK(oq_pack(context, l->codes, l->spec.out, l->spec.in, l->spec.bits, l->stream) == OQ_OK);
    const oq_qlinear_source source = {.codes = dense ? l->stream : l->codes,
                                      .dense = dense,
                                      .scales = l->scales,
                                      .zero_points = l->spec.symmetric ? NULL : l->zeros,
                                      .bias = l->spec.bias ? l->bias : NULL};
    CHECK(oq_qlinear_bytes(context, &l->spec, &bytes) == OQ_OK);
    void *memory = oq_malloc(bytes);
    CHECK(oq_qlinear_pack(context, &l->spec, &source, memory, &q) == OQ_OK);
    for (int i = 0; oq_kernel_name(i); ++i) {
        CHECK(oq_qlinear_use(context, &q, oq_kernel_name(i)) == OQ_OK);
        CHECK(oq_qlinear_run(context, &q, l->x, ROWS, l->y) == OQ_OK);
        if (i == 0 && !dense) {
            check_values(l, l->y);
            memcpy(l->first, l->y, sizeof l->y);
        }
        CHECK(memcmp(l->first, l->y, (size_t)(ROWS * l->spec.out) * sizeof(float)) == 0);
    }
    oq_free(memory);
}

static void check_shared(oq_context *context, layer *l) {
    oq_qlinear q, other;
    oq_activations a;
    size_t bytes;
    const oq_qlinear_source source = {.codes = l->codes, .scales = l->scales};
    draw(l, 4, 48, 96, 32, 8);
    l->spec.bias = false;
    CHECK(oq_qlinear_bytes(context, &l->spec, &bytes) == OQ_OK);
    void *memory = oq_malloc(bytes);
    CHECK(oq_qlinear_pack(context, &l->spec, &source, memory, &q) == OQ_OK);
    CHECK(oq_qlinear_run(context, &q, l->x, ROWS, l->first) == OQ_OK);
    CHECK(oq_qlinear_quantize(context, &q, l->x, ROWS, &a) == OQ_OK);
    CHECK(oq_qlinear_apply(context, &q, &a, l->y) == OQ_OK);
    CHECK(memcmp(l->first, l->y, ROWS * 48 * sizeof(float)) == 0);
    other = q;
    CHECK(oq_qlinear_shares(&q, &other));
    other.layout.group = 64;
    CHECK(!oq_qlinear_shares(&q, &other));
    other = q;
    other.spec.activation.bits = 4;
    CHECK(!oq_qlinear_shares(&q, &other));
    oq_free(memory);
}

static void check_refusals(oq_context *context) {
    const oq_qlinear_spec sound = {.out = 4, .in = 4, .group = 4, .bits = 4, .activation = {.bits = 8}};
    oq_qlinear_spec spec[6] = {sound, sound, sound, sound, sound, sound};
    size_t bytes;
    spec[0].bits = 9;
    spec[1].group = 0;
    spec[2].group = 5;
    spec[3].activation.bits = 12;
    spec[4].out = (int64_t)1 << 40;
    spec[5].in = -1;
    CHECK(oq_qlinear_bytes(context, &sound, &bytes) == OQ_OK && bytes % 64 == 0);
    for (int i = 0; i < 6; ++i) CHECK(oq_qlinear_bytes(context, &spec[i], &bytes) == OQ_INVALID_ARGUMENT);
}

void test_kernels(void) {
    static const int64_t shapes[][3] = {{1, 1, 1}, {16, 64, 64}, {17, 131, 33}, {66, 300, 300}, {70, 129, 7}};
    static layer l; /* too large for the stack */
    oq_context context = new_context(2);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i) {
        for (int bits = 2; bits <= 8; ++bits) {
            draw(&l, bits, shapes[i][0], shapes[i][1], shapes[i][2], 4 << (i + (size_t)bits) % 4);
            check_layer(&context, &l, false);
            check_layer(&context, &l, true);
        }
    }
    check_shared(&context, &l);
    check_refusals(&context);
    oq_arena_destroy(context.arena);
}
