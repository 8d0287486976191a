"""Row 6 of the reliability figures on every function of arrays: layouts, dtypes, NaN, empty and single."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from layouts import layouts, refused

import omniquant as oq

Array = npt.NDArray[Any]
Function = Callable[[Any], Any]

X = np.array([[4, 1, -2, 0, 1], [3, 6, 1, -1, 2], [0, 1, 7, 2, 1], [-1, 2, 0, 8, 1], [1, 0, 3, 2, 11]], float)
W, S, D = X[:4] / 2 - 1, X[4] + 1, X[3]
LOGITS = X[:, :2]
CODES = np.arange(25).reshape(5, 5) % 8
DOMINANT = X + 9 * np.eye(5)
PACKED = oq.pack(CODES, 3)
Q: Any = {"bits": 3, "group_size": 3}

# Functions of one real array [5, 5], [5], or as named; the others stay fixed.
REALS: dict[str, tuple[Function, Array]] = {
    "fake_quantize": (lambda x: oq.fake_quantize(x, **Q), X),
    "fake_quantize_backward x": (lambda x: oq.fake_quantize_backward(x, X, **Q), X),
    "fake_quantize_backward dout": (lambda x: oq.fake_quantize_backward(X, x, **Q), X),
    "lwc_forward w": (lambda x: oq.lwc_forward(x, LOGITS, LOGITS, **Q), X),
    "lwc_forward max": (lambda x: oq.lwc_forward(X, x, LOGITS, **Q), LOGITS),
    "lwc_forward min": (lambda x: oq.lwc_forward(X, LOGITS, x, **Q), LOGITS),
    "lwc_backward w": (lambda x: oq.lwc_backward(x, LOGITS, LOGITS, X, **Q), X),
    "lwc_backward max": (lambda x: oq.lwc_backward(X, x, LOGITS, X, **Q), LOGITS),
    "lwc_backward min": (lambda x: oq.lwc_backward(X, LOGITS, x, X, **Q), LOGITS),
    "lwc_backward dout": (lambda x: oq.lwc_backward(X, LOGITS, LOGITS, x, **Q), X),
    "quantize": (lambda x: oq.quantize(x, **Q), X),
    "dequantize scale": (lambda x: oq.dequantize(CODES, x, PACKED, group_size=3), LOGITS),
    "let_forward x": (lambda x: oq.let_forward(x, W, S, D, X[0, :4]), X),
    "let_forward weight": (lambda x: oq.let_forward(X, x, S, D), W),
    "let_forward scale": (lambda x: oq.let_forward(X, W, x, D), S),
    "let_forward shift": (lambda x: oq.let_forward(X, W, S, x), D),
    "let_forward bias": (lambda x: oq.let_forward(X, W, S, bias=x), X[0, :4]),
    "let_backward x": (lambda x: oq.let_backward(x, W, S, X, W, D, X[0, :4]), X),
    "let_backward weight": (lambda x: oq.let_backward(X, x, S, X, W, D, X[0, :4]), W),
    "let_backward scale": (lambda x: oq.let_backward(X, W, x, X, W, D, X[0, :4]), S),
    "let_backward dx": (lambda x: oq.let_backward(X, W, S, x, W, D, X[0, :4]), X),
    "let_backward dweight": (lambda x: oq.let_backward(X, W, S, X, x, D, X[0, :4]), W),
    "let_backward shift": (lambda x: oq.let_backward(X, W, S, X, W, x, X[0, :4]), D),
    "let_backward dbias": (lambda x: oq.let_backward(X, W, S, X, W, D, x), X[0, :4]),
    "affine_forward": (lambda x: oq.affine_forward(x, stability=0.01), DOMINANT),
    "affine_backward parameters": (lambda x: oq.affine_backward(x, X, X, stability=0.01), DOMINANT),
    "affine_backward da": (lambda x: oq.affine_backward(DOMINANT, x, stability=0.01), X),
    "affine_backward da_inverse": (lambda x: oq.affine_backward(DOMINANT, None, x, stability=0.01), X),
    "dominance_margins": (oq.dominance_margins, X),
    "varah_bound": (oq.varah_bound, DOMINANT),
    "project_dominant": (oq.project_dominant, X),
    "calibrate_linear weight": (lambda x: calibrated(x, X), W),
    "calibrate_linear x": (lambda x: calibrated(W, x), X),
    "calibrate_linear bias": (lambda x: calibrated(W, X, x), X[0, :4]),
}
INTEGERS: dict[str, tuple[Function, Array]] = {
    "dequantize codes": (lambda q: oq.dequantize(q, LOGITS, PACKED, group_size=3), CODES),
    "dequantize zero_point": (lambda q: oq.dequantize(CODES, LOGITS, q, group_size=3), CODES[:, :2]),
    "pack": (lambda q: oq.pack(q, 3), CODES),
    "unpack": (lambda q: oq.unpack(q, 3, 5), PACKED.astype(int) % 128),
}
reals = pytest.mark.parametrize(("function", "good"), REALS.values(), ids=REALS)
integers = pytest.mark.parametrize(("function", "good"), INTEGERS.values(), ids=INTEGERS)
both = pytest.mark.parametrize(
    ("function", "good"), [*REALS.values(), *INTEGERS.values()], ids=[*REALS, *INTEGERS]
)


def calibrated(weight: Any, x: Any, bias: Any = None) -> tuple[Any, ...]:
    """Return what calibrate_linear returns, all of it."""
    result = oq.calibrate_linear(weight, x, "W3A4g3", method="affinequant", bias=bias, epochs=2, batch_size=2)
    return tuple(value for value in vars(result).values() if isinstance(value, np.ndarray))


def as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def same(a: Any, b: Any, message: str) -> None:
    for one, other in zip(as_tuple(a), as_tuple(b), strict=True):
        if one is None or other is None:
            assert one is other, message
            continue
        np.testing.assert_array_equal(one, other, err_msg=message)
        assert np.asarray(one).dtype == np.asarray(other).dtype


@reals
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g"])
def test_layouts_give_the_bits_of_the_contiguous_copy(function: Function, good: Array, dtype: str) -> None:
    x = good.astype(dtype)
    expected = function(x.astype(np.float64))
    for name, array in [("contiguous", x), *layouts(x)]:
        before = array.tobytes()
        same(function(array), expected, name)
        assert array.tobytes() == before, f"{name}: the input was changed"


@integers
@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8"])
def test_integer_layouts(function: Function, good: Array, dtype: str) -> None:
    expected = function(good.astype(np.uint8))
    for name, array in [("contiguous", good.astype(dtype)), *layouts(good.astype(dtype))]:
        before = array.tobytes()
        same(function(array), expected, name)
        assert array.tobytes() == before, f"{name}: the input was changed"


@both
def test_results_are_new_and_writable(function: Function, good: Array) -> None:
    x = good.astype(np.uint8 if good.dtype.kind == "i" else np.float32)
    for result in as_tuple(function(x)):
        if isinstance(result, np.ndarray):
            assert result.flags.writeable
            assert result.flags.c_contiguous
            assert not np.shares_memory(result, x)


@both
def test_what_is_no_number_is_refused(function: Function, good: Array) -> None:
    for name, array in refused(good):
        with pytest.raises(TypeError, match="cannot convert"):
            function(array)
        assert array.dtype.kind in "OcUSMV", name


@integers
def test_fractions_are_no_codes(function: Function, good: Array) -> None:
    with pytest.raises(TypeError, match="cannot convert"):
        function(good.astype(np.float32))
    with pytest.raises(ValueError, match="a value does not fit"):
        function(good + 256)
    with pytest.raises(ValueError, match="a value does not fit"):
        function(-1 - good)


@reals
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named_by_row_and_column(function: Function, good: Array, bad: float) -> None:
    for where in ((0,) * good.ndim, tuple(n - 1 for n in good.shape)):
        x = good.copy()
        x[where] = bad
        row, column = (0, where[0]) if good.ndim == 1 else where
        with pytest.raises(oq.NotFiniteError, match=rf"row {row} column {column}: -?(nan|inf) is not finite"):
            function(x)


@both
def test_the_wrong_shape_is_refused_by_name(function: Function, good: Array) -> None:
    for wrong in (np.zeros((2, 3, 4, 7), good.dtype), np.zeros((), good.dtype), np.zeros((2, 9), good.dtype)):
        if function in (REALS["fake_quantize"][0], REALS["quantize"][0], INTEGERS["pack"][0]) and wrong.ndim:
            continue  # any shape with a row is right there
        with pytest.raises(ValueError, match=r"expected|has \d+ bytes"):
            function(wrong)


def test_rows_along_the_last_axis_of_any_number_of_dimensions() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 10)).astype(np.float32)
    flat = x.reshape(-1, 10)
    for one, other in (
        (oq.fake_quantize(x, **Q), oq.fake_quantize(flat, **Q)),
        (oq.fake_quantize_backward(x, x, **Q), oq.fake_quantize_backward(flat, flat, **Q)),
        (
            oq.let_forward(x, np.eye(10), np.arange(1, 11))[0],
            oq.let_forward(flat, np.eye(10), np.arange(1, 11))[0],
        ),
    ):
        np.testing.assert_array_equal(one.reshape(-1, 10), other)
    codes, scale, zero = oq.quantize(x, **Q)
    assert scale.shape == zero.shape == (2, 3, 4, 4)
    assert oq.pack(codes, 3).shape == (2, 3, 4, 4)
    np.testing.assert_array_equal(oq.quantize(x[0, 0, 0], **Q)[0], codes[0, 0, 0])


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3), (0, 0)])
def test_nothing_in_nothing_out(shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    assert oq.fake_quantize(x, **Q).shape == shape
    assert oq.fake_quantize_backward(x, x, **Q).shape == shape
    codes, scale, zero = oq.quantize(x, **Q)
    groups = (*shape[:-1], -(-shape[-1] // 3))
    assert (codes.shape, scale.shape, zero.shape) == (shape, groups, groups)
    assert oq.dequantize(codes, scale, zero, group_size=3).shape == shape
    assert oq.unpack(oq.pack(codes, 3), 3, shape[-1]).shape == shape
    moved = oq.let_forward(x, np.zeros((4, shape[-1])), np.ones(shape[-1]))
    assert moved[0].shape == shape
    gradients = oq.let_backward(x, np.zeros((4, shape[-1])), np.ones(shape[-1]), x, np.zeros((4, shape[-1])))
    assert gradients[0].shape == shape


def test_empty_matrices() -> None:
    for shape in ((0, 0), (0, 3, 3), (2, 0, 0)):
        a = np.zeros(shape)
        assert oq.dominance_margins(a).shape == shape[:-1]
        assert oq.project_dominant(a)[0].shape == shape
        assert oq.affine_forward(a)[0].shape == shape
        assert oq.affine_backward(a, a, a).shape == shape
        assert np.shape(oq.varah_bound(a)) == shape[:-2]
    assert oq.gradual_mask(0, 0, 1).shape == (0, 0)
    for weight, x in (
        (np.zeros((4, 0)), np.zeros((3, 0))),
        (np.zeros((0, 4)), X[:, :4]),
        (W, np.zeros((0, 5))),
    ):
        with pytest.raises(ValueError, match="nothing to calibrate"):
            oq.calibrate_linear(weight, x, "W4A4")


def test_one_element() -> None:
    np.testing.assert_array_equal(oq.fake_quantize([3.0], bits=2), [3.0])
    np.testing.assert_array_equal(oq.pack([5], 3), [5])
    np.testing.assert_array_equal(oq.affine_forward([[2.0]])[1], [[0.5]])
    np.testing.assert_array_equal(oq.dominance_margins([[-2.0]]), [2.0])
    assert oq.varah_bound([[-2.0]]) == 0.5
    assert oq.calibrate_linear([[2.0]], [[1.0]], "W4A16").loss_final <= 1e-12


def test_senseless_arguments_are_refused() -> None:
    with pytest.raises(oq.SingularError, match=r"scale\[1\] is 0: it has no inverse"):
        oq.let_forward([[1.0, 2.0]], [[1.0, 2.0]], [1.0, 0.0])
    with pytest.raises(oq.SingularError, match="block 1 of A"):
        oq.affine_forward(np.stack([np.eye(2), np.zeros((2, 2))]))
    with pytest.raises(oq.SingularError, match="condition number"):
        oq.affine_forward([[1.0, 0.0], [0.0, 1e-14]])
    with pytest.raises(ValueError, match="band"):
        oq.affine_forward(DOMINANT, band=-2)
    for stability in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="stability"):
            oq.affine_forward(DOMINANT, stability=stability)
        with pytest.raises(ValueError, match="stability"):
            oq.gradual_mask(3, 0, 2, stability)
    with pytest.raises(ValueError, match="parametrization"):
        oq.affine_forward(DOMINANT, parametrization="other")  # type: ignore[arg-type]
    for width, epoch, epochs in ((-1, 0, 1), (3, -1, 2), (3, 2, 2), (3, 0, 0), (2**40, 0, 1)):
        with pytest.raises(ValueError, match="expected a width"):
            oq.gradual_mask(width, epoch, epochs)
    for tau in (0.0, 1.0, np.nan, -0.5):
        with pytest.raises(ValueError, match="tau"):
            oq.project_dominant(DOMINANT, tau)
    with pytest.raises(ValueError, match="threads"):
        oq.fake_quantize(X, bits=4, threads=-1)
