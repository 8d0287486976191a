"""What tuning goes back through: a block, the two heads, the scales; against differences and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from random_blocks import Case, Draw, double_core, quantized_shapes
from ways import needs_bfloat16, needs_integer

from omniquant import _core

STEP = 1e-6  # head norms of few channels curve steeply
ROUNDED = {"bits": 8, "q_bits": 16, "k_bits": 8, "v_bits": 8, "symmetric": False, "full_range": False}


def gap(core, case: Case, weights, x, dy) -> float:
    """Return the sum of dy times the block's output."""
    return float((dy * case.forward(core, weights, x[None])[0]).sum())


@pytest.mark.parametrize("seed", range(24))
def test_a_block_agrees_with_differences(seed: int) -> None:
    core = double_core()
    case = Draw(seed, quirks=seed % 2 == 1, activation="silu").case()
    random = np.random.default_rng(seed)
    x = case.x_fp[0].astype(np.float64)
    dy = random.standard_normal(x.shape)
    dx, dweights = core.block_backward(case.spec, case.weights, x, dy, case.cos, case.sin)
    gains = {"norm1.weight", "norm2.weight"} & set(case.weights)
    assert set(dweights) == {f"{name}.weight" for name in quantized_shapes(case.spec)} | gains
    weights = {name: values.astype(np.float64) for name, values in case.weights.items()}
    for name, gradient in (("x", dx), *dweights.items()):
        direction = random.standard_normal(gradient.shape)
        sides = []
        for sign in (1, -1):
            moved, at = dict(weights), x
            if name == "x":
                at = x + sign * STEP * direction
            else:
                moved[name] = weights[name] + sign * STEP * direction
            sides.append(gap(core, case, moved, at, dy))
        slope = (sides[0] - sides[1]) / (2 * STEP)
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-6), name


