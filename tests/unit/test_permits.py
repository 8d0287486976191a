"""What a block permits is what the core does: shifts where it learns them, no map where it refuses one."""

from __future__ import annotations

from typing import Any

import pytest
from random_blocks import Draw

from omniquant.errors import UnsupportedError
from omniquant.models.spec import BlockSpec
from omniquant.permits import Permission, permitted_maps

FOLDED = {
    "norm_map": "diagonal", "vo_map": "diagonal", "qk_map": "none", "up_down": False, "input_map": "none",
    "shift": True, "rotate_qk": False, "rotate_heads": False, "rotate_down": False,
}  # fmt: skip
SIZES: dict[str, Any] = {
    "hidden_size": 8, "ffn_size": 12, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4,
}  # fmt: skip


def sites(spec: dict[str, Any], biases: set[str]) -> dict[str, Permission]:
    known = {name: value for name, value in spec.items() if name in BlockSpec.__dataclass_fields__}
    found = permitted_maps(BlockSpec(**known), biases)
    short = {"v -> o": "vo", "q <-> k": "qk", "up -> down": "up_down", "inputs of linears": "input_map"}
    return {short.get(each.site, each.site.split(" ->")[0]): each for each in found}


def test_shifts_are_where_the_core_learns_them() -> None:
    seen = set()
    for seed in range(60):
        case = Draw(seed, quirks=True, samples=1, **FOLDED).case()
        case.options["epochs"] = 0
        biases = {key.removesuffix(".bias") for key in case.weights if key.endswith(".bias")}
        permitted = {name for name, site in sites(case.spec, biases).items() if site.shift}
        learned = {key.removesuffix(".shift") for key in case.calibrate()["learnables"] if ".shift" in key}
        assert permitted == learned, (seed, case.spec, biases)
        seen.add(frozenset(learned))
    assert {frozenset(), frozenset({"vo"}), frozenset({"norm1", "norm2", "vo"})} <= seen


@pytest.mark.parametrize(
    ("site", "spec", "map"),
    [
        ("qk", {"head_norms": True}, {"qk_map": "scale"}),
        ("up_down", {"mlp": "plain"}, {"up_down": True}),
        ("up_down", {"num_experts": 3, "experts_per_token": 2}, {"up_down": True}),
        ("input_map", {"residual": "shared"}, {"input_map": "kronecker"}),
        ("input_map", {"num_experts": 3, "experts_per_token": 2}, {"input_map": "kronecker"}),
    ],
)
def test_where_there_is_no_map_the_core_refuses_one(
    site: str, spec: dict[str, Any], map: dict[str, Any]
) -> None:
    usual = {"residual": "sequential", "head_norms": False, "post_norms": False, "mlp": "gated"}
    case = Draw(0, quirks=True, **FOLDED, **(usual | spec)).case()
    case.options |= map
    assert sites(case.spec, set())[site].why
    with pytest.raises(UnsupportedError):
        case.calibrate()


def test_what_is_exact_between_q_and_k_depends_on_rotary_positions() -> None:
    rotary, plain = (sites(SIZES | {"rope": rope}, set())["qk"] for rope in (True, False))
    assert "commute" in str(rotary)
    assert str(rotary).endswith("approximate: " + " or ".join(plain.exact))
    assert plain.approximate == ()


def test_opts_shifts_and_llamas_none() -> None:
    biased = {"norm1", "norm2", "q", "k", "v", "o", "up", "down"}
    opt = sites(SIZES | {"norm": "layer", "rope": False, "mlp": "plain"}, biased)
    assert [name for name, site in opt.items() if site.shift] == ["norm1", "vo", "norm2"]
    assert "with shifts" in str(opt["vo"])
    assert not any(site.shift for site in sites(SIZES, set()).values())
    assert not sites(SIZES | {"residual": "shared"}, biased - {"up"})["norm1"].shift


def test_rotations_want_a_norm_that_keeps_them() -> None:
    assert not sites(SIZES, set())["residual stream"].why
    assert not sites(SIZES | {"num_experts": 2, "experts_per_token": 1}, set())["residual stream"].why
    for field in ({"norm": "layer"}, {"post_norms": True}):
        assert sites(SIZES | field, set())["residual stream"].why
