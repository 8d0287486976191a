"""GPTQ's error feedback against its specification in NumPy, and as the last step of a calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from random_blocks import Array, Arrays, Case, Draw, dequantized, double_core, linear_shapes
from small_run import contents, small_model, small_tokens

import omniquant
from omniquant import CalibrationOptions, QuantConfig, _core
from omniquant.errors import ConfigError, OmniQuantError

PLAIN = {
    "norm_map": "none", "vo_map": "none", "qk_map": "none", "up_down": False, "input_map": "none",
    "lwc": False, "lac": False,
}  # fmt: skip


def gptq(weight: Array, gram: Array, scale: Array, zero: Array, options: dict[str, Any]) -> Array:
    """Return the codes of W [out, in]: column after column, by the inverse of what is left of G."""
    out, width = weight.shape
    group = options["group_size"] or width
    top, codes = 2 ** options["w_bits"] - 1, np.zeros((out, width), np.uint8)
    diagonal = np.diag(gram)
    order = np.argsort(-diagonal, kind="stable") if options["act_order"] else np.arange(width)
    damped = gram + options["damping"] * diagonal.mean() * np.eye(width)
    inverse = np.linalg.inv(damped[np.ix_(order, order)])
    left = weight[:, order].astype(np.float64)
    for i, column in enumerate(order):
        h, z = (each[:, min(column // group, each.shape[1] - 1)].astype(np.float64) for each in (scale, zero))
        q = np.clip(np.rint(left[:, i] / h) + z, 0, top)
        codes[:, column] = q
        error = (left[:, i] - (q - z) * h) / inverse[0, 0]
        left[:, i:] -= np.outer(error, inverse[0])
        # Leaving column i out of the problem: one step of elimination on the inverse.
        inverse = inverse[1:, 1:] - np.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
    return codes


def block(seed: int, **forced: Any) -> Case:
    """Return a block without biases, maps or quantized activations, so that NumPy can follow."""
    free = {"bits": 16, "q_bits": 16, "k_bits": 16, "v_bits": 16, "biases": "none", "aug": False}
    settings = {"w_bits": 3, "samples": 3, "tokens": 9, "epochs": 0, "rounding": "gptq", "norm": "rms"}
    return Draw(seed, **{**PLAIN, **free, **settings, **forced}).case()


def normalized(x: Array, gain: Array, spec: dict[str, Any]) -> Array:
    """Return RMSNorm of the rows."""
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    return rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + spec["norm_eps"]) * gain


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("group_size", [0, 4, 7])
def test_codes_are_those_of_the_specification(act_order: bool, group_size: int) -> None:
    double, compared = double_core(), 0
    for seed in range(12):
        case = block(seed, act_order=act_order, group_size=group_size, true_sequential=seed % 2 == 0)
        result = case.calibrate(double)
        if result["kept"] != "gptq":
            continue
        compared += 1
        x = normalized(case.x_q, case.weights["norm1.weight"], case.spec)
        for name in ("q", "k", "v"):
            scale, zero = (result["folded"][f"{name}.{key}"] for key in ("scale", "zero_point"))
            expected = gptq(case.weights[f"{name}.weight"], x.T @ x, scale, zero, case.options)
            np.testing.assert_array_equal(result["folded"][f"{name}.codes"], expected, err_msg=name)
    assert compared >= 6


def test_wide_rows_go_through_several_blocks_of_columns() -> None:
    double = double_core()
    case = block(3, hidden_size=300, ffn_size=8, samples=4, tokens=120, act_order=True, group_size=0)
    result = case.calibrate(double)
    assert result["kept"] == "gptq"
    x = normalized(case.x_q, case.weights["norm1.weight"], case.spec)
    scale, zero = result["folded"]["q.scale"], result["folded"]["q.zero_point"]
    expected = gptq(case.weights["q.weight"], x.T @ x, scale, zero, case.options)
    # Rounding decisions within a float's last bits of a tie may differ in a few of 300 columns' chains.
    assert (result["folded"]["q.codes"] == expected).mean() > 0.999


def loss_of(case: Case, folded: Arrays, core: Any) -> float:
    """Return the mean squared error of the folded block on X_q."""
    y = case.forward(core, dequantized(core, folded, case.options), case.x_q)
    return float(((y - case.targets) ** 2).mean())


def test_the_block_loses_less_and_the_grids_stay() -> None:
    gains = []
    for seed in range(20):
        case = block(seed, loss="mse")
        fed, nearest = case.calibrate(), block(seed, loss="mse", rounding="nearest").calibrate()
        assert fed["loss_final"] <= fed["loss_rtn"] * (1 + 1e-6)
        assert loss_of(case, fed["folded"], _core) == pytest.approx(fed["loss_final"], rel=1e-3)
        gains.append(fed["loss_final"] / nearest["loss_final"])
        for name in linear_shapes(case.spec):
            for key in (f"{name}.scale", f"{name}.zero_point"):
                np.testing.assert_array_equal(fed["folded"][key], nearest["folded"][key])
    assert np.median(gains) < 0.8


def test_codes_that_lose_more_than_nearest_are_not_taken() -> None:
    kept = set()
    for seed in range(40):
        case = block(seed, tokens=2, samples=1, w_bits=8, act_order=False, damping=1e3)
        result = case.calibrate()
        kept.add(result["kept"])
        if result["kept"] != "gptq":
            nearest = block(seed, tokens=2, samples=1, w_bits=8, rounding="nearest").calibrate()
            np.testing.assert_array_equal(result["folded"]["q.codes"], nearest["folded"]["q.codes"])
    assert len(kept) > 1


def test_learned_maps_come_before_it() -> None:
    maps = {"norm_map": "diagonal", "vo_map": "affine", "lwc": True, "epochs": 6, "dominance": "project"}
    lower = 0
    for seed in range(10):
        fed, nearest = (block(seed, **maps, rounding=kind).calibrate() for kind in ("gptq", "nearest"))
        np.testing.assert_array_equal(fed["folded"]["norm1.weight"], nearest["folded"]["norm1.weight"])
        lower += fed["loss_final"] < nearest["loss_final"]
    assert lower >= 7


def test_float_weights_have_nothing_to_round() -> None:
    assert block(1, w_bits=16, bits=4).calibrate()["kept"] != "gptq"


def test_inputs_that_are_all_zero_are_rounded_to_nearest() -> None:
    case = block(2)
    case.weights["norm1.weight"] = np.zeros_like(case.weights["norm1.weight"])
    case.targets = case.forward(_core, case.weights, case.x_fp)
    result, plain = case.calibrate(), case.fold(_core)
    np.testing.assert_array_equal(result["folded"]["q.codes"], plain["q.codes"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a model of two blocks."""
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("scheme", ["W3A16g8", "W4A4"])
def test_threads_and_resume_change_no_bit(model: Any, tmp_path: Any, scheme: str) -> None:
    def run(folder: str, **options: Any) -> dict[str, str]:
        path = tmp_path / folder
        settings = {"method": "gptq", "progress": False, "threads": 1} | options
        result = omniquant.calibrate(model, small_tokens(), scheme, output=path, **settings)
        assert {report.kept for report in result.blocks} & {"gptq"}
        return contents(path)

    once = run("one")
    assert run("three", threads=3) == once
    (tmp_path / "three" / "block_00001.safetensors").unlink()
    assert run("three", resume=True) == once


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("rtn", {"rounding": "gptq"}, "method 'rtn' has its own"),
        ("gptq", {"rounding": "nearest"}, "method 'gptq' has its own"),
        ("gptq", {"norm_map": "diagonal"}, "as they are"),
        ("gptq", {"damping": 0.0}, "damping"),
    ],
)
def test_wishes_that_contradict_are_refused(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CalibrationOptions.for_method(method, QuantConfig.parse("W4A16"), **options)


def test_a_single_layer_has_no_error_feedback() -> None:
    with pytest.raises(OmniQuantError, match="gptq"):
        omniquant.calibrate_linear(np.eye(4), np.eye(4), "W4A16", rounding="gptq")
