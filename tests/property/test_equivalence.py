"""With quantization off, exact maps and shifts leave a block's output as it was: a theorem, so a test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from random_blocks import Arrays, Case, Draw, double_core, learnable_shapes

from omniquant import _core

OFF = {"w_bits": 16, "bits": 16, "q_bits": 16, "k_bits": 16, "v_bits": 16}


def exact_case(seed: int) -> Case:
    """Return a block under random exact maps: those of q and k commute with its rotary embedding."""
    rope = seed % 2 == 0
    qk_map = ("tied", "rotation", "none")[seed // 2 % 3] if rope else ("scale", "full", "none")[seed // 2 % 3]
    case = Draw(seed, **OFF, rope=rope, qk_map=qk_map).case()
    case.epoch = 3
    return case


def relative_change(core: Any, case: Case, weights: Arrays) -> float:
    """Return the largest change of the output relative to its largest value."""
    before = case.forward(core, case.weights, case.x_q).astype(np.float64)
    after = case.forward(core, weights, case.x_q).astype(np.float64)
    return float(np.abs(after - before).max() / np.abs(before).max())


def moves_weights(case: Case, folded: Arrays) -> bool:
    """Return whether the fold changed anything: an equivalence of nothing proves nothing."""
    return any(not np.array_equal(case.weights[key], folded[key]) for key in case.weights)


def test_float_blocks_are_unchanged() -> None:
    changes, moved = [], 0
    for seed in range(1000):
        case = exact_case(seed)
        folded = case.fold(_core)
        moved += moves_weights(case, folded)
        changes.append(relative_change(_core, case, folded))
    assert max(changes) <= 1e-5, int(np.argmax(changes))
    assert moved >= 900


def test_double_blocks_are_unchanged() -> None:
    double = double_core()
    changes = []
    for seed in range(100):
        case = exact_case(seed)
        changes.append(relative_change(double, case, case.fold(double)))
    assert max(changes) <= 1e-12, int(np.argmax(changes))


def test_the_blocks_cover_every_exact_map() -> None:
    cases = [exact_case(seed) for seed in range(200)]
    assert {case.options["qk_map"] for case in cases} == {"none", "tied", "rotation", "scale", "full"}
    assert {case.options["norm_map"] for case in cases} == {"none", "diagonal", "online"}
    assert {case.options["vo_map"] for case in cases} == {"none", "diagonal", "affine"}
    learned = set().union(*(learnable_shapes(case) for case in cases))
    assert {"norm1.shift", "norm2.shift", "vo.shift", "up_down.map"} <= learned
    for rotation, site in (("rotate_heads", "vo"), ("rotate_down", "up_down")):
        assert sum(case.spec[rotation] and f"{site}.map" in learnable_shapes(case) for case in cases) >= 8
    grouped = [case.spec["num_heads"] > case.spec["num_kv_heads"] > 1 for case in cases]
    assert sum(grouped) > 20


@pytest.mark.parametrize("qk_map", ["scale", "full"])
def test_maps_that_do_not_commute_with_rotary_embeddings_do_change_the_block(qk_map: str) -> None:
    case = Draw(
        3, **OFF, rope=True, qk_map=qk_map, norm_map="none", vo_map="none", tokens=9, head_dim=8
    ).case()
    assert relative_change(_core, case, case.fold(_core)) > 1e-3
