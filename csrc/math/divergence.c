#include "math/divergence.h"

#include "base/parallel.h"
#include "math/cross_entropy.h"
#include "math/elementary.h"

#define LANES 16

typedef struct {
    const oq_two_logits *of;
    const oq_divergence *to;
} job;

/* sum_i exp(p_i - log_sum) (p_i - q_i) */
OQ_VECTORIZED static double mean_gap(const oq_real *p, const oq_real *q, double log_sum, int64_t n)
{
    const oq_real top = (oq_real)log_sum;
    double sums[LANES] = {0}, sum = 0;
    for (int64_t i = 0; i < n; i += LANES) {
        const int lanes = n - i < LANES ? (int)(n - i) : LANES;
        for (int l = 0; l < lanes; l++) sums[l] += (double)(oq_exp(p[i + l] - top) * (p[i + l] - q[i + l]));
    }
    for (int l = 0; l < LANES; l++) sum += sums[l];
    return sum;
}

static double divergence(const oq_real *p, const oq_real *q, double log_sum_p, double log_sum_q, int64_t n)
{
    return mean_gap(p, q, log_sum_p, n) - log_sum_p + log_sum_q;
}

OQ_VECTORIZED static void gap_backward(const oq_real *p, oq_real *q, double log_sum_p, double log_sum_q, int64_t n,
                                       oq_real share, double cap)
{
    const oq_real top_p = (oq_real)log_sum_p, top_q = (oq_real)log_sum_q;
    const oq_real inverse = cap ? (oq_real)(1 / cap) : 0;
    for (int64_t i = 0; i < n; i++) {
        const oq_real slope = 1 - q[i] * inverse * q[i] * inverse;
        q[i] = share * slope * (oq_exp(q[i] - top_q) - oq_exp(p[i] - top_p));
    }
}

double oq_row_divergence_backward(const oq_real *p, oq_real *q, int64_t n, oq_real share, double cap)
{
    const double log_sum_p = oq_row_log_sum(p, n), log_sum_q = oq_row_log_sum(q, n);
    const double kl = divergence(p, q, log_sum_p, log_sum_q, n);
    gap_backward(p, q, log_sum_p, log_sum_q, n, share, cap);
    return kl;
}

static void one_row(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t n = j->of->vocabulary;
    const oq_real *p = j->of->reference + item * n, *q = j->of->logits + item * n;
    const double log_sum_p = oq_row_log_sum(p, n), log_sum_q = oq_row_log_sum(q, n);
    const int32_t target = j->of->targets[item];
    (void)worker;
    j->to->kl[item] = divergence(p, q, log_sum_p, log_sum_q, n);
    j->to->reference_nll[item] = log_sum_p - (double)p[target];
    j->to->nll[item] = log_sum_q - (double)q[target];
    j->to->same[item] = oq_row_best(p, n) == oq_row_best(q, n);
}

oq_code oq_diverge(oq_context *context, const oq_two_logits *of, const oq_divergence *to)
{
    job j = {of, to};
    OQ_TRY(oq_check_targets(context, of->targets, of->rows, of->vocabulary));
    oq_parallel_for(context->threads, of->rows, one_row, &j);
    return OQ_OK;
}
