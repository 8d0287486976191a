"""A loss that looks through the blocks behind: its value, its gradient, and a whole calibration by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_blocks import Case, Draw, dequantized, double_core
from small_run import small_model, small_tokens
from surrogate import check_gradients

import omniquant
from omniquant import _core
from omniquant.errors import ConfigError

FLOATS = {"bits": 16, "q_bits": 16, "k_bits": 16, "v_bits": 16}
LEARNING: dict[str, Any] = {"epochs": 8, "lr_lwc": 0.1, "progress": False}
FLOATS |= {"loss": "mse", "aug": False, "input_map": "none"}


def through(case: Case, y: Any) -> Any:
    """Return what the followers make of a block's output."""
    for spec, weights, cos, sin in case.ahead["followers"]:
        y = _core.block_forward(spec, weights, y, cos, sin)
    return y


@pytest.mark.parametrize("followers", [1, 2, 3])
def test_gradients_equal_differences_of_the_frozen_surrogate(followers: int) -> None:
    double = double_core()
    seeds = range(120)
    kinks = [
        seed
        for seed in seeds
        if not check_gradients(double, Draw(seed, followers=followers).case(), np.random.default_rng(seed))
    ]
    assert len(kinks) <= 0.3 * len(seeds)


def test_the_loss_is_that_of_the_block_and_that_behind_the_last_follower() -> None:
    for seed in range(20):
        case = Draw(seed, followers=2, epoch=3, lac=False, **FLOATS).case()
        y = case.forward(_core, dequantized(_core, case.fold(_core), case.options), case.x_q)
        near = np.mean((y - case.targets) ** 2)
        far = np.mean((through(case, y) - case.ahead["goals"]) ** 2)
        assert case.loss(_core)[0] == pytest.approx(near + far, rel=1e-3)


def test_training_lowers_the_loss_behind() -> None:
    lower = 0
    for seed in range(10):
        forced = {"w_bits": 3, "lwc": True, "epochs": 20, "lr_lwc": 0.05, "rounding": "learned", **FLOATS}
        report = Draw(seed, followers=1, **forced).case().calibrate()
        assert report["loss_final"] <= report["loss_initial"]
        lower += report["loss_final"] < 0.9 * report["loss_initial"]
    assert lower >= 8


@pytest.mark.parametrize("key", ["goals", "followers"])
def test_goals_and_followers_go_together(key: str) -> None:
    case = Draw(0, followers=1).case()
    with pytest.raises(ValueError, match="followers and goals go together"):
        _core.calibrate_block(*case.data(), **{key: case.ahead[key]})


def test_followers_that_do_not_fit_are_refused() -> None:
    case = Draw(0, followers=1, hidden_size=12).case()
    other = Draw(1, hidden_size=13, tokens=case.x_fp.shape[1]).case()
    case.ahead["followers"] = [(other.spec, other.weights, other.cos, other.sin)]
    with pytest.raises(ValueError, match="followers: expected hidden_size 12, got 13"):
        case.calibrate()
    case.ahead["followers"] = [()]
    with pytest.raises(TypeError, match=r"followers: expected tuples \(spec, weights, cos, sin\)"):
        case.calibrate()
    case.ahead["followers"] = [None] * 8
    with pytest.raises(ValueError, match="followers: expected a list of at most 7"):
        case.calibrate()


def codes_of(result: omniquant.CalibrationResult) -> list[Any]:
    folded = result.fold()
    states = [folded.state(index).folded for index in range(result.fold().num_layers)]
    return [values for state in states for name, values in sorted(state.items()) if name.endswith("codes")]


@pytest.mark.parametrize("look_ahead", [1, 2, 7])
def test_a_calibration_has_the_same_bits_resumed_and_in_files(tmp_path: Path, look_ahead: int) -> None:
    model, tokens = small_model(tmp_path), small_tokens()
    options = LEARNING | {"look_ahead": look_ahead, "threads": 1}
    whole = omniquant.calibrate(model, tokens, "W3A16", output=tmp_path / "whole", **options)
    filed = omniquant.calibrate(model, tokens, "W3A16", memory=0, **{**options, "threads": 2})
    stop = _StopAfter(1)
    with pytest.raises(_StoppedError):
        omniquant.calibrate(model, tokens, "W3A16", output=tmp_path / "part", callbacks=[stop], **options)
    resumed = omniquant.calibrate(model, tokens, "W3A16", output=tmp_path / "part", resume=True, **options)
    for other in (filed, resumed):
        for a, b in zip(codes_of(whole), codes_of(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_it_is_another_loss_and_leads_to_other_codes(tmp_path: Path) -> None:
    model, tokens = small_model(tmp_path), small_tokens()
    plain = omniquant.calibrate(model, tokens, "W3A16", **LEARNING)
    ahead = omniquant.calibrate(model, tokens, "W3A16", look_ahead=1, **LEARNING)
    assert ahead.blocks[0].loss_rtn > plain.blocks[0].loss_rtn  # the same weights, another loss added
    assert any(not np.array_equal(a, b) for a, b in zip(codes_of(plain), codes_of(ahead), strict=True))


@pytest.mark.parametrize("value", [-1, 8, 1.5, True])
def test_depths_that_make_no_sense_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfigError, match="look_ahead"):
        omniquant.calibrate(small_model(tmp_path), small_tokens(), "W3A16", look_ahead=value)


class _StoppedError(Exception):
    pass


class _StopAfter(omniquant.Callback):
    """Stop when so many blocks are done."""

    def __init__(self, blocks: int) -> None:
        self.left = blocks

    def on_block(self, report: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise _StoppedError
