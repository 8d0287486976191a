"""Products of bytes are exact at every size, however the right operand lies."""

import numpy as np
import pytest
from ways import needs_integer

from omniquant import _core

pytestmark = needs_integer
RANDOM = np.random.default_rng(0)


def operands(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return RANDOM.integers(0, 256, (m, k), np.uint8), RANDOM.integers(0, 256, (n, k), np.uint8)


def exact(left: np.ndarray, right: np.ndarray, zero: int = 0) -> np.ndarray:
    return (left.astype(np.int64) - zero) @ right.view(np.int8).astype(np.int64).T


@pytest.mark.parametrize("often", [False, True])
@pytest.mark.parametrize("zero", [0, 128])
def test_every_size_from_1_to_67(zero: int, often: bool) -> None:
    """Rows, columns and depths, all tails of each, beside a size of the others that is no multiple either."""
    for size in range(1, 68):
        for m, n, k in ((size, 67, 33), (13, size, 34), (7, 65, size), (size, size, size)):
            left, right = operands(m, n, k)
            expected = exact(left, right, zero)
            options = {"zero": zero, "often": often}
            np.testing.assert_array_equal(_core.byte_product(left, right, **options), expected)
            turned = right.T.copy()
            np.testing.assert_array_equal(_core.byte_product(left, turned, by_rows=True, **options), expected)


def test_bits_are_turned_where_bytes_are_and_nowhere_else() -> None:
    """Beyond the last row of four there are zeros, which stay zeros."""
    for k in range(1, 10):
        left, right = operands(5, 70, k)
        product = _core.byte_product(left, (right ^ 128).T.copy(), by_rows=True, flip=128, zero=3)
        np.testing.assert_array_equal(product, exact(left, right, 3))


@pytest.mark.parametrize("by_rows", [False, True])
def test_any_number_of_threads(by_rows: bool) -> None:
    for m, n in ((500, 70), (130, 700), (6, 64)):
        left, right = operands(m, n, 300)
        stored = right.T.copy() if by_rows else right
        for threads in (1, 2, 3, 5):
            product = _core.byte_product(left, stored, by_rows=by_rows, threads=threads)
            np.testing.assert_array_equal(product, exact(left, right))


def test_the_largest_sums_fit() -> None:
    left, right = np.full((7, 32896), 255, np.uint8), np.full((65, 32896), 128, np.uint8)
    expected = np.float32(-128 * 255 * 32896)
    np.testing.assert_array_equal(_core.byte_product(left, right), np.full((7, 65), expected))


def test_depths_that_differ_are_refused() -> None:
    left, right = operands(3, 4, 5)
    with pytest.raises(ValueError, match="right: expected an inner dimension of 5, as of left, got 4"):
        _core.byte_product(left, right, by_rows=True)
