"""Row 7 of the reliability figures: what holds for every value that is quantized."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from quantizer_reference import Quantizer

from omniquant import _core

F32 = npt.NDArray[np.float32]
LARGEST = float(np.finfo(np.float32).max) / 2
GRIDS = [("asymmetric", False, False), ("symmetric", True, False), ("full range", True, True)]
grids = pytest.mark.parametrize(
    ("symmetric", "full_range"), [g[1:] for g in GRIDS], ids=[g[0] for g in GRIDS]
)


def expand(values: npt.NDArray[Any], group_size: int, width: int) -> npt.NDArray[Any]:
    """Return what belongs to a group [N, G] at every value of the group [N, K]."""
    if width == 0:
        return np.empty((len(values), 0), values.dtype)
    return np.repeat(values, group_size or width, axis=1)[:, :width]


def check(x: F32, quantizer: Quantizer) -> None:
    """Every property of row 7 on rows x [N, K]."""
    codes, scale, zero = _core.quantize(x, **quantizer.arguments())
    x_hat = _core.fake_quantize(x, **quantizer.arguments())
    np.testing.assert_array_equal(
        x_hat, _core.dequantize(codes, scale, zero, group_size=quantizer.group_size)
    )
    assert np.isfinite(x_hat).all()
    assert np.isfinite(scale).all()
    assert (scale >= np.finfo(np.float32).tiny).all()
    assert codes.max(initial=0) <= quantizer.top
    assert zero.max(initial=0) <= quantizer.top
    assert (x_hat[x == 0] == 0).all()
    h = expand(scale, quantizer.group_size, x.shape[1]).astype(np.float64)
    z = expand(zero, quantizer.group_size, x.shape[1]).astype(np.float64)
    # The scale is rounded to float32, which 2^n - 1 steps multiply.
    assert (np.abs(x_hat.astype(np.float64) - x) <= h * (0.5 + 2.0 ** (quantizer.bits - 22))).all()
    again = np.clip(np.rint(x_hat / h) + z, 0, quantizer.top)
    np.testing.assert_array_equal(again, codes, err_msg="a value of the grid is not its own code")


def million(seed: int) -> F32:
    """Return a million values [2000, 500] of all magnitudes: zeros, constants, one-sided rows, subnormals."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2000, 500)) * 10.0 ** rng.uniform(-42, 37, (2000, 1))
    x[rng.random(x.shape) < 0.05] = 0
    x[::50] = 0
    x[1::50] = x[1::50, :1]
    x[2::50] = np.abs(x[2::50])
    x[3::50] = -np.abs(x[3::50])
    x[4::50] = rng.uniform(-LARGEST, LARGEST, x[4::50].shape)
    return x.astype(np.float32)


@pytest.mark.parametrize("group_size", [0, 32, 7])
@grids
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_million_round_trips(bits: int, symmetric: bool, full_range: bool, group_size: int) -> None:
    quantizer = Quantizer(bits, group_size, symmetric, full_range)
    check(million(100 * bits + group_size), quantizer)


values = st.floats(-LARGEST, LARGEST, width=32)
shapes = st.tuples(st.integers(0, 4), st.integers(0, 20))


@settings(max_examples=300, deadline=None)
@given(
    x=arrays(np.float32, shapes, elements=values),
    bits=st.integers(2, 8),
    group_size=st.integers(0, 25),
    mode=st.sampled_from([g[1:] for g in GRIDS]),
)
def test_any_values(x: F32, bits: int, group_size: int, mode: tuple[bool, bool]) -> None:
    check(x, Quantizer(bits, group_size, *mode))


@settings(max_examples=200, deadline=None)
@given(
    x=arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 20)), elements=st.floats(-4, 4, width=32)
    ),
    logit=st.floats(-6, 6, width=32),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
)
def test_inside_a_clipped_range_the_error_is_half_a_step(
    x: F32, logit: float, bits: int, symmetric: bool
) -> None:
    logits = np.full((len(x), 1), logit, np.float32)
    arguments: dict[str, Any] = {
        "bits": bits,
        "symmetric": symmetric,
        "max_logit": logits,
        "min_logit": logits,
    }
    codes, scale, zero = _core.quantize(x, **arguments)
    x_hat = _core.fake_quantize(x, **arguments)
    np.testing.assert_array_equal(x_hat, _core.dequantize(codes, scale, zero))
    keep = 1 / (1 + np.exp(-logit))
    lo, hi = keep * np.minimum(x.min(axis=1), 0), keep * np.maximum(x.max(axis=1), 0)
    inside = (x >= lo[:, None]) & (x <= hi[:, None])
    assert (np.abs(x_hat - x)[inside] <= np.broadcast_to(scale * 0.5001, x.shape)[inside]).all()
    assert (np.abs(x_hat) <= np.abs(x) + scale * 0.5001).all()


@grids
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-45, -1e-40, 1e-38, 1.7e38, -1.7e38])
def test_constant_groups(value: float, symmetric: bool, full_range: bool) -> None:
    x = np.full((2, 9), value, np.float32)
    for bits in range(2, 9):
        check(x, Quantizer(bits, 4, symmetric, full_range))


def test_an_all_zero_group_has_scale_one() -> None:
    codes, scale, zero = _core.quantize(np.zeros((1, 4)), bits=4)
    assert (codes == 0).all()
    assert scale == 1
    assert zero == 0


def test_ties_round_to_even() -> None:
    x = np.array([[0.0, 0.5, 1.5, 2.5, 15.0]], np.float32)
    np.testing.assert_array_equal(_core.quantize(x, bits=4)[0], [[0, 0, 2, 2, 15]])


def test_one_sided_groups_keep_their_zero_point_exportable() -> None:
    codes, _, zero = _core.quantize([[4.9, 6.0], [-4.9, -6.0]], bits=4)
    np.testing.assert_array_equal(zero.ravel(), [0, 15])
    np.testing.assert_array_equal(codes, [[12, 15], [3, 0]])


def test_values_beyond_half_the_largest_float_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x row 1 column 2: .* is too large to quantize"):
        _core.fake_quantize([[0, 0, 0], [0, 0, 2e38]], bits=8)
