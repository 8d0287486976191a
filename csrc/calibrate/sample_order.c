#include "calibrate/sample_order.h"

/* splitmix64 (Steele, Lea, Flood 2014): a full-period mixer, enough for shuffling. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

void oq_sample_order(uint64_t seed, int64_t block, int64_t epoch, bool shuffle, int64_t *order, int64_t count)
{
    for (int64_t i = 0; i < count; i++) order[i] = i;
    if (!shuffle) return;
    uint64_t state = seed;
    state = next_random(&state) + (uint64_t)block;
    state = next_random(&state) + (uint64_t)epoch;
    for (int64_t i = count - 1; i > 0; i--) {
        const int64_t j = (int64_t)(next_random(&state) % (uint64_t)(i + 1));
        const int64_t moved = order[i];
        order[i] = order[j];
        order[j] = moved;
    }
}
