"""Blocks of other kinds than LLaMA's: gradients, autograd, equivalence, every field of the spec drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from autograd_parity import comparable, count_agreeing
from random_blocks import Case, Draw, double_core, norm_widths
from surrogate import check_gradients

from omniquant import _core

OFF = {"w_bits": 16, "bits": 16, "q_bits": 16, "k_bits": 16, "v_bits": 16}
SMOOTH = {"w_bits": 8, "bits": 8, "q_bits": 8, "k_bits": 8, "v_bits": 16}
FIELDS = {
    "rotary_dim",
    "residual",
    "head_norms",
    "post_norms",
    "attention_scale",
    "score_cap",
    "window",
    "alibi",
}


@pytest.fixture
def double() -> Iterator[Any]:
    core = double_core()
    yield core
    core._tape(0)


def test_the_blocks_have_every_field() -> None:
    cases = [Draw(seed, quirks=True).case() for seed in range(100)]
    assert set().union(*(case.spec for case in cases)) >= FIELDS
    assert {case.spec.get("residual", "sequential") for case in cases} == {"sequential", "parallel", "shared"}
    learned = set().union(*(case.learnables for case in cases if case.spec.get("residual") == "shared"))
    assert {"norm1.map", "norm1.shift", "vo.map", "vo.shift", "qk.map", "up_down.map"} <= learned
    assert not {"norm2.map", "norm2.shift"} & learned


def test_gradients_equal_differences_of_the_frozen_surrogate(double: Any) -> None:
    kinks = []
    for seed in range(7000, 7080):
        case = Draw(seed, quirks=True, **SMOOTH).case()
        if not check_gradients(double, case, np.random.default_rng(seed)):
            kinks.append(seed)
    assert len(kinks) <= 3, kinks


def test_core_equals_autograd(double: Any) -> None:
    pytest.importorskip("torch", reason="torch, a test-only extra, is not installed")
    cases = (Draw(seed, quirks=True, full_range=False).case() for seed in range(7200, 7300))
    assert count_agreeing(double, comparable(double, cases), 1e-10, 1e-8) >= 60


def exact_case(seed: int) -> Case:
    """Return a block under random exact maps: those of q and k commute with its rotary embedding."""
    rope = seed % 2 == 0
    qk_map = ("tied", "rotation", "none")[seed // 2 % 3] if rope else ("scale", "full", "none")[seed // 2 % 3]
    case = Draw(seed, quirks=True, **OFF, rope=rope, qk_map=qk_map).case()
    case.epoch = 3
    return case


def test_exact_maps_leave_every_kind_of_block_as_it_was() -> None:
    changes = []
    for seed in range(400):
        case = exact_case(seed)
        before = case.forward(_core, case.weights, case.x_q).astype(np.float64)
        after = case.forward(_core, case.fold(_core), case.x_q).astype(np.float64)
        changes.append(np.abs(after - before).max() / np.abs(before).max())
    assert max(changes) <= 1e-5, int(np.argmax(changes))


def test_no_map_passes_the_norms_of_q_and_k() -> None:
    case = Draw(3, quirks=True, head_norms=True, rope=True).case()
    case.options["qk_map"] = "scale"
    with pytest.raises(Exception, match="no map passes the norms of q and k"):
        case.calibrate()


IMPOSSIBLE = [
    ("window", -1, "window"),
    ("score_cap", -0.5, "score_cap"),
    ("attention_scale", float("nan"), "scale"),
    ("rotary_dim", 3, "even number of dims"),
    ("rotary_dim", 64, "even number of dims"),
    ("residual", "both", "residual"),
]


@pytest.mark.parametrize(("field", "value", "message"), IMPOSSIBLE)
def test_impossible_fields_are_refused(field: str, value: Any, message: str) -> None:
    case = Draw(3, rope=True, head_dim=8).case()
    case.spec[field] = value
    with pytest.raises(ValueError, match=message):
        case.forward(_core, case.weights, case.x_q)


@pytest.mark.parametrize("name", ["post1", "post2", "q_norm", "k_norm"])
def test_a_missing_norm_is_named(name: str) -> None:
    case = Draw(3, quirks=True, head_norms=True, post_norms=True).case()
    assert name in norm_widths(case.spec)
    del case.weights[f"{name}.weight"]
    with pytest.raises(ValueError, match=rf'"{name}\.weight"'):
        case.forward(_core, case.weights, case.x_q)
