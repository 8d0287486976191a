"""Gradients of every learnable through whole blocks.

The straight-through gradient is the true derivative of a surrogate in which every rounding offset and clip
decision is frozen.  The double build records these at a base point and replays them, so the surrogate can
be differenced (five-point stencil).  The surrogate still has kinks, where another element becomes a group's
extreme and at ReLU's zero: a step that crosses one is wrong at that size and right at a smaller one, while
a wrong gradient is wrong at all.

Some kinks lie at the base point itself: products of few-bit numbers are small integers times a step, and
where two of them tie for the extreme of the next quantizer (or equal codes of V reach it through
attention), no single derivative exists.  Such a block is known by its two one-sided slopes and is checked
again with more bits; that a tie is shared as autograd shares it is checked in test_torch_parity.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from random_blocks import INPUTS, LINEARS, Arrays, Case, Draw, double_core, map_kinds, same_decisions
from surrogate import Surrogate, check_direction, check_gradients, has_one_gradient

from omniquant import _core


@pytest.fixture
def double() -> Iterator[Any]:
    core = double_core()
    yield core
    core._tape(0)


def many_bits(seed: int) -> Case:
    """Return the seed's block with its quantizers at 8 bits and V float: ties are rare."""
    case = Draw(seed, v_bits=16).case()
    activation = case.options["activation"]
    activation.update({key: 8 for key in ("bits", "q_bits", "k_bits") if activation[key] < 16})
    if case.options["w_bits"] < 16:
        case.options["w_bits"] = 8
    return case


def check_blocks(core: Any, seeds: range) -> None:
    """Check random blocks; the few with a kink at the base point are checked again without it."""
    kinks = [
        seed for seed in seeds if not check_gradients(core, Draw(seed).case(), np.random.default_rng(seed))
    ]
    stubborn = [
        seed for seed in kinks if not check_gradients(core, many_bits(seed), np.random.default_rng(seed))
    ]
    assert len(kinks) <= 0.25 * len(seeds)
    assert len(stubborn) <= 0.03 * len(seeds)


def test_gradients_equal_differences_of_the_frozen_surrogate(double: Any) -> None:
    check_blocks(double, range(300))


def test_gradients_of_weights_with_more_rows_than_go_back_at_once(double: Any) -> None:
    """Of products in float 1024; norm1's map of weights alone learns from the same rows."""
    checked = 0
    for seed in range(12):
        sizes = {"hidden_size": 6, "ffn_size": 1100, "tokens": 5, "samples": 2}
        learned = {"lwc": True, "norm_map": "diagonal", "input_map": "none", "rotate_down": False}
        bits = {"w_bits": 4, "bits": 8 if seed % 2 else 16, "v_bits": 16}
        case = Draw(seed, **sizes, **learned, **bits).case()
        checked += check_gradients(double, case, np.random.default_rng(seed))
    assert checked >= 8


def kinds_of(case: Case) -> set[tuple[str, Any]]:
    """Return every choice a case makes, as (axis, value)."""
    spec, options = case.spec, case.options
    kinds: set[tuple[str, Any]] = {(key, spec[key]) for key in ("norm", "rope", "activation", "mlp")}
    kinds |= {(key, spec[key]) for key in ("rotate_qk", "rotate_heads", "rotate_down")}
    kinds |= {(key, options[key]) for key in ("w_bits", "w_symmetric", "loss", "parametrization")}
    kinds |= {(key, options["activation"][key]) for key in ("bits", "q_bits", "symmetric", "full_range")}
    kinds |= set(map_kinds(case).items())
    kinds |= {("learned", name) for name in case.learnables}
    kinds.add(("aug", case.aug_targets is not None))
    kinds.add(("mask", case.epoch))
    m, n = spec["num_kv_heads"], spec["num_heads"]
    kinds.add(("attention", "MHA" if m == n else "MQA" if m == 1 else "GQA"))
    group = options["group_size"]
    ragged = group and spec["hidden_size"] % group
    kinds.add(("groups", "ragged" if ragged else "even" if group else "channel"))
    return kinds


