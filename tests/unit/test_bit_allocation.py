"""Bits for a budget: the allocation against every other one, and the sensitivities it is made from."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import small_model, small_tokens

from omniquant import QuantConfig
from omniquant.config.overrides import with_overrides
from omniquant.errors import ConfigError, NotFiniteError
from omniquant.forward import float_logits, run_block
from omniquant.mixed import allocate, choose_bits
from omniquant.mixed import knapsack as knapsack_module
from omniquant.mixed.plan import linear_names
from omniquant.mixed.sensitivity import measure, rounded
from omniquant.models.model import Model

CANDIDATES = [2, 3, 4, 8]
SCHEME = QuantConfig.parse("W4A16g8")


@st.composite
def problems(draw):
    """Draw up to six linears, candidates and a budget."""
    count = draw(st.integers(1, 6))
    bits = sorted(draw(st.sets(st.sampled_from([2, 3, 4, 5, 8, 16]), min_size=1, max_size=4)))
    sizes = draw(st.lists(st.integers(1, 12), min_size=count, max_size=count))
    unit = draw(st.sampled_from([1, 7, 64]))
    cost = st.floats(0, 10, allow_nan=False)
    costs = draw(
        st.lists(st.lists(cost, min_size=len(bits), max_size=len(bits)), min_size=count, max_size=count)
    )
    average = draw(st.floats(bits[0], bits[-1] + 1))
    return costs, [size * unit for size in sizes], bits, average


def spent(sizes, bits, chosen):
    return sum(size * bits[c] for size, c in zip(sizes, chosen, strict=True))


@settings(max_examples=300, deadline=None)
@given(problems())
def test_no_other_allocation_within_the_budget_costs_less(problem):
    costs, sizes, bits, average = problem
    chosen = choose_bits(costs, sizes, bits, average)
    total = sum(sizes)
    assert spent(sizes, bits, chosen) <= average * total * (1 + 1e-9)
    every = product(range(len(bits)), repeat=len(sizes))
    fits = [each for each in every if spent(sizes, bits, each) <= average * total * (1 + 1e-9)]
    least = min(sum(row[c] for row, c in zip(costs, each, strict=True)) for each in fits)
    found = sum(row[c] for row, c in zip(costs, chosen, strict=True))
    assert found == pytest.approx(least, rel=1e-12, abs=1e-300)


@settings(max_examples=100, deadline=None)
@given(problems(), st.floats(0, 3))
def test_more_bits_never_cost_more(problem, more):
    costs, sizes, bits, average = problem

    def cost(budget):
        chosen = choose_bits(costs, sizes, bits, budget)
        return sum(row[c] for row, c in zip(costs, chosen, strict=True))

    assert cost(average + more) <= cost(average) + 1e-12


def test_an_average_that_is_a_candidate_is_taken_by_all_where_costs_are_alike():
    costs = np.tile([8.0, 3.0, 1.0], (5, 1))
    assert choose_bits(costs, [10] * 5, [2, 3, 4], 3).tolist() == [1] * 5
    assert choose_bits(costs, [10] * 5, [2, 3, 4], 3.1).tolist() == [1] * 5  # not enough for one more


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0, 0.5]], [4], [3, 4], 2.5), ConfigError, "2.5 bits on average: the fewest are 3"),
        (([[1.0, np.nan]], [4], [3, 4], 3), ValueError, "finite"),
        (([[1.0, 0.5]], [4], [3, 4], np.inf), ValueError, "finite"),
        (([[1.0, 0.5]], [4], [4, 3], 3), ValueError, "1 linears at"),
        (([[1.0, 0.5]], [4, 4], [3, 4], 3), ValueError, "2 linears at"),
        (([], [], [], 3), ValueError, "0 linears"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        choose_bits(*arguments)


def test_a_table_that_would_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(knapsack_module, "_MOST_CELLS", 10)
    with pytest.raises(ConfigError, match="too many allocations"):
        choose_bits([[1.0, 0.5]] * 4, [7, 11, 13, 17], [3, 4], 3.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return small_model(tmp_path_factory.mktemp("model"))


def test_costs_are_the_divergence_shared_by_local_errors(model):
    """The estimates of a block's linears sum to the divergence of rounding them all, up to cross terms."""
    tokens = small_tokens(2, 12)
    found = measure(model, tokens, SCHEME, CANDIDATES, 3)
    assert found.names[:2] == ("layers.0.q", "layers.0.k")
    assert found.costs.shape == (14, 4)
    assert (found.costs >= 0).all()
    assert (np.diff(found.costs.sum(axis=0)) < 0).all()  # fewer bits, more divergence
    full = float_logits(model, tokens).astype(np.float64)
    x = model.embed(tokens)
    for layer in range(model.num_layers):
        weights = model.block(layer)
        if layer == 0:
            weights = rounded(weights, dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), 3), SCHEME)
        x = run_block(model, layer, weights, x)
    moved = model.ends().logits(x, model.lm_head()).astype(np.float64)
    p, q = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)) for logits in (full, moved))
    divergence = float((np.exp(p) * (p - q)).sum(-1).mean())
    estimated = found.costs[:7, 1].sum()
    assert estimated == pytest.approx(divergence, rel=0.7)
    # Of one linear alone: its share of the block's error.
    assert found.costs[:7, 1].max() < divergence


