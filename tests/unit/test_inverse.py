"""The double inverse: row 10 of the reliability figures, pivoting, and what has no inverse."""

import numpy as np
import numpy.typing as npt
import pytest

from omniquant import _core
from omniquant.errors import SingularError

Doubles = npt.NDArray[np.float64]


def dominant(rng: np.random.Generator, n: int, margin: float, scale: float) -> Doubles:
    """Strictly diagonally dominant by `margin` of the diagonal, rows scaled by 10^(-scale..scale)."""
    a = rng.standard_normal((n, n))
    np.fill_diagonal(a, 0)
    diagonal = np.abs(a).sum(1) / (1 - margin) + margin
    a += np.diag(diagonal * rng.choice([-1, 1], n))
    return a * 10.0 ** rng.uniform(-scale, scale, (n, 1))


def residual(a: Doubles, inverse: Doubles) -> float:
    return float(np.abs(a @ inverse - np.eye(len(a))).max())


@pytest.mark.parametrize("pivot", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 47, 48, 49, 64, 96, 97, 130, 200])
def test_dominant(n: int, pivot: bool) -> None:
    rng = np.random.default_rng(n)
    for margin, scale in [(0.5, 0), (0.01, 0), (1e-4, 0), (0.1, 2.5), (0.01, 1.5)]:
        a = dominant(rng, n, margin, scale)
        assert residual(a, _core.inverse(a, pivot=pivot)) <= 1e-9, (margin, scale)


def test_size_of_a_real_layer() -> None:
    a = dominant(np.random.default_rng(7), 576, 0.01, 1)
    assert residual(a, _core.inverse(a)) <= 1e-9


@pytest.mark.parametrize("n", [2, 5, 50, 120])
def test_pivoting_handles_what_is_not_dominant(n: int) -> None:
    rng = np.random.default_rng(8)
    a = rng.standard_normal((n, n))
    a[0, 0] = 0
    expected = np.linalg.inv(a)
    np.testing.assert_allclose(_core.inverse(a, pivot=True), expected, rtol=0, atol=1e-10 * np.linalg.cond(a))


def test_permutation_needs_pivoting() -> None:
    a = np.roll(np.eye(60), 7, axis=0)
    np.testing.assert_array_equal(_core.inverse(a, pivot=True), a.T)
    with pytest.raises(SingularError, match="pivot 0 of 60 is 0"):
        _core.inverse(a)


@pytest.mark.parametrize("threads", [2, 3, 0])
@pytest.mark.parametrize("pivot", [False, True])
def test_bits_do_not_depend_on_threads(threads: int, pivot: bool) -> None:
    a = dominant(np.random.default_rng(9), 200, 0.1, 1)
    np.testing.assert_array_equal(_core.inverse(a, pivot, 1), _core.inverse(a, pivot, threads))


@pytest.mark.parametrize("pivot", [False, True])
@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4)),
        np.ones((70, 70)),
        np.diag([1.0, 2.0, 0.0]),
        np.diag([1.0, np.nan]),
        np.array([[1.0, 0.0], [np.inf, 1.0]]),
        np.diag([1e-320, 1.0]),
    ],
    ids=["zeros", "rank one", "zero pivot", "nan", "infinity", "overflow"],
)
def test_no_inverse(bad: Doubles, pivot: bool) -> None:
    message = r"^a: no inverse: (pivot \d+ of \d+ is|element \[\d+, \d+\] would be)"
    with pytest.raises(SingularError, match=message):
        _core.inverse(bad, pivot=pivot)


def test_double_build_gives_the_same_inverse() -> None:
    double = pytest.importorskip("omniquant._core_double", reason="built only with OMNIQUANT_DOUBLE=1")
    a = dominant(np.random.default_rng(10), 90, 0.1, 0)
    np.testing.assert_array_equal(double.inverse(a), _core.inverse(a))
