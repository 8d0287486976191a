/* sched_yield is POSIX, not C11. */
#define _POSIX_C_SOURCE 200809L

#include "base/team.h"

#ifndef _WIN32
#include <sched.h>
#define YIELD() ((void)sched_yield())
#else
#define YIELD() ((void)0)
#endif

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

enum { SPINS = 4096 }; /* then the processor is offered to others: they may hold the item we wait for */

static void wait_a_little(int *spins)
{
    if (*spins < SPINS) {
        ++*spins;
        PAUSE();
    } else {
        YIELD();
    }
}

void oq_team_open(oq_team *team)
{
    atomic_init(&team->ticket, 0);
    atomic_init(&team->count, 0);
    atomic_init(&team->done, 0);
    atomic_init(&team->body, NULL);
    atomic_init(&team->user, NULL);
    atomic_init(&team->workers, 0);
    atomic_init(&team->closed, false);
}

void oq_team_close(oq_team *team) { atomic_store(&team->closed, true); }

/* Take and do one item; false when none is left or it is not for this worker. */
static bool do_one(oq_team *team, int worker)
{
    uint64_t ticket = atomic_load(&team->ticket);
    for (;;) {
        const int64_t left = (int64_t)(ticket & UINT32_MAX);
        if (left == 0 || worker >= atomic_load(&team->workers)) return false;
        const int64_t item = atomic_load(&team->count) - left;
        const oq_parallel_body body = atomic_load(&team->body);
        void *const user = atomic_load(&team->user);
        if (!atomic_compare_exchange_weak(&team->ticket, &ticket, ticket - 1)) continue;
        body(user, item, worker);
        atomic_fetch_add(&team->done, 1);
        return true;
    }
}

void oq_team_run(oq_team *team, int workers, int64_t count, oq_parallel_body body, void *user)
{
    const uint64_t generation = (atomic_load(&team->ticket) >> 32) + 1;
    int spins = 0;
    atomic_store(&team->done, 0);
    atomic_store(&team->count, count);
    atomic_store(&team->body, body);
    atomic_store(&team->user, user);
    atomic_store(&team->workers, workers);
    atomic_store(&team->ticket, generation << 32 | (uint64_t)count);
    while (do_one(team, 0)) continue;
    while (atomic_load(&team->done) < count) wait_a_little(&spins);
}

void oq_team_serve(oq_team *team, int worker)
{
    int spins = 0;
    while (!atomic_load(&team->closed))
        if (do_one(team, worker))
            spins = 0;
        else
            wait_a_little(&spins);
}
