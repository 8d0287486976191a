"""Row 3 of the reliability figures for the functions on arrays, one linear layer and one block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from random_blocks import Case, Draw

from omniquant import _core
from omniquant.config import CalibrationOptions, QuantConfig, core_options

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 24)).astype(np.float32)
W = RNG.standard_normal((16, 24)).astype(np.float32)
S = RNG.uniform(0.5, 2, 24).astype(np.float32)
P = (0.01 * RNG.standard_normal((3, 24, 24)) + 2 * np.eye(24)).astype(np.float32)
LOGITS = RNG.uniform(0, 4, (40, 3)).astype(np.float32)
CODES = RNG.integers(0, 8, (40, 24)).astype(np.uint8)
LINEAR = core_options(
    QuantConfig.parse("W3A4g8"),
    CalibrationOptions.for_method(
        "affinequant",
        QuantConfig.parse("W3A4g8"),
        norm_map="online",
        epochs=2,
        batch_size=30,
        dominance="reject",
    ),
    block=0,
    rope=False,
)


def block() -> Case:
    """A tiny block with every map, LWC, shifts and the second target."""
    return Draw(
        3, hidden_size=8, ffn_size=10, num_kv_heads=1, queries_per_kv=2, head_dim=4, rope=True, norm="layer",
        mlp="gated", biases="all", w_bits=3, group_size=4, bits=4, q_bits=4, k_bits=4, v_bits=4, lwc=True,
        norm_map="online", vo_map="affine", qk_map="full", up_down=True, shift=True, dominance="project",
        samples=2, tokens=4, aug=True, epochs=2, best_iterate=True,
    ).case()  # fmt: skip


BLOCK = block()
SEARCHED = replace(BLOCK, options=BLOCK.options | {"start": "search"})
FED = replace(BLOCK, options=BLOCK.options | {"rounding": "gptq", "true_sequential": True})
GOALS = BLOCK.forward(_core, BLOCK.weights, BLOCK.targets)
FOLLOWERS = [(BLOCK.spec, BLOCK.weights, BLOCK.cos, BLOCK.sin)]
AHEAD = replace(BLOCK, ahead={"goals": GOALS, "followers": FOLLOWERS})
LEARNABLES = _core.calibrate_linear(W, X, W[:, 0], LINEAR)["learnables"]


def packed_linear() -> Any:
    """Pack and run: each has memory of its own."""
    packed = _core.linear_pack(CODES, 4, 8, LOGITS, CODES[:, :3], None, 8, False, False, None, threads=2)
    return _core.linear_run(packed, X, threads=2)


CALLS: dict[str, Callable[[], Any]] = {
    "linear_pack": packed_linear,
    "fake_quantize": lambda: _core.fake_quantize(X, bits=3, group_size=8, max_logit=LOGITS, min_logit=LOGITS),
    "fake_quantize_backward": lambda: _core.fake_quantize_backward(
        X, X, bits=3, group_size=8, max_logit=LOGITS, min_logit=LOGITS
    ),
    "quantize": lambda: _core.quantize(X, bits=4),
    "dequantize": lambda: _core.dequantize(CODES, LOGITS, CODES[:, :3], group_size=8),
    "dequantize_backward": lambda: _core.dequantize_backward(CODES, CODES[:, :3], X, group_size=8),
    "round_scales": lambda: _core.round_scales(LOGITS, 7),
    "pack": lambda: _core.pack(CODES, 3),
    "unpack": lambda: _core.unpack(CODES, 8, 24),
    "let_forward": lambda: _core.let_forward(X, W, S, S, W[:, 0]),
    "let_backward": lambda: _core.let_backward(X, W, S, X, W, S, W[:, 0]),
    "affine_forward": lambda: _core.affine_forward(P),
    "affine_backward": lambda: _core.affine_backward(P, P, P),
    "dominance_margins": lambda: _core.dominance_margins(P),
    "varah_bound": lambda: _core.varah_bound(P),
    "project_dominant": lambda: _core.project_dominant(P),
    "calibrate_linear": lambda: _core.calibrate_linear(W, X, W[:, 0], LINEAR),
    "linear_loss": lambda: _core.linear_loss(W, X, W[:, 0], LINEAR, LEARNABLES),
    "block_forward": lambda: BLOCK.forward(_core, BLOCK.weights, BLOCK.x_fp),
    "block_backward": lambda: _core.block_backward(
        BLOCK.spec, BLOCK.weights, BLOCK.x_fp[0], BLOCK.x_q[0], BLOCK.cos, BLOCK.sin
    ),
    "head_divergence": lambda: _core.head_divergence(X, X[::-1], "rms", 1e-5, S, W, S, W[::-1]),
    "block_loss": lambda: BLOCK.loss(_core),
    "fold_block": lambda: BLOCK.fold(_core),
    "calibrate_block": BLOCK.calibrate,
    "calibrate_block, gptq": FED.calibrate,
    "calibrate_block, search": SEARCHED.calibrate,
    "calibrate_block, looking ahead": AHEAD.calibrate,
}


def flat(result: Any) -> list[Any]:
    """Every array and number of a result, in order."""
    if isinstance(result, dict):
        return [part for key in sorted(result) for part in flat(result[key])]
    if isinstance(result, tuple):
        return [part for value in result for part in flat(value)]
    return [result]


def inputs() -> bytes:
    fixed = [X, W, S, P, LOGITS, CODES, BLOCK.x_fp, BLOCK.x_q, BLOCK.targets, *BLOCK.weights.values()]
    return b"".join(array.tobytes() for array in fixed)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_allocation_fails_once(call: Callable[[], Any], persistent: bool) -> None:
    before = inputs()
    _core._fail_allocation(0, False)
    expected = flat(call())
    count = _core._fail_allocation(0, False)
    assert count >= 1
    for k in range(1, count + 1):
        _core._fail_allocation(k, persistent)
        try:
            with pytest.raises(MemoryError, match="out of memory"):
                call()
        finally:
            _core._fail_allocation(0, False)
        for got, wanted in zip(flat(call()), expected, strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=f"after allocation {k} of {count} failed")
    assert inputs() == before
