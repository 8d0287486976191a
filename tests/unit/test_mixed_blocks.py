"""Blocks whose linears are rounded to different bits and groups: each as in a block of its scheme alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from random_blocks import Draw, dequantized, double_core, learnable_shapes, linear_shapes, scheme_of
from surrogate import check_gradients
from ways import AVAILABLE

from omniquant import _core

PLAIN = {
    "norm_map": "none", "vo_map": "none", "qk_map": "none", "up_down": False, "input_map": "none",
    "lac": False, "shift": False, "mixed": True,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "nearest": {"epochs": 0, "lwc": False, "rounding": "nearest"},
    "clipping": {"epochs": 2, "lwc": True, "rounding": "nearest"},
    "learned": {"epochs": 2, "lwc": True, "rounding": "learned"},
    "gptq": {"epochs": 0, "lwc": False, "rounding": "gptq"},
    "search": {"epochs": 0, "lwc": True, "start": "search", "rounding": "nearest"},
    "search with scales": {"epochs": 0, "lwc": True, "start": "search", "norm_map": "diagonal"},
    "maps": {"epochs": 2, "norm_map": "diagonal", "vo_map": "affine", "rounding": "gptq"},
    "input maps": {"epochs": 2, "input_map": "kronecker", "lac": True, "rounding": "learned"},
}


def test_gradients_equal_differences_of_the_frozen_surrogate() -> None:
    core, seeds = double_core(), range(60)
    try:
        kinks = [
            seed
            for seed in seeds
            if not check_gradients(core, Draw(seed, mixed=True).case(), np.random.default_rng(seed))
        ]
    finally:
        core._tape(0)
    assert len(kinks) <= 0.25 * len(seeds)


def test_gradients_of_experts_at_different_bits() -> None:
    core, seeds = double_core(), range(30)
    forced = {
        "up_down": False, "input_map": "none", "rotate_down": False, "num_experts": 3, "experts_per_token": 2,
        "normalized_experts": True, "post_norms": False, "shared_ffn_size": 5, "tokens": 6,
        "mixed": True, "bits": 8, "v_bits": 16,
    }  # fmt: skip
    try:
        kinks = [
            seed
            for seed in seeds
            if not check_gradients(
                core, Draw(seed, quirks=True, **forced).case(), np.random.default_rng(seed)
            )
        ]
    finally:
        core._tape(0)
    assert len(kinks) <= 0.25 * len(seeds)


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_gets_its_own_scheme(kind: str) -> None:
    """Codes within its bits, scales of its groups, floats where it is left in float; that block is kept."""
    floats = 0
    for seed in range(8):
        case = Draw(seed, **{**PLAIN, **KINDS[kind]}).case()
        result = case.calibrate()
        folded = result["folded"]
        assert set(result["learnables"]) == set(learnable_shapes(case))
        for name, (out, width) in linear_shapes(case.spec).items():
            bits, group = scheme_of(case.options, name)
            if bits >= 16:
                floats += 1
                assert folded[f"{name}.weight"].shape == (out, width)
                assert f"{name}.codes" not in folded
                continue
            codes, scale = folded[f"{name}.codes"], folded[f"{name}.scale"]
            assert codes.max() < 2**bits
            assert scale.shape == (out, -(-width // group) if group else 1)
        y = case.forward(
            _core, dequantized(_core, folded, case.options), case.x_q, activation=case.options["activation"]
        )
        if case.options["loss"] == "mse" and case.aug_targets is None:
            error = float(((y.astype(np.float64) - case.targets) ** 2).mean())
            assert error == pytest.approx(result["loss_final"], rel=2e-3)
    assert floats > 3


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_linear_rounds_as_in_a_block_of_its_scheme_alone(rounding: str) -> None:
    for seed in range(12):
        forced = {**PLAIN, **KINDS["nearest"], "rounding": rounding, "bits": 16, "tokens": 9, "samples": 2}
        case = Draw(seed, **forced).case()
        mixed = case.calibrate()
        for name in ("q", "k", "v"):
            own = case.options["linears"].get(name)
            if own is None or own["bits"] >= 16:
                continue
            case_of_its_own = Draw(seed, **forced).case()
            case_of_its_own.options |= {
                "w_bits": own["bits"], "group_size": own["group_size"], "w_symmetric": own["symmetric"],
                "linears": {},
            }  # fmt: skip
            alone = case_of_its_own.calibrate()
            if {mixed["kept"], alone["kept"]} == {"gptq"} or rounding == "nearest":
                for part in ("codes", "scale", "zero_point"):
                    np.testing.assert_array_equal(
                        mixed["folded"][f"{name}.{part}"], alone["folded"][f"{name}.{part}"]
                    )


def test_threads_do_not_matter() -> None:
    for seed in range(4):
        for kind in ("learned", "gptq", "search"):
            case = Draw(seed, **{**PLAIN, **KINDS[kind]}).case()
            one, three = case.calibrate(threads=1), case.calibrate(threads=3)
            for name, values in one["folded"].items():
                np.testing.assert_array_equal(values, three["folded"][name])


@pytest.mark.parametrize("products", ["integer", "bfloat16"])
def test_fast_products_serve_some_linears_and_not_others(products: str) -> None:
    """Whole rows at few bits are exact sums of integers, groups and floats beside them are not."""
    if products not in AVAILABLE:
        pytest.skip(f"no {products} products here")
    floats = {"q_bits": 16, "k_bits": 16, "v_bits": 16, "aug": False, "loss": "mse"}
    forced = {"bits": 8, "tokens": 8, "samples": 2, **floats, **KINDS["clipping"]}
    for seed in range(6):
        losses = []
        for kind in ("float32", products):
            case = Draw(seed, **{**PLAIN, **forced, "products": kind}).case()
            case.options["linears"] = {
                "q": {"bits": 4, "group_size": 0, "symmetric": False},
                "k": {"bits": 16, "group_size": 0, "symmetric": False},
                "v": {"bits": 3, "group_size": 4, "symmetric": True},
                "down": {"bits": 16, "group_size": 0, "symmetric": False},
            }
            losses.append(case.calibrate()["loss_rtn"])
        assert losses[1] == pytest.approx(losses[0], rel=1e-3 if products == "integer" else 0.1)


def test_schemes_that_make_no_sense_are_refused() -> None:
    case = Draw(0, **PLAIN).case()
    case.options["linears"] = {"o": {"bits": 9, "group_size": 0, "symmetric": False}}
    with pytest.raises(ValueError, match=r"bits"):
        case.calibrate()
    case.options["linears"] = {"o": {"bits": 4, "group_size": -1, "symmetric": False}}
    with pytest.raises(ValueError, match=r"group_size"):
        case.calibrate()
    case.options["linears"] = {"o": 4}
    with pytest.raises(TypeError, match="o must be a dict"):
        case.calibrate()
