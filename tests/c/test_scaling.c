/* A quantizer that applies diagonal maps gives what the scaled matrix written out gives. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "quant/fake_quantize.h"

enum { ROWS = 77, WIDTH = 83, COUNT = ROWS * WIDTH };

typedef struct {
    oq_real x[COUNT], written[COUNT], dout[COUNT], columns[WIDTH], rows[ROWS];
} matrix;

static void draw(oq_real *x, int64_t count, double low, double high) {
    for (int64_t i = 0; i < count; ++i) x[i] = (oq_real)(low + (high - low) * rand() / RAND_MAX);
}

static oq_scaling draw_matrix(matrix *m, bool columns, bool rows) {
    draw(m->x, COUNT, -1, 1), draw(m->dout, COUNT, -1, 1);
    draw(m->columns, WIDTH, 0.2, 3), draw(m->rows, ROWS, 0.2, 3);
    for (int i = 0; i < COUNT; ++i)
        m->written[i] = m->x[i] * (columns ? m->columns[i % WIDTH] : 1) * (rows ? m->rows[i / WIDTH] : 1);
    return (oq_scaling){columns ? m->columns : NULL, rows ? m->rows : NULL};
}

static void forward_is_that_of_the_written_matrix(const oq_groups *groups, bool columns, bool rows) {
    static matrix m;
    static oq_real here[COUNT], there[COUNT];
    static oq_range ranges[COUNT];
    oq_context context = new_context(2);
    const oq_clip clip = {.scaling = draw_matrix(&m, columns, rows)};
    CHECK(oq_fake_quantize_forward(&context, groups, clip, m.x, here, ranges) == OQ_OK);
    CHECK(oq_fake_quantize_forward(&context, groups, (oq_clip){0}, m.written, there, ranges) == OQ_OK);
    CHECK(!memcmp(here, there, sizeof here));
    oq_arena_destroy(context.arena);
}

static bool close(double found, double expected, double size) { return fabs(found - expected) <= 1e-5 * size; }

/* The chain rule on the written matrix's gradient g: x gets g columns rows, a column the sum of g x rows, ... */
static void backward_is_the_chain_rule(const oq_groups *groups, bool columns, bool rows) {
    static matrix m;
    static oq_real out[COUNT], dx[COUNT], dwritten[COUNT];
    static oq_range ranges[COUNT];
    double dcolumns[WIDTH] = {0}, drows[ROWS] = {0};
    oq_context context = new_context(2);
    const oq_scaling scaling = draw_matrix(&m, columns, rows);
    const oq_clip clip = {.scaling = scaling};
    CHECK(oq_fake_quantize_forward(&context, groups, (oq_clip){0}, m.written, out, ranges) == OQ_OK);
    CHECK(oq_fake_quantize_backward(&context, groups, (oq_clip){0}, m.written, ranges, m.dout, dwritten,
                                    (oq_clip_gradients){0}) == OQ_OK);
    CHECK(oq_fake_quantize_backward(&context, groups, clip, m.x, ranges, m.dout, dx,
                                    (oq_clip_gradients){.columns = dcolumns, .rows = drows}) == OQ_OK);
    for (int i = 0; i < COUNT; ++i) {
        const double g = (double)dwritten[i], c = columns ? (double)m.columns[i % WIDTH] : 1;
        const double r = rows ? (double)m.rows[i / WIDTH] : 1;
        CHECK(close((double)dx[i], g * c * r, 1 + fabs(g) * c * r));
        if (columns) dcolumns[i % WIDTH] -= g * (double)m.x[i] * r;
        if (rows) drows[i / WIDTH] -= g * (double)m.x[i] * c;
    }
    for (int c = 0; columns && c < WIDTH; ++c) CHECK(close(dcolumns[c], 0, 100));
    for (int r = 0; rows && r < ROWS; ++r) CHECK(close(drows[r], 0, 100));
    oq_arena_destroy(context.arena);
}

void test_scaling(void) {
    for (int form = 0; form < 8; ++form) {
        const oq_groups groups = {ROWS, WIDTH, form & 4 ? 16 : WIDTH, {.bits = 3 + form % 3}};
        forward_is_that_of_the_written_matrix(&groups, form & 1, form & 2);
        backward_is_the_chain_rule(&groups, form & 1, form & 2);
    }
}
