"""Choosing tokens: greedy, temperature, top-k, top-p, against probabilities computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from omniquant.errors import ConfigError, NotFiniteError
from omniquant.runtime.sampling import Sampler, SamplingOptions

RNG = np.random.default_rng(11)
LOGITS = (RNG.standard_normal(50) * 2).astype(np.float32)


def draws(count=4000, logits=LOGITS, **options):
    sampler = Sampler(SamplingOptions(**options))
    return np.array([sampler(logits) for _ in range(count)])


def probabilities(temperature):
    weights = np.exp(LOGITS.astype(np.float64) / temperature)
    return weights / weights.sum()


def test_greedy_takes_the_first_of_the_largest():
    assert set(draws(3)) == {int(np.argmax(LOGITS))}
    assert draws(1, np.array([0, 3, 1, 3], np.float32)) == [1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_gives_the_softmax(temperature):
    found = np.bincount(draws(20000, temperature=temperature, seed=1), minlength=50) / 20000
    np.testing.assert_allclose(found, probabilities(temperature), atol=0.015)


@pytest.mark.parametrize("k", [1, 3, 50, 99])
def test_top_k_leaves_the_k_likeliest(k):
    likeliest = set(np.argsort(-LOGITS)[:k].tolist())
    found = set(draws(temperature=20.0, top_k=k).tolist())
    assert found == likeliest


def test_of_equals_top_k_takes_the_first():
    logits = np.zeros(9, np.float32)
    assert set(draws(200, logits, temperature=1.0, top_k=3).tolist()) == {0, 1, 2}
    assert set(draws(200, logits, temperature=1.0, top_p=0.3).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.9, 0.999])
def test_top_p_leaves_the_fewest_that_reach_p(p):
    chances = probabilities(2.0)
    order = np.argsort(-chances)
    count = int(np.argmax(np.cumsum(chances[order]) >= p)) + 1
    expected = order[:count]
    found = draws(30000, temperature=2.0, top_p=p, seed=3)
    assert set(found.tolist()) <= set(expected.tolist())
    shares = np.bincount(found, minlength=50)[expected] / 30000
    np.testing.assert_allclose(shares, chances[expected] / chances[expected].sum(), atol=0.015)


def test_same_seed_same_draws():
    options = {"temperature": 1.0, "top_p": 0.95, "top_k": 40}
    np.testing.assert_array_equal(draws(100, seed=5, **options), draws(100, seed=5, **options))
    assert (draws(100, seed=5, **options) != draws(100, seed=6, **options)).any()


def test_huge_logits_do_not_overflow():
    logits = np.array([3e38, -3e38, 0], np.float32)
    assert set(draws(20, logits, temperature=1e-3)) == {0}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_is_an_error(bad):
    logits = LOGITS.copy()
    logits[7] = bad
    with pytest.raises(NotFiniteError, match="token 7"):
        Sampler(SamplingOptions())(logits)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"top_k": True},
        {"seed": -3},
        {"seed": 1.5},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        SamplingOptions(**options)