REQUIRED = {
    *(("norm", kind) for kind in ("rms", "layer")),
    *(("rope", kind) for kind in (True, False)),
    *(("activation", kind) for kind in ("silu", "gelu", "gelu_tanh", "relu")),
    *(("mlp", kind) for kind in ("gated", "plain")),
    *((site, kind) for site in ("norm1", "norm2") for kind in ("none", "diagonal", "online")),
    *(("vo", kind) for kind in ("none", "diagonal", "affine")),
    *(("qk", kind) for kind in ("none", "scale", "tied", "rotation", "full")),
    *(("up_down", kind) for kind in ("none", "diagonal")),
    *(("parametrization", kind) for kind in ("relative", "absolute")),
    *((axis, kind) for axis in ("w_symmetric", "symmetric", "full_range", "aug") for kind in (True, False)),
    *(("w_bits", bits) for bits in (2, 3, 4, 8, 16)),
    *((axis, bits) for axis in ("bits", "q_bits") for bits in (2, 3, 4, 6, 8, 16)),
    *(("loss", kind) for kind in ("mse", "token", "relative")),
    *((axis, kind) for axis in ("rotate_qk", "rotate_heads", "rotate_down") for kind in (True, False)),
    *((f"{name}_{side}", "kronecker") for name in INPUTS for side in ("left", "right")),
    *(("learned", f"{name}.lac") for name in INPUTS),
    *(("mask", epoch) for epoch in range(4)),
    *(("attention", kind) for kind in ("MHA", "MQA", "GQA")),
    *(("groups", kind) for kind in ("ragged", "even", "channel")),
    *(("learned", f"{site}.shift") for site in ("norm1", "norm2", "vo")),
    *(("learned", f"{linear}.lwc_{side}") for linear in LINEARS for side in ("max", "min")),
    *(("learned", f"{linear}.offset") for linear in LINEARS),
}


def test_the_random_blocks_cover_every_kind() -> None:
    seen = set().union(*(kinds_of(Draw(seed).case()) for seed in range(200)))
    assert seen >= REQUIRED, REQUIRED - seen


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(4))
def test_gradients_over_two_thousand_random_blocks(double: Any, chunk: int) -> None:
    check_blocks(double, range(1000 + 500 * chunk, 1500 + 500 * chunk))


def test_a_wrong_gradient_would_be_seen(double: Any) -> None:
    case = Draw(5, w_bits=4, lwc=True, vo_map="affine", v_bits=16).case()
    surrogate = Surrogate(double, case)
    surrogate.gradients["vo.map"] *= 1 + 1e-4
    with pytest.raises(pytest.fail.Exception, match=r"vo\.map"):
        check_direction(surrogate, "vo.map", np.ones(case.learnables["vo.map"].shape))


def test_a_replay_that_does_not_fit_the_tape_is_refused(double: Any) -> None:
    double._tape(1)
    Draw(1, w_bits=4, tokens=4).case().loss(double)
    double._tape(2)
    with pytest.raises(ValueError, match="recorded surrogate"):
        Draw(2, w_bits=4, tokens=5, hidden_size=24).case().loss(double)
    with pytest.raises(ValueError, match="mode"):
        double._tape(3)


def relative_errors(gradients: Arrays, exact: Arrays, loss: float) -> dict[str, float]:
    """Return the error of each learnable's gradient by norms; a vanishing one counts against 1e-2 of all."""
    whole = np.sqrt(sum(float(np.sum(g**2)) for g in exact.values())) + 1e-3 * loss
    errors = {}
    for name, gradient in exact.items():
        size = max(float(np.linalg.norm(gradient)), 1e-2 * whole)
        errors[name] = float(np.linalg.norm(gradients[name] - gradient)) / size
    return errors


def check_float_gradients(double: Any, seeds: range) -> None:
    """Float against double, where the function is the same and has one gradient.

    Left out are blocks where a rounding decision differs (so does the function), and ties (rounding alone
    says which value is the extreme).  full_range is: its negative extreme sits at -(2^n - 1) / 2, halfway
    between two codes.  Weights are quantized and tokens are two or more: equivalent maps under no quantizer,
    and Q and K of a single token, have a gradient of 0, which float gives as its rounding.
    """
    compared = 0
    for seed in seeds:
        bits, tokens = (2, 3, 4, 8)[seed % 4], 2 + seed % 7
        case = Draw(seed, full_range=False, epoch=3, w_bits=bits, tokens=tokens, lwc=True).case()
        if not same_decisions(case, double) or not has_one_gradient(double, case):
            continue
        compared += 1
        loss, exact = case.loss(double)
        errors = relative_errors(case.loss(_core)[1], exact, loss)
        assert max(errors.values()) <= 1e-3, f"seed {seed}: {errors}"
    assert compared >= 0.6 * len(seeds), compared


def test_float_gradients_equal_double_ones(double: Any) -> None:
    check_float_gradients(double, range(2000, 2100))


@pytest.mark.slow
def test_float_gradients_over_a_thousand_random_blocks(double: Any) -> None:
    check_float_gradients(double, range(3000, 4800))
