"""Sink tokens: found where a state is massive, counted in the report, and left out of the loss on request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from random_blocks import Case, Draw
from small_run import small_model, small_tokens

import omniquant
from omniquant import _core
from omniquant.errors import ConfigError

PLAIN = {"tokens": 9, "samples": 3, "w_bits": 3, "lwc": True, "aug": False, "loss": "mse", "biases": "none"}


def case_with_sinks(times: float, **forced: object) -> Case:
    """Return a block whose first token of two windows out of three is so many times the others."""
    case = Draw(3, **PLAIN, **forced).case()
    for stream in (case.x_fp, case.x_q):
        stream[[0, 2], 0] *= np.float32(times)
    case.targets = case.forward(_core, case.weights, case.x_fp)
    return case


@pytest.mark.parametrize(("times", "found"), [(1, 0), (100, 2)])
def test_they_are_counted(times: float, found: int) -> None:
    assert case_with_sinks(times).calibrate()["sinks"] == found


@pytest.mark.parametrize("followers", [0, 1])
def test_out_of_the_loss_they_weigh_nothing(followers: int) -> None:
    """Moving their targets then changes nothing, and it does while they are kept."""
    for sinks in ("kept", "out"):
        case = case_with_sinks(100, followers=followers)
        if followers:
            spec, weights, cos, sin = case.ahead["followers"][0]
            case.ahead["goals"] = _core.block_forward(spec, weights, case.targets, cos, sin)
        case.options["sinks"] = sinks
        before, gradients = case.loss(_core)
        case.targets[[0, 2], 0] *= np.float32(1.5)
        if followers:
            case.ahead["goals"][[0, 2], 0] *= np.float32(1.5)
        after, moved = case.loss(_core)
        assert (after == before) == (sinks == "out")
        assert all(np.array_equal(gradients[name], moved[name]) for name in moved) == (sinks == "out")


def test_a_report_has_them_and_so_does_the_manifest(tmp_path: Path) -> None:
    model, tokens = small_model(tmp_path), small_tokens()
    options = {"epochs": 1, "sinks": "out", "progress": False}
    result = omniquant.calibrate(model, tokens, "W3A16", output=tmp_path / "result", **options)
    assert all(report.sinks == 0 for report in result.blocks)
    again = omniquant.calibrate(model, tokens, "W3A16", output=tmp_path / "result", resume=True, **options)
    assert [report.durable() for report in again.blocks] == [report.durable() for report in result.blocks]
    assert again.header.options.sinks == "out"


def test_other_wishes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sinks 'gone' is not one of kept, out"):
        omniquant.calibrate(small_model(tmp_path), small_tokens(), "W3A16", sinks="gone")
