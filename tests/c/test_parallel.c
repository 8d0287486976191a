#include <stdatomic.h>
#include <stdbool.h>

#include "base/parallel.h"
#include "check.h"

enum { ITEMS = 1000 };

typedef struct {
    atomic_int done[ITEMS];
    atomic_int nested;
    atomic_bool worker_out_of_range, left_the_thread;
    int threads;
} record;

static _Thread_local int marker;

static void count_nested(void *user, int64_t item, int worker) {
    record *seen = user;
    (void)item, (void)worker;
    if (marker != 1) atomic_store(&seen->left_the_thread, true);
    atomic_fetch_add(&seen->nested, 1);
}

static void count(void *user, int64_t item, int worker) {
    record *seen = user;
    if (worker < 0 || worker >= seen->threads) atomic_store(&seen->worker_out_of_range, true);
    atomic_fetch_add(&seen->done[item], 1);
    if (item % 100 == 0) {
        marker = 1;
        oq_parallel_for(4, 10, count_nested, seen);
        marker = 0;
    }
}

static void every_item_once(int threads, int64_t items) {
    static record seen;
    seen = (record){.threads = threads < 1 ? 1 : threads};
    oq_parallel_for(threads, items, count, &seen);
    for (int64_t i = 0; i < ITEMS; ++i) CHECK(atomic_load(&seen.done[i]) == (i < items));
    CHECK(!atomic_load(&seen.worker_out_of_range));
    CHECK(!atomic_load(&seen.left_the_thread)); /* nested loops stay on their thread */
    CHECK(atomic_load(&seen.nested) == (items + 99) / 100 * 10);
}

typedef struct {
    int threads;
    atomic_long sum;
    atomic_bool worker_out_of_range;
} tally;

static void add_item(void *user, int64_t item, int worker) {
    tally *t = user;
    if (worker < 0 || worker >= t->threads) atomic_store(&t->worker_out_of_range, true);
    atomic_fetch_add(&t->sum, (long)item + 1);
}

/* Thousands of loops of all sizes, also nested teams and loops for fewer threads than the team has. */
static void many_loops(void *user) {
    tally *t = user;
    const int all = t->threads;
    for (int64_t items = 0; items < 2000; ++items) {
        t->threads = items % 3 ? all : 1;
        atomic_store(&t->sum, 0);
        oq_parallel_for(t->threads, items % 17, add_item, t);
        CHECK(atomic_load(&t->sum) == (items % 17) * (items % 17 + 1) / 2);
    }
    t->threads = all;
}

static void nested_team(void *user) {
    tally *t = user;
    oq_parallel_team(t->threads, many_loops, t);
    every_item_once(t->threads, ITEMS);
}

static void teams(void) {
    const int threads[] = {1, 2, 3, 8};
    for (size_t i = 0; i < sizeof threads / sizeof *threads; ++i) {
        static tally t;
        t = (tally){.threads = threads[i]};
        oq_parallel_team(threads[i], many_loops, &t);
        oq_parallel_team(threads[i], nested_team, &t);
        CHECK(!atomic_load(&t.worker_out_of_range));
    }
}

void test_parallel(void) {
    teams();
    const int threads[] = {1, 2, 3, 8, 0};
    for (size_t i = 0; i < sizeof threads / sizeof *threads; ++i) {
        every_item_once(threads[i], ITEMS);
        every_item_once(threads[i], 1);
        every_item_once(threads[i], 0);
    }
    CHECK(oq_parallel_default_threads() >= 1);
}
