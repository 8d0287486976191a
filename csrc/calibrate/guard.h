/* The Levy-Desplanques check of every affine map, after each step and before folding. */
#ifndef OQ_CALIBRATE_GUARD_H
#define OQ_CALIBRATE_GUARD_H

#include "calibrate/adamw.h"

/* The maps a guard watches; entry[i] of the list holds the parameters of maps[i] (-1: of kind none). */
typedef struct {
    oq_map *maps;
    const char *const *names;
    const int *entry;
    int count, factors; /* from `factors` on, left and right factors of Kronecker maps in turn */
    const oq_learnables *list;
    const oq_options *options;
    char where[32]; /* "block 3", "layer": for messages */
} oq_guarded;

typedef struct {
    bool any_affine;   /* no dense map: the figures below mean nothing */
    double min_margin; /* smallest over all steps and rows */
    int64_t rows_projected, steps_rejected;
    int worst_map; /* where min_margin was seen */
    int64_t worst_head, worst_row;
} oq_dominance_report;

typedef struct {
    oq_real *theta, *m, *v; /* [adaptive] the state before the step, for the policy reject */
    oq_dominance_report report;
} oq_guard;

oq_code oq_guard_create(oq_context *context, oq_guard *guard, const oq_guarded *t);
/* Keep the state before an optimiser step. */
void oq_guard_remember(oq_guard *guard, const oq_guarded *t, const oq_adamw *adamw, const oq_real *theta);
/* Floors, check and policy, on the parameters a step has just made; its maps hold the mask of the epoch. */
oq_code oq_guard_after_step(oq_context *context, oq_guard *guard, const oq_guarded *t, oq_adamw *adamw,
                            oq_real *theta, int64_t epoch, int64_t step);
/* The check before folding: the maps must be strictly dominant unless the policy is monitor.
 * max_condition and varah_bound over all blocks of all maps, in the infinity norm. */
oq_code oq_guard_before_fold(oq_context *context, oq_guard *guard, const oq_guarded *t, double *max_condition,
                             double *varah_bound);

#endif
