"""Sink tokens: found where a state is massive, counted in the report, left out of the loss on request.

Whose keys and values stay in float is said by the scheme: the first of every text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from random_blocks import Case, Draw
from small_run import small_model, small_tokens

import omniquant
from omniquant import _core
from omniquant.errors import ConfigError, UnsupportedError

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


@pytest.mark.parametrize("lengths", [None, [4, 1, 4]])
def test_keys_and_values_of_the_first_tokens_stay_in_float(lengths: list[int] | None) -> None:
    case = Draw(
        11, tokens=9, num_kv_heads=2, v_bits=2, k_bits=2, bits=16, q_bits=16, residual="sequential"
    ).case()
    quantizers = case.options["activation"]
    options = {} if lengths is None else {"lengths": np.array(lengths, np.int32)}

    def outputs(**changes: int) -> np.ndarray:
        return case.forward(_core, case.weights, case.x_fp[:1], activation=quantizers | changes, **options)

    floats, rounded = outputs(k_bits=16, v_bits=16), outputs()
    np.testing.assert_array_equal(outputs(sink_tokens=9), floats)
    kept = outputs(sink_tokens=1)[0]
    starts = np.cumsum([0, *(lengths or [9])])[:-1]
    np.testing.assert_array_equal(kept[starts], floats[0][starts])  # a text's first token sees itself alone
    assert not np.array_equal(kept, floats[0])
    assert not np.array_equal(kept, rounded[0])


def test_a_scheme_that_keeps_them_is_kept_and_refused_by_exports(tmp_path: Path) -> None:
    model, tokens = small_model(tmp_path), small_tokens()
    result = omniquant.calibrate(
        model, tokens, "W8sA8sfKV3sink2", epochs=1, output=tmp_path / "run", progress=False
    )
    again = omniquant.CalibrationResult.load(tmp_path / "run")
    assert again.scheme.sink_tokens == 2
    assert omniquant.perplexity(again, tokens) == omniquant.perplexity(result, tokens)
    with pytest.raises(UnsupportedError, match="scheme W8sA8sfKV16"):
        again.export(tmp_path / "out", "compressed-tensors")
