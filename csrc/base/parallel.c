/* pthread_atfork is POSIX, not C11. */
#define _POSIX_C_SOURCE 200809L

#include "base/parallel.h"

#ifdef _OPENMP

#include <omp.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/team.h"

#ifndef _WIN32
#include <pthread.h>
#endif

/* libgomp's threads do not survive a fork, and a child that starts a region
 * after its parent did waits for them for ever: such a child runs serially. */
static atomic_bool used_threads;
static atomic_bool lost_threads;

/* Inside a body of oq_parallel_for.  omp_in_parallel() cannot tell: it is false
 * in a region of one thread. */
static _Thread_local bool inside;

#ifndef _WIN32
static void in_child(void)
{
    if (atomic_load(&used_threads)) atomic_store(&lost_threads, true);
}

static void watch_forks(void)
{
    if (!atomic_exchange(&used_threads, true)) pthread_atfork(NULL, NULL, in_child);
}
#else
static void watch_forks(void) {}
#endif

static void run_serially(int64_t count, oq_parallel_body body, void *user)
{
    for (int64_t item = 0; item < count; ++item) body(user, item, 0);
}

static void run_alone(int64_t count, oq_parallel_body body, void *user)
{
    inside = true;
    run_serially(count, body, user);
    inside = false;
}

static void run_team(int threads, int64_t count, oq_parallel_body body, void *user)
{
    watch_forks();
#pragma omp parallel num_threads(threads)
    {
        const int worker = omp_get_thread_num();
        inside = true;
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < count; ++item) body(user, item, worker);
        inside = false;
    }
}

/* The team this thread leads, NULL outside of oq_parallel_team. */
static _Thread_local oq_team *led;

typedef struct {
    oq_parallel_body body;
    void *user;
} marked;

/* An item by a member of a team: loops inside it are serial, as everywhere. */
static void run_marked(void *user, int64_t item, int worker)
{
    const marked *job = user;
    inside = true;
    job->body(job->user, item, worker);
    inside = false;
}

void oq_parallel_team(int threads, void (*lead)(void *user), void *user)
{
    if (threads <= 1 || inside || led || omp_in_parallel() || atomic_load(&lost_threads)) {
        lead(user);
        return;
    }
    oq_team team;
    oq_team_open(&team);
    watch_forks();
#pragma omp parallel num_threads(threads)
    {
        const int worker = omp_get_thread_num();
        if (worker > 0) {
            oq_team_serve(&team, worker);
        } else {
            led = &team;
            lead(user);
            led = NULL;
            oq_team_close(&team);
        }
    }
}

void oq_parallel_for(int threads, int64_t count, oq_parallel_body body, void *user)
{
    if (count < threads) threads = (int)count;
    if (inside) {
        run_serially(count, body, user);
    } else if (led && threads > 1 && count < INT32_MAX) {
        oq_team_run(led, threads, count, run_marked, &(marked){body, user});
    } else if (threads <= 1 || omp_in_parallel() || atomic_load(&lost_threads)) {
        run_alone(count, body, user);
    } else {
        run_team(threads, count, body, user);
    }
}

int oq_parallel_default_threads(void) { return omp_get_max_threads(); }

#else

void oq_parallel_for(int threads, int64_t count, oq_parallel_body body, void *user)
{
    (void)threads;
    for (int64_t item = 0; item < count; ++item) body(user, item, 0);
}

void oq_parallel_team(int threads, void (*lead)(void *user), void *user)
{
    (void)threads;
    lead(user);
}

int oq_parallel_default_threads(void) { return 1; }

#endif
