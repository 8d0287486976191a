"""Mixtures of experts: gradients, autograd, exact maps, experts that see too few tokens, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from autograd_parity import comparable, count_agreeing
from random_blocks import EXPERT_FIELDS, Case, Draw, double_core
from surrogate import check_gradients

from omniquant import _core
from omniquant.errors import ConfigError, UnsupportedError
from omniquant.models.spec import BlockSpec

PLAIN = {"up_down": False, "input_map": "none", "rotate_down": False, "post_norms": False}
OFF = {"w_bits": 16, "bits": 16, "q_bits": 16, "k_bits": 16, "v_bits": 16}
SMOOTH = {"w_bits": 8, "bits": 8, "q_bits": 8, "k_bits": 8, "v_bits": 16}


@pytest.fixture
def double() -> Iterator[Any]:
    core = double_core()
    yield core
    core._tape(0)


def experts(seed: int, **forced: Any) -> Case:
    """Return a block with experts, of every kind in turn."""
    kind = {
        "num_experts": 2 + seed % 4,
        "experts_per_token": 1 + seed % 2,
        "normalized_experts": seed % 3 == 0,
        "shared_ffn_size": (0, 7, 12)[seed // 2 % 3],
    }
    return Draw(seed, quirks=True, **{**PLAIN, "tokens": 3 + seed % 7, **kind, **forced}).case()


def test_gradients_equal_differences_of_the_frozen_surrogate(double: Any) -> None:
    kinks = []
    for seed in range(8000, 8060):
        if not check_gradients(double, experts(seed, **SMOOTH), np.random.default_rng(seed)):
            kinks.append(seed)
    assert len(kinks) <= 3, kinks


def test_core_equals_autograd(double: Any) -> None:
    pytest.importorskip("torch", reason="torch, a test-only extra, is not installed")
    cases = (experts(seed, full_range=False) for seed in range(8200, 8260))
    assert count_agreeing(double, comparable(double, cases), 1e-10, 1e-8) >= 30


def test_the_router_has_a_gradient(double: Any) -> None:
    # An exact map changes no loss, so its gradient is zero; with shares held constant it would not be.
    maps = {"norm_map": "diagonal", "vo_map": "none", "qk_map": "none"}
    case = experts(8301, **OFF, **maps, residual="sequential", experts_per_token=2, num_experts=4)
    case.targets = case.targets + np.float32(0.1) * case.x_fp
    loss, gradients = case.loss(double)
    assert np.abs(gradients["norm2.map"]).max() <= 1e-9 * loss


def test_exact_maps_leave_the_block_as_it_was() -> None:
    changes = []
    for seed in range(200):
        rope = seed % 2 == 0
        qk_map = ("tied", "rotation", "none")[seed // 2 % 3] if rope else ("scale", "full")[seed // 2 % 2]
        case = experts(seed, **OFF, rope=rope, qk_map=qk_map)
        case.epoch = 3
        before = case.forward(_core, case.weights, case.x_q).astype(np.float64)
        after = case.forward(_core, case.fold(_core), case.x_q).astype(np.float64)
        changes.append(np.abs(after - before).max() / np.abs(before).max())
    assert max(changes) <= 1e-5, int(np.argmax(changes))


def test_one_expert_of_one_is_the_mlp() -> None:
    case = experts(3, **OFF, num_experts=1, experts_per_token=1, shared_ffn_size=0, normalized_experts=True)
    plain = {key: value for key, value in case.weights.items() if not key.startswith("router")}
    spec = {key: value for key, value in case.spec.items() if key not in EXPERT_FIELDS}
    expected = _core.block_forward(spec, plain, case.x_q, case.cos, case.sin)
    np.testing.assert_allclose(case.forward(_core, case.weights, case.x_q), expected, rtol=0, atol=1e-6)


def test_results_do_not_depend_on_threads() -> None:
    case = experts(8400, w_bits=4, bits=4, tokens=9)
    one, two = (case.calibrate(threads=threads) for threads in (1, 2))
    assert one["loss_final"] == two["loss_final"]
    for name, values in one["folded"].items():
        np.testing.assert_array_equal(values, two["folded"][name])


IMPOSSIBLE = [
    ({"num_experts": 0, "experts_per_token": 1}, "experts_per_token"),
    ({"num_experts": 3, "experts_per_token": 4}, "experts_per_token"),
    ({"num_experts": 3, "experts_per_token": 0}, "experts_per_token"),
    ({"num_experts": -1}, "num_experts"),
    ({"num_experts": 4097, "experts_per_token": 1}, "num_experts"),
    ({"shared_ffn_size": 8}, "shared_ffn_size"),
    ({"shared_ffn_size": -1, "num_experts": 2, "experts_per_token": 1}, "shared_ffn_size"),
]


@pytest.mark.parametrize(("fields", "what"), IMPOSSIBLE)
def test_impossible_experts(fields: dict[str, int], what: str) -> None:
    sizes = {"hidden_size": 8, "ffn_size": 8, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4}
    with pytest.raises(ConfigError, match=what):
        BlockSpec(**sizes, **fields)
    case = Draw(1, rope=True).case()
    with pytest.raises(ValueError, match=what):
        _core.block_forward({**case.spec, **fields}, case.weights, case.x_q, case.cos, case.sin)


REFUSED = [
    ({"up_down": True, "mlp": "gated"}, "up_down: experts have no map of their own"),
    ({"input_map": "kronecker", "norm_map": "none"}, "input_map: experts have no map of their own"),
    ({"start": "search"}, "nearest: start paper"),
    ({"rounding": "gptq"}, "rounding nearest or learned"),
]


@pytest.mark.parametrize(("options", "what"), REFUSED)
def test_what_experts_cannot(options: dict[str, Any], what: str) -> None:
    case = experts(8401, mlp="gated")
    case.options.update(options)
    with pytest.raises(UnsupportedError, match=what):
        case.calibrate()


@pytest.mark.parametrize("field", ["post_norms", "rotate_down"])
def test_no_norm_and_no_rotation_stands_behind_experts(field: str) -> None:
    case = experts(8402, residual="sequential")
    with pytest.raises(ValueError, match="experts with a norm or a rotation of their own"):
        _core.block_forward({**case.spec, field: True}, case.weights, case.x_q, case.cos, case.sin)
