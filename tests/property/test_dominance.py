"""Row 10 of the reliability figures: dominance under adversarial rows and steps, Varah's bound, inverses."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import omniquant as oq

F64 = npt.NDArray[np.float64]


def margins(a: F64) -> F64:
    """The plain formula."""
    diagonal = np.abs(np.diagonal(a, axis1=-2, axis2=-1))
    return 2 * diagonal - np.abs(a).sum(axis=-1)


def adversarial(rng: np.random.Generator, blocks: int, n: int) -> F64:
    """Return blocks whose rows are far from dominant, barely weak, barely dominant, or of one giant."""
    a = rng.standard_normal((blocks, n, n))
    rows = np.arange(n)
    diagonal = rng.choice([-1, 1], (blocks, n)) * 10.0 ** rng.uniform(-30, 30, (blocks, n))
    kind = rng.integers(0, 5, (blocks, n))
    a[:, rows, rows] = 0
    sums = np.abs(a).sum(axis=2) + (n == 1)
    edge = np.choose(np.minimum(kind, 2), [1 - 1e-15, 1 + 1e-15, 3.0])
    a *= (np.abs(diagonal) / sums * edge)[:, :, None]
    a *= np.where(kind == 3, 1e10, 1.0)[:, :, None]
    giant = kind == 4
    a[:, :, -1] = np.where(giant, np.sign(a[:, :, -1]) * 1e5 * np.abs(diagonal), a[:, :, -1])
    a[:, rows, rows] = diagonal
    return a


@pytest.mark.parametrize("n", [1, 2, 3, 8, 33])
def test_a_hundred_thousand_adversarial_rows_are_dominant_once_projected(n: int) -> None:
    rng = np.random.default_rng(n)
    a = adversarial(rng, 25_000 // n + 1, n)
    for tau in (0.05, 1e-6, 0.9):
        projected, changed = oq.project_dominant(a, tau)
        diagonal = np.abs(np.diagonal(a, axis1=1, axis2=2))
        after = oq.dominance_margins(projected)
        assert (after > 0).all()
        assert (after >= tau * diagonal * (1 - 1e-6) - 1e-12 * diagonal).all()
        weak = margins(a) < tau * diagonal
        slack = np.abs(margins(a) - tau * diagonal) < 1e-12 * diagonal
        assert (weak & ~slack).sum() <= changed <= (weak | slack).sum()
        kept = ~(weak | slack)
        np.testing.assert_array_equal(projected[kept], a[kept])
        np.testing.assert_array_equal(
            np.diagonal(projected, axis1=1, axis2=2), np.diagonal(a, axis1=1, axis2=2)
        )
        signs = (projected == 0) | (np.sign(projected) == np.sign(a))
        assert signs.all()


def test_margins_are_the_plain_formula() -> None:
    a = np.random.default_rng(0).standard_normal((50, 20, 20))
    np.testing.assert_allclose(oq.dominance_margins(a), margins(a), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(oq.dominance_margins(a[0]), margins(a[0]), rtol=1e-12, atol=1e-12)


def check_inverse(a: F64, inverse: F64) -> None:
    """A A^-1 = I, and no row sum of the inverse beyond Varah's bound."""
    assert np.abs(a @ inverse - np.eye(a.shape[-1])).max() <= 1e-9
    norm = np.abs(inverse).sum(axis=-1).max(axis=-1)
    assert (norm <= np.asarray(oq.varah_bound(a)) * (1 + 1e-9)).all()


@pytest.mark.parametrize("n", [1, 2, 5, 16, 64, 130])
@pytest.mark.parametrize("parametrization", ["relative", "absolute"])
def test_inverse_of_projected_maps_keeps_to_varah(n: int, parametrization: Any) -> None:
    rng = np.random.default_rng(n)
    for share in (0.1, 0.9, 0.95, 0.999):
        e = rng.standard_normal((4, n, n))
        e[:, np.arange(n), np.arange(n)] = 0
        e *= share / np.maximum(np.abs(e).sum(axis=2, keepdims=True), 1e-300)
        diagonal = rng.choice([-1, 1], (4, n)) * np.exp(rng.uniform(-3, 3, (4, n)))
        if parametrization == "absolute":
            e *= np.abs(diagonal)[:, :, None]
        e[:, np.arange(n), np.arange(n)] = diagonal
        a, inverse = oq.affine_forward(e, parametrization=parametrization)
        assert (oq.dominance_margins(a) > 0).all()
        check_inverse(a, inverse)


