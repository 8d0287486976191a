"""Every layout gives the bits of the contiguous copy; what is no number is refused by name; inputs stay."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from layouts import layouts, refused
from ways import WAYS

from omniquant import _core

Floats = npt.NDArray[np.floating]
Function = Callable[[npt.NDArray[np.generic]], Floats]

WEIGHT = np.arange(35, dtype=np.float32).reshape(5, 7) / 8 - 2


def left(x: npt.NDArray[np.generic]) -> Floats:
    return _core.matmul(x, WEIGHT)


def right(x: npt.NDArray[np.generic]) -> Floats:
    return _core.matmul(WEIGHT, x, transpose_a=True)


def plain(x: npt.NDArray[np.generic]) -> Floats:
    """No assembler: here a sanitizer sees what alignment the reads rely on."""
    return _core.matmul(x, WEIGHT, by="reference")


FUNCTIONS = {"matmul a": left, "matmul b": right, "reference": plain, "inverse": _core.inverse}
functions = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def numbers(dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    """Small integers and halves, exact in every dtype; strictly dominant, so that there is an inverse."""
    x = np.array([[9, 1, -2, 0, 1], [3, 12, 1, -1, 2], [0, 1, 7, 2, 1], [-1, 2, 0, 8, 1], [1, 0, 3, 2, 11]])
    return x.astype(dtype)


@functions
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g", "i1", "i2", "i4", "i8"])
def test_layouts_and_dtypes_give_the_same_bits(function: Function, dtype: str) -> None:
    expected = function(numbers("f4").copy())
    for name, x in [("contiguous", numbers(dtype)), *layouts(numbers(dtype))]:
        before = x.tobytes()
        result = function(x)
        np.testing.assert_array_equal(result, expected, err_msg=name)
        assert result.dtype == expected.dtype
        assert result.flags.c_contiguous
        assert x.tobytes() == before, f"{name}: the input was changed"


@functions
def test_bfloat16(function: Function) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    np.testing.assert_array_equal(function(numbers(ml_dtypes.bfloat16)), function(numbers("f4")))


@functions
def test_what_is_no_number_is_refused_by_name(function: Function) -> None:
    for name, x in refused(numbers("i8")):
        with pytest.raises(TypeError, match=r"^[ab]: cannot convert an array of"):
            pytest.fail(f"{name} was taken: {function(x)}")


@functions
@pytest.mark.parametrize("shape", [(), (5,), (5, 5, 1)])
def test_wrong_dimensions(function: Function, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^[ab]: expected 2 dimensions, got shape \("):
        function(np.zeros(shape, np.float32))


def test_inner_dimensions_must_agree() -> None:
    with pytest.raises(ValueError, match=r"^b: expected an inner dimension of 7, as of a, got 5$"):
        _core.matmul(WEIGHT, WEIGHT)


def test_inverse_wants_a_square() -> None:
    with pytest.raises(ValueError, match=r"^a: expected shape \(5, 5\), got \(5, 7\)$"):
        _core.inverse(WEIGHT)


@pytest.mark.parametrize(("m", "k", "n"), [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0), (1, 1, 1)])
def test_empty_and_single(m: int, k: int, n: int) -> None:
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    for by in WAYS:
        result = _core.matmul(a, b, by=by)
        assert result.shape == (m, n)
        np.testing.assert_array_equal(result, np.full((m, n), k, np.float32))


def test_empty_inverse() -> None:
    assert _core.inverse(np.zeros((0, 0))).shape == (0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_numbers_go_through_products_as_in_numpy(bad: float) -> None:
    a, b = np.ones((5, 4), np.float32), np.ones((4, 3), np.float32)
    a[2, 1] = bad
    with np.errstate(invalid="ignore"):
        expected = a @ b
    for by in WAYS:
        np.testing.assert_array_equal(_core.matmul(a, b, by=by), expected)


def test_negative_thread_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="threads: expected at least 0"):
        _core.matmul(WEIGHT, WEIGHT, transpose_b=True, threads=-1)
    with pytest.raises(ValueError, match="threads: expected at least 0"):
        _core.inverse(np.eye(3), threads=-1)
