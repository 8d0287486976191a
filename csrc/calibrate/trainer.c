#include "calibrate/trainer.h"

#include <string.h>

#include "base/parallel.h"
#include "calibrate/sample_order.h"
#include "calibrate/signed_descent.h"

#define PI 3.14159265358979323846

typedef struct {
    const oq_objective *objective;
    const oq_guarded *guarded;
    const oq_hooks *hooks;
    oq_adamw adamw;
    oq_guard guard;
    oq_real *theta, *dtheta, *best; /* [total] */
    double best_loss;
    double lowest;  /* training loss of an epoch that made progress */
    int64_t idle;   /* epochs since then */
    int64_t *order; /* [items] */
    int64_t steps;
} training;

static oq_code create(oq_context *context, training *t, const oq_real *initial)
{
    const oq_learnables *list = t->guarded->list;
    OQ_NEW(context, t->theta, list->total);
    OQ_NEW(context, t->dtheta, list->total);
    if (t->guarded->options->best_iterate) OQ_NEW(context, t->best, list->total);
    OQ_NEW(context, t->order, t->objective->items);
    memcpy(t->theta, initial, sizeof *initial * (size_t)list->total);
    OQ_TRY(oq_adamw_create(context, &t->adamw, list));
    return oq_guard_create(context, &t->guard, t->guarded);
}

static double schedule(const oq_options *options, int64_t step, int64_t steps)
{
    return options->cosine ? 0.5 * (1 + cos(PI * (double)step / (double)steps)) : 1;
}

/* One of the objective's passes over items. */
typedef struct {
    oq_context *context;
    const oq_objective *objective;
    const oq_real *theta;
    oq_real *dtheta; /* NULL: only the loss is wanted, of all items */
    int64_t epoch, count;
    const int64_t *items;
    double *loss;
    oq_code code;
} pass;

static void lead(void *user)
{
    pass *p = user;
    const oq_objective *o = p->objective;
    p->code = p->dtheta ? o->gradients(p->context, o->user, p->theta, p->epoch, p->items, p->count, p->dtheta, p->loss)
                        : o->evaluate(p->context, o->user, p->theta, p->epoch, p->loss);
}

/* Its loops are many and short: threads stay awake between them. */
static oq_code run(pass p)
{
    oq_parallel_team(p.context->threads, lead, &p);
    return p.code;
}

static oq_code take_step(oq_context *context, training *t, int64_t epoch, int64_t step, const int64_t *items,
                         int64_t count, double *loss)
{
    const oq_learnables *list = t->guarded->list;
    const oq_options *options = t->guarded->options;
    memset(t->dtheta, 0, sizeof *t->dtheta * (size_t)list->total);
    OQ_TRY(run((pass){.context = context,
                      .objective = t->objective,
                      .theta = t->theta,
                      .dtheta = t->dtheta,
                      .epoch = epoch,
                      .count = count,
                      .items = items,
                      .loss = loss}));
    if (!isfinite(*loss))
        return oq_fail(context, OQ_NOT_FINITE, "%s epoch %lld step %lld: the loss is %g", t->guarded->where,
                       (long long)epoch, (long long)step, *loss);
    if (t->hooks->reduce) OQ_TRY(t->hooks->reduce(t->hooks->user, t->dtheta, list->total));
    oq_guard_remember(&t->guard, t->guarded, &t->adamw, t->theta);
    const double now = schedule(options, step, t->steps);
    oq_adamw_step(&t->adamw, list, options, now, t->dtheta, t->theta);
    oq_signed_step(list, options->lr_rounding * now / (double)t->steps, t->dtheta, t->theta);
    OQ_TRY(oq_guard_after_step(context, &t->guard, t->guarded, &t->adamw, t->theta, epoch, step));
    if (!t->hooks->on_step) return OQ_OK;
    const oq_progress progress = {epoch, step, *loss, t->guard.report.min_margin};
    return t->hooks->on_step(t->hooks->user, &progress);
}

/* How many items the step has whose first is at `first`. */
static int64_t batch(const training *t, int64_t first)
{
    const int64_t left = t->objective->items - first, most = t->guarded->options->batch_size;
    return left < most ? left : most;
}

static void announce(const training *t, int64_t first)
{
    const oq_objective *o = t->objective;
    if (o->next && first < o->items) o->next(o->user, t->order + first, batch(t, first));
}