@settings(max_examples=200, deadline=None)
@given(
    a=arrays(np.float64, st.integers(1, 8).map(lambda n: (n, n)), elements=st.floats(-1e3, 1e3)),
    tau=st.floats(1e-3, 0.9),
)
def test_any_matrix_with_a_diagonal_can_be_projected_and_inverted(a: F64, tau: float) -> None:
    n = len(a)
    a[np.arange(n), np.arange(n)] += np.where(np.diagonal(a) < 0, -1.0, 1.0)
    projected, _ = oq.project_dominant(a, tau)
    assert (oq.dominance_margins(projected) > 0).all()
    check_inverse(projected, np.linalg.inv(projected))
    again, changed = oq.project_dominant(projected, tau * (1 - 1e-9))
    assert changed == 0
    np.testing.assert_array_equal(again, projected)


def test_without_dominance_the_bound_is_infinite() -> None:
    assert oq.varah_bound([[1.0, 1.0], [0.0, 1.0]]) == np.inf
    np.testing.assert_array_equal(oq.varah_bound([np.eye(2), np.zeros((2, 2))]), [1, np.inf])


def train(rng: np.random.Generator, n: int, policy: str, parametrization: str, steps: list[float]) -> Any:
    """Calibrate a layer of n inputs with steps far too long, and keep every step's smallest margin."""
    weight, x = rng.standard_normal((3, n)), rng.standard_normal((64, n)) * np.exp(rng.standard_normal(n))
    return oq.calibrate_linear(
        weight, x, "W2A4", method="affinequant", input_map="affine", dominance=policy, batch_size=1,
        parametrization=parametrization, stability=1.0, epochs=10, lr_let=float(10 ** rng.uniform(-2, 0)),
        on_step=lambda epoch, step, loss, margin: steps.append(margin),
    )  # fmt: skip


@pytest.mark.parametrize("parametrization", ["relative", "absolute"])
@pytest.mark.parametrize("policy", ["project", "reject"])
def test_no_accepted_step_loses_dominance(policy: str, parametrization: str) -> None:
    """25,000 steps of each, the learning rate up to 1: every one leaves all rows strictly dominant."""
    rng, steps = np.random.default_rng(7), list[float]()
    repaired = 0
    while len(steps) < 25_000:
        result = train(rng, int(rng.integers(2, 7)), policy, parametrization, steps)
        repaired += result.rows_projected + result.steps_rejected
        assert result.margins is not None
        assert (result.margins > 0).all()
        assert result.map is not None
        check_inverse(*oq.affine_forward(result.map, parametrization="absolute"))
        assert result.loss_final <= min(result.loss_rtn, result.loss_initial)
    assert min(steps) > 0
    assert repaired > 1000, "the steps were no challenge"


def test_raise_names_the_row() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(
        oq.NotDominantError, match=r"layer input map head 0 row \d+: \|diagonal\| .* after a step"
    ):
        oq.calibrate_linear(
            rng.standard_normal((3, 6)), rng.standard_normal((64, 6)), "W2A4", method="affinequant",
            dominance="raise", lr_let=1.0, epochs=20, batch_size=4,
        )  # fmt: skip


@pytest.mark.parametrize("width", [1, 2, 5, 64])
@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 40])
def test_mask_opens_by_whole_numbers(width: int, epochs: int) -> None:
    i, j = np.indices((width, width))
    for epoch in range(epochs):
        band = width - 1 if epochs == 1 else (width - 1) * epoch // (epochs - 1)
        expected = np.where(i == j, 1.0, np.where(np.abs(i - j) <= band, 0.1, 0.0))
        np.testing.assert_array_equal(oq.gradual_mask(width, epoch, epochs, 0.1), expected)