def test_a_block_of_experts_has_its_gradients_too() -> None:
    core = double_core()
    experts = {"num_experts": 3, "experts_per_token": 2, "normalized_experts": True, "shared_ffn_size": 5}
    case = Draw(5, quirks=True, mlp="gated", residual="sequential", **experts).case()
    x = case.x_fp[0].astype(np.float64)
    dx, dweights = core.block_backward(case.spec, case.weights, x, np.ones_like(x), case.cos, case.sin)
    direction = np.random.default_rng(0).standard_normal(dweights["down.weight"].shape)
    sides = [
        gap(core, case, case.weights | {"down.weight": case.weights["down.weight"] + t * direction}, x, 1)
        for t in (STEP, -STEP)
    ]
    slope = (sides[0] - sides[1]) / (2 * STEP)
    assert (dweights["down.weight"] * direction).sum() == pytest.approx(slope, rel=1e-5)
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("byte_gradients", [False, pytest.param(True, marks=needs_integer)])
@pytest.mark.parametrize("bfloat16", [False, pytest.param(True, marks=needs_bfloat16)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_leave_a_blocks_gradients_as_they_are(
    threads: int, bfloat16: bool, byte_gradients: bool
) -> None:
    case = Draw(2, hidden_size=24, ffn_size=32).case()
    x = case.x_fp[0]
    arguments = case.spec, case.weights, x, x, case.cos, case.sin
    options = {"activation": ROUNDED, "bfloat16": bfloat16, "byte_gradients": byte_gradients}
    dx, dweights = _core.block_backward(*arguments, **options, threads=threads)
    again, more = _core.block_backward(*arguments, **options)
    np.testing.assert_array_equal(dx, again)
    for name, values in dweights.items():
        np.testing.assert_array_equal(values, more[name])


@needs_bfloat16
def test_bfloat16_products_are_near_those_of_float() -> None:
    case = Draw(2, hidden_size=24, ffn_size=32, rotate_qk=False).case()
    x = case.x_fp[0]
    arguments = case.spec, case.weights, x, x, case.cos, case.sin
    exact, rounded = (_core.block_backward(*arguments, bfloat16=kind)[1] for kind in (False, True))
    for name, values in exact.items():
        error = np.linalg.norm(rounded[name] - values) / np.linalg.norm(values)
        assert 0 < error < 0.03, name


@needs_integer
@pytest.mark.parametrize("bfloat16", [False, pytest.param(True, marks=needs_bfloat16)])
def test_gradients_in_bytes_are_near_those_of_float(bfloat16: bool) -> None:
    experts = {"num_experts": 3, "experts_per_token": 2, "normalized_experts": True, "shared_ffn_size": 24}
    for draw in (Draw(2, hidden_size=24, ffn_size=32), Draw(3, mlp="gated", hidden_size=24, **experts)):
        case = draw.case()
        x = case.x_fp[0]
        arguments = case.spec, case.weights, x, x, case.cos, case.sin
        (dx, exact), (rounded_dx, rounded) = (
            _core.block_backward(*arguments, bfloat16=bfloat16, byte_gradients=kind) for kind in (False, True)
        )
        for name, values in ({"x": dx} | exact).items():
            error = np.linalg.norm(({"x": rounded_dx} | rounded)[name] - values) / np.linalg.norm(values)
            assert error < 0.04, name
        assert (rounded_dx != dx).any()


@needs_bfloat16
def test_a_forward_pass_in_bfloat16_is_near_that_of_float() -> None:
    case = Draw(2, hidden_size=24, ffn_size=32).case()
    arguments = case.spec, case.weights, case.x_fp, case.cos, case.sin
    exact, rounded = (_core.block_forward(*arguments, bfloat16=kind) for kind in (False, True))
    assert 0 < np.linalg.norm(rounded - exact) < 0.02 * np.linalg.norm(exact)
    np.testing.assert_array_equal(_core.block_forward(*arguments, bfloat16=True, threads=3), rounded)


def head(random, M, H, V, norm):
    def normal(*shape):
        return random.standard_normal(shape)

    named = {"lm_head_bias": normal(V), "norm_bias": normal(H) if norm == "layer" else None}
    return (normal(M, H), normal(M, H), norm, 1e-5, normal(H), normal(V, H), normal(H), normal(V, H)), named


def divergence_of_plain_numpy(hidden, reference, norm, eps, gain, matrix, other_gain, other_matrix, **named):
    def log_probabilities(x, gain, matrix):
        x = x - x.mean(axis=1, keepdims=True) if norm == "layer" else x
        x = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps) * gain
        x = x if named["norm_bias"] is None else x + named["norm_bias"]
        y, cap = x @ matrix.T + named["lm_head_bias"], named["logit_cap"]
        y = cap * np.tanh(y / cap) if cap else y
        y = y - y.max(axis=1, keepdims=True)
        return y - np.log(np.exp(y).sum(axis=1, keepdims=True))

    p, q = log_probabilities(reference, other_gain, other_matrix), log_probabilities(hidden, gain, matrix)
    return (np.exp(p) * (p - q)).sum(axis=1)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("cap", [0, 3.0])
@pytest.mark.parametrize(("M", "H", "V"), [(1, 3, 2), (7, 8, 17), (130, 5, 40)])
def test_heads_agree_with_numpy_and_differences(norm: str, cap: float, M: int, H: int, V: int) -> None:
    core, random = double_core(), np.random.default_rng(V)
    arguments, named = head(random, M, H, V, norm)
    named["logit_cap"] = cap
    kl, gradient = core.head_divergence(*arguments, **named)
    np.testing.assert_allclose(kl, divergence_of_plain_numpy(*arguments, **named), rtol=1e-6, atol=1e-9)
    direction = random.standard_normal((M, H))
    sides = [
        core.head_divergence(arguments[0] + t * direction, *arguments[1:], **named)[0].mean()
        for t in (STEP, -STEP)
    ]
    slope = (sides[0] - sides[1]) / (2 * STEP)
    assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("bfloat16", [False, pytest.param(True, marks=needs_bfloat16)])
def test_threads_leave_a_heads_gradient_as_it_is(bfloat16: bool) -> None:
    arguments, named = head(np.random.default_rng(0), 150, 16, 33, "rms")
    named["bfloat16"] = bfloat16
    one, three = (_core.head_divergence(*arguments, **named, threads=threads) for threads in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)


@needs_bfloat16
def test_a_head_in_bfloat16_is_near_one_in_float() -> None:
    """Of two matrices, and of one that both sides share."""
    arguments, named = head(np.random.default_rng(0), 150, 16, 33, "rms")
    for shared in (False, True):
        both = (*arguments[:7], arguments[5]) if shared else arguments
        kl, gradient = _core.head_divergence(*both, **named)
        near, rounded = _core.head_divergence(*both, **named, bfloat16=True)
        assert 0 < np.linalg.norm(near - kl) < 0.02 * np.linalg.norm(kl)
        assert 0 < np.linalg.norm(rounded - gradient) < 0.02 * np.linalg.norm(gradient)


@pytest.mark.parametrize("group_size", [0, 1, 5, 16, 17, 64])
@pytest.mark.parametrize("width", [1, 16, 37])
def test_scales_get_the_sum_over_their_group(width: int, group_size: int) -> None:
    random = np.random.default_rng(width)
    size = group_size if 0 < group_size < width else width
    groups = -(-width // size)
    codes = random.integers(0, 16, (35, width)).astype(np.uint8)
    zeros = random.integers(0, 16, (35, groups)).astype(np.uint8)
    dout = random.standard_normal((35, width)).astype(np.float32)
    found = _core.dequantize_backward(codes, zeros, dout, group_size=group_size, threads=2)
    wide = (codes.astype(np.float64) - np.repeat(zeros, size, axis=1)[:, :width]) * dout
    expected = np.add.reduceat(wide, np.arange(0, width, size), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
