"""fake_quantize and its gradients against NumPy in float64: ties, clipped values, LWC, every kind of grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import quantizer_reference as reference
from quantizer_reference import Quantizer
from random_blocks import double_core

from omniquant import _core

F64 = npt.NDArray[np.float64]
GRIDS = [(False, False), (True, False), (True, True)]


def draw(seed: int) -> tuple[Quantizer, F64, F64, F64, F64]:
    """Return a quantizer, x and dout [N, K] and logits [N, G]; float32 values, extremes repeated."""
    rng = np.random.default_rng(seed)
    rows, width = int(rng.integers(1, 5)), int(rng.integers(1, 40))
    symmetric, full_range = GRIDS[int(rng.integers(3))]
    quantizer = Quantizer(int(rng.integers(2, 9)), int(rng.choice([0, 3, 8, 50])), symmetric, full_range)
    x, dout = (rng.standard_normal((rows, width)).astype(np.float32) for _ in range(2))
    if rng.random() < 0.5:
        x = np.round(2 * x) / np.float32(2)  # many ties
    if rng.random() < 0.2:
        x = np.abs(x)
    x[0] *= rng.random() < 0.9  # sometimes a row of zeros
    logits = rng.uniform(-2, 6, (2, rows, len(quantizer.groups(width)))).astype(np.float32)
    arrays = (x, dout, logits[0], logits[1])
    return quantizer, *(a.astype(np.float64) for a in arrays)  # type: ignore[return-value]


@pytest.mark.parametrize("clipping", [False, True], ids=["min-max", "LWC"])
def test_double_core_equals_the_reference(clipping: bool) -> None:
    core = double_core()
    for seed in range(1000):
        quantizer, x, dout, *logits = draw(seed)
        clip: Any = {"max_logit": logits[0], "min_logit": logits[1]} if clipping else {}
        expected = reference.backward(quantizer, x, dout, *(logits if clipping else ()))
        got = core.fake_quantize_backward(x, dout, **quantizer.arguments(), **clip)
        out = core.fake_quantize(x, **quantizer.arguments(), **clip)
        np.testing.assert_allclose(
            out, reference.forward(quantizer, x, *(logits if clipping else ())), rtol=1e-12, atol=1e-15,
            err_msg=str(seed),
        )  # fmt: skip
        for name, a, b in zip(("dx", "dmax", "dmin"), got, expected, strict=True):
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12, err_msg=f"{name} {seed} {quantizer}")
        assert clipping == (got[1] is not None)


def test_float_core_equals_the_double_core_where_they_decide_alike() -> None:
    core, compared = double_core(), 0
    for seed in range(1000):
        quantizer, x, dout, *logits = draw(seed)
        arguments: Any = {**quantizer.arguments(), "max_logit": logits[0], "min_logit": logits[1]}
        if not np.array_equal(_core.quantize(x, **arguments)[0], core.quantize(x, **arguments)[0]):
            continue
        compared += 1
        pairs = zip(
            _core.fake_quantize_backward(x, dout, **arguments),
            core.fake_quantize_backward(x, dout, **arguments),
            strict=True,
        )
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * (1 + np.abs(b).max()), err_msg=str(seed))
    assert compared > 900


def test_ties_share_the_gradient_of_the_extreme_equally() -> None:
    # 2 bits on [0, 3]: h = 1. The value at code 1.4 has dh = 1 - 1.4; both 3s carry half of dh / 3 each.
    x, dout = [[3.0, 1.4, 3.0, 0.0]], [[0.0, 1.0, 0.0, 0.0]]
    dx, dmax, dmin = _core.fake_quantize_backward(x, dout, bits=2)
    np.testing.assert_allclose(dx, [[-0.4 / 6, 1, -0.4 / 6, 0]], rtol=1e-6)
    assert dmax is None
    assert dmin is None


def test_clipped_values_pass_no_gradient_but_move_the_clipping() -> None:
    # sigmoid(0) = 1/2: the range is [0, 3], h = 1; 6 is clipped to code 3.
    dx, dmax, dmin = _core.fake_quantize_backward(
        [[6.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]], bits=2, max_logit=[[0.0]], min_logit=[[0.0]]
    )
    # dh = 3, dh / dmax = 1/3, so d(clipped max) = 1: half of it reaches the 6 itself.
    np.testing.assert_allclose(dx, [[0.5, 0, 0]])
    np.testing.assert_allclose(dmax, [[0.25 * 6]])
    np.testing.assert_allclose(dmin, [[0]])


@pytest.mark.parametrize("threads", [2, 3, 0])
def test_threads_change_nothing(threads: int) -> None:
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, 200, 33)).astype(np.float32)
    logits: Any = {"max_logit": np.full((200, 5), 2.0), "min_logit": np.full((200, 5), 1.0)}
    for one, many in zip(
        _core.fake_quantize_backward(x, dout, bits=3, group_size=8, **logits),
        _core.fake_quantize_backward(x, dout, bits=3, group_size=8, threads=threads, **logits),
        strict=True,
    ):
        np.testing.assert_array_equal(one, many)


def test_logits_go_together_and_fit() -> None:
    with pytest.raises(ValueError, match="give both or none"):
        _core.fake_quantize([[1.0]], bits=4, max_logit=[[1.0]])
    with pytest.raises(ValueError, match=r"max_logit: expected shape \(1, 2\), got \(1, 1\)"):
        _core.fake_quantize([[1.0, 2.0]], bits=4, group_size=1, max_logit=[[1.0]], min_logit=[[1.0]])


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_bits_from_two_to_eight(bits: int) -> None:
    for function in (_core.fake_quantize, _core.quantize):
        with pytest.raises(ValueError, match=rf"bits must be 2\.\.8, got {bits}"):
            function([[1.0]], bits=bits)
    with pytest.raises(TypeError, match="needs bits"):
        _core.fake_quantize([[1.0]])  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="group_size"):
        _core.fake_quantize([[1.0]], bits=4, group_size=-1)