static void keep_best(training *t, double loss)
{
    if (!t->guarded->options->best_iterate || !(loss < t->best_loss)) return;
    t->best_loss = loss;
    memcpy(t->best, t->theta, sizeof *t->best * (size_t)t->guarded->list->total);
}

/* Less than this part of the loss won by an epoch is a plateau. */
#define PROGRESS 1e-3

static bool stalls(training *t, double loss)
{
    const int64_t patience = t->guarded->options->patience;
    t->idle++;
    if (loss < t->lowest * (1 - PROGRESS)) {
        t->lowest = loss;
        t->idle = 0;
    }
    return patience && t->idle >= patience;
}

static oq_code train(oq_context *context, training *t, oq_calibration_result *result)
{
    const oq_options *o = t->guarded->options;
    const int64_t N = t->objective->items, per_epoch = (N + o->batch_size - 1) / o->batch_size;
    t->steps = o->epochs * per_epoch;
    for (int64_t epoch = 0; epoch < o->epochs; epoch++) {
        double sum = 0;
        oq_sample_order(o->seed, o->block, epoch, o->shuffle, t->order, N);
        for (int64_t k = 0; k < per_epoch; k++) {
            const int64_t first = k * o->batch_size, count = batch(t, first);
            double loss;
            OQ_TRY(oq_check_cancel(context));
            announce(t, first + count);
            OQ_TRY(take_step(context, t, epoch, epoch * per_epoch + k, t->order + first, count, &loss));
            sum += loss;
        }
        result->trace[epoch] = sum / (double)per_epoch;
        keep_best(t, result->trace[epoch]);
        result->epochs = epoch + 1;
        result->steps = result->epochs * per_epoch;
        if (t->hooks->on_epoch) OQ_TRY(t->hooks->on_epoch(t->hooks->user, epoch, t->theta));
        if (stalls(t, result->trace[epoch])) break;
    }
    return OQ_OK;
}

static oq_code evaluate(oq_context *context, const training *t, const oq_real *theta, double *loss)
{
    return run((pass){.context = context,
                      .objective = t->objective,
                      .theta = theta,
                      .epoch = t->guarded->options->epochs - 1,
                      .loss = loss});
}

static void take(oq_calibration_result *result, const oq_real *theta, int64_t total, double loss, oq_kept kept)
{
    memcpy(result->theta, theta, sizeof *theta * (size_t)total);
    result->loss_final = loss;
    result->kept = kept;
}

/* The trained iterate, unless its own start or plain rounding were better on the calibration loss. */
static oq_code choose(oq_context *context, const training *t, const oq_real *initial, const oq_real *rtn,
                      oq_calibration_result *result)
{
    const int64_t total = t->guarded->list->total;
    double loss;
    OQ_TRY(evaluate(context, t, t->theta, &loss));
    take(result, t->theta, total, loss, OQ_KEPT_FINAL);
    if (isfinite(t->best_loss)) {
        OQ_TRY(evaluate(context, t, t->best, &loss));
        if (!(result->loss_final <= loss)) take(result, t->best, total, loss, OQ_KEPT_BEST);
    }
    if (!(result->loss_final <= result->loss_initial))
        take(result, initial, total, result->loss_initial, OQ_KEPT_INITIAL);
    if (!(result->loss_final <= result->loss_rtn)) take(result, rtn, total, result->loss_rtn, OQ_KEPT_RTN);
    return OQ_OK;
}

oq_code oq_train(oq_context *context, const oq_objective *objective, const oq_guarded *guarded,
                 const oq_hooks *hooks, const oq_real *initial, const oq_real *rtn, oq_calibration_result *result)
{
    training t = {.objective = objective, .guarded = guarded, .hooks = hooks};
    t.best_loss = t.lowest = INFINITY;
    OQ_TRY(create(context, &t, initial));
    OQ_TRY(evaluate(context, &t, rtn, &result->loss_rtn));
    OQ_TRY(evaluate(context, &t, initial, &result->loss_initial));
    OQ_TRY(train(context, &t, result));
    OQ_TRY(choose(context, &t, initial, rtn, result));
    OQ_TRY(objective->apply(context, objective->user, result->theta, guarded->options->epochs - 1));
    OQ_TRY(oq_guard_before_fold(context, &t.guard, guarded, &result->max_condition, &result->varah_bound));
    result->dominance = t.guard.report;
    return OQ_OK;
}
