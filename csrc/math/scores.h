/* What the products of queries and keys go through before the softmax, and which keys a query sees.  A rule of
 * zeros is plain causal attention. */
#ifndef OQ_MATH_SCORES_H
#define OQ_MATH_SCORES_H

#include "math/elementary.h"

typedef struct {
    double scale;   /* of the products; 0: 1 / sqrt(head_dim) */
    double cap;     /* a score becomes cap tanh(score / cap); 0: it stays (Gemma 2) */
    int64_t window; /* a token sees itself and the window - 1 before it; 0: all before it */
    bool alibi;     /* a score falls by its head's slope a token of distance (Press et al. 2022) */
} oq_score_rule;

static inline double oq_score_scale(const oq_score_rule *rule, int64_t head_dim)
{
    return rule->scale != 0 ? rule->scale : 1 / sqrt((double)head_dim);
}

/* Whether scores are more than scaled products. */
static inline bool oq_has_shaped_scores(const oq_score_rule *rule) { return rule->cap != 0 || rule->alibi; }

/* The first key a token at `position` sees. */
static inline int64_t oq_first_key(const oq_score_rule *rule, int64_t position)
{
    return rule->window && position >= rule->window ? position - rule->window + 1 : 0;
}

/* A geometric row that starts at its own ratio, 2^(-8/p) for the largest power of two p <= heads; heads beyond p
 * take every other one of the row of 2 p. */
static inline double oq_alibi_slope(const oq_score_rule *rule, int64_t head, int64_t heads)
{
    int64_t p = 1;
    while (2 * p <= heads) p *= 2;
    if (!rule->alibi) return 0;
    const double exponent = head < p ? (double)(head + 1) / (double)p : (double)(2 * (head - p) + 1) / (double)(2 * p);
    return exp2(-8 * exponent);
}

/* The scaled product of a query and a key `distance` tokens before it, as a score; *slope is its derivative. */
OQ_INLINE oq_real oq_shaped_score(const oq_score_rule *rule, oq_real alibi, int64_t distance, oq_real product,
                                  oq_real *slope)
{
    const oq_real cap = (oq_real)rule->cap, bent = cap != 0 ? oq_tanh(product / cap) : 0;
    *slope = cap != 0 ? 1 - bent * bent : 1;
    return (cap != 0 ? cap * bent : product) - alibi * (oq_real)distance;
}

#endif