def test_a_linear_that_does_nothing_costs_nothing(model, monkeypatch):
    block = Model.block

    def silent(self, index):
        weights = dict(block(self, index))
        if index == 1:
            weights["down.weight"] = np.zeros_like(weights["down.weight"])
        return weights

    monkeypatch.setattr(Model, "block", silent)
    found = measure(model, small_tokens(), SCHEME, CANDIDATES, 3)
    costs = dict(zip(found.names, found.costs.tolist(), strict=True))
    assert max(costs["layers.1.down"] + costs["layers.1.gate"] + costs["layers.1.up"]) == 0
    assert min(costs["layers.0.down"]) > 0


def test_a_budget_is_kept_and_what_is_fixed_stays(model):
    scheme = with_overrides(SCHEME, ["layers.0.*=W8A16", "*.o=float"], linear_names(model))
    mixed, allocation = allocate(model, small_tokens(), scheme, 2.7, CANDIDATES)
    own = dict(mixed.overrides)
    assert {own[f"layers.0.{n}"].w_bits for n in ("q", "k", "v", "gate", "up", "down")} == {8}
    assert own["layers.0.o"].w_bits == own["layers.1.o"].w_bits == 16
    assert set(allocation.costs) == {f"layers.1.{n}" for n in ("q", "k", "v", "gate", "up", "down")}
    sizes = {"q": 256, "k": 128, "v": 128, "gate": 320, "up": 320, "down": 320}
    bits = sum(size * mixed.block(1)[name].bits for name, size in sizes.items())
    assert 2 < bits / sum(sizes.values()) <= 2.7
    assert all(mixed.block(1)[name].group_size == 8 for name in sizes)
    with pytest.raises(ConfigError, match="leave no linear"):
        allocate(model, small_tokens(), with_overrides(SCHEME, ["*=W8A16"], linear_names(model)), 3)


def test_measuring_does_not_depend_on_threads(model):
    one = measure(model, small_tokens(), SCHEME, CANDIDATES, 3, threads=1)
    three = measure(model, small_tokens(), SCHEME, CANDIDATES, 3, threads=3)
    np.testing.assert_array_equal(one.costs, three.costs)


def test_weights_that_are_no_numbers_are_named(model, monkeypatch):
    block = Model.block

    def broken(self, index):
        weights = dict(block(self, index))
        weights["up.weight"] = np.full_like(weights["up.weight"], np.nan)
        return weights

    monkeypatch.setattr(Model, "block", broken)
    with pytest.raises(NotFiniteError, match=r"block 0: up.weight"):
        measure(model, small_tokens(), SCHEME, CANDIDATES, 3)


@pytest.mark.parametrize(
    ("average", "candidates", "message"),
    [
        (3.5, [2, 9], "candidate bits"),
        (3.5, [], "candidate bits"),
        (16, [16], "at least one below 16"),
        (1.5, [2, 3], "lie outside the candidates 2, 3"),
        (5, [2, 3], "lie outside"),
        (float("nan"), [2, 3], "lie outside"),
        (3, [True, 3], "candidate bits"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(model, average, candidates, message):
    with pytest.raises(ConfigError, match=message):
        allocate(model, small_tokens(), SCHEME, average, candidates)
