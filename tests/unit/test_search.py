"""AWQ's search of scales and clipping, against its specification in NumPy, and as a start of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from random_blocks import Array, Case, Draw, double_core
from small_run import contents, small_model, small_tokens

import omniquant
from omniquant import CalibrationOptions, QuantConfig
from omniquant.errors import ConfigError

SEARCHED = {"norm_map": "diagonal", "vo_map": "diagonal", "qk_map": "none", "shift": False, "lwc": True}


def block(seed: int, **forced: Any) -> Case:
    """Return a block without biases or quantized activations, so that NumPy can follow."""
    free = {"bits": 16, "q_bits": 16, "k_bits": 16, "v_bits": 16, "biases": "none", "aug": False}
    settings = {"w_bits": 3, "samples": 3, "tokens": 9, "epochs": 0, "start": "search", "norm": "rms"}
    off = {"rounding": "nearest", "w_symmetric": False, "up_down": False}
    return Draw(seed, **{**SEARCHED, **free, **settings, **off, **forced}).case()


def inputs(case: Case) -> Array:
    """Return what q, k and v read on the full-precision stream, [tokens, H]."""
    rows = case.x_fp.reshape(-1, case.x_fp.shape[-1]).astype(np.float64)
    norm = np.sqrt((rows**2).mean(axis=1, keepdims=True) + case.spec["norm_eps"])
    return rows / norm * case.weights["norm1.weight"]


def error_of(core: Any, case: Case, name: str, scale: Array, shrink: float = 1.0) -> Array:
    """Return D = Q(W s) / s - W under one shrink of every range."""
    weight = case.weights[f"{name}.weight"].astype(np.float64)
    settings = {"bits": case.options["w_bits"], "group_size": case.options["group_size"]}
    if shrink < 1:
        size = case.options["group_size"] or weight.shape[1]
        groups = -(-weight.shape[1] // size)
        logits = np.full((weight.shape[0], groups), np.log(shrink / (1 - shrink)))
        settings |= {"max_logit": logits, "min_logit": logits}
    quantized: Array = core.fake_quantize(weight * scale, **settings)
    return quantized / scale - weight


def best_scale(core: Any, case: Case) -> Array:
    """Return the scales behind the first norm, by trying every exponent."""
    x = inputs(case)
    tried = []
    for exponent in np.arange(20) / 20:
        scale = np.maximum(np.abs(x).sum(axis=0) ** exponent, 1e-4)
        scale /= np.sqrt(scale.min() * scale.max())
        error = sum(((x @ error_of(core, case, name, scale).T) ** 2).sum() for name in ("q", "k", "v"))
        tried.append((float(error), scale))
    return min(tried, key=lambda pair: pair[0])[1]


@pytest.mark.parametrize("group_size", [0, 4])
def test_scales_and_clipping_are_the_best_of_their_grids(group_size: int) -> None:
    double, compared = double_core(), 0
    for seed in range(12):
        case = block(seed, group_size=group_size)
        result = case.calibrate(double)
        if result["kept"] not in ("final", "initial"):
            continue
        compared += 1
        scale, x = best_scale(double, case), inputs(case)
        np.testing.assert_allclose(result["learnables"]["norm1.map"][0], np.maximum(scale, 1e-2), rtol=1e-9)
        size, shrinks = group_size or x.shape[1], 1 - 0.05 * np.arange(10)
        for g, begin in enumerate(range(0, x.shape[1], size)):
            part = slice(begin, begin + size)
            errors = [
                ((x[:, part] @ error_of(double, case, "v", scale, shrink)[:, part].T) ** 2).sum(axis=0)
                for shrink in shrinks
            ]
            logits = result["learnables"]["v.lwc_max"][:, g]
            found = np.where(logits > 10, 1.0, 1 / (1 + np.exp(-logits)))
            np.testing.assert_allclose(found, shrinks[np.argmin(errors, axis=0)], rtol=1e-9)
        for side in ("max", "min"):
            assert (result["learnables"][f"q.lwc_{side}"] > 10).all()
    assert compared >= 6


def test_the_search_lowers_the_loss_and_is_a_better_start() -> None:
    searched, trained = [], []
    for seed in range(16):
        result = block(seed, w_bits=2).calibrate()
        assert result["loss_final"] <= result["loss_rtn"]
        searched.append(result["loss_final"] / result["loss_rtn"])
        short = {"w_bits": 2, "epochs": 1, "lr_lwc": 1e-3, "lr_let": 1e-3}
        starts = [
            block(seed, **short, start=start).calibrate()["loss_initial"] for start in ("search", "paper")
        ]
        trained.append(starts[0] / starts[1])
    assert np.median(searched) < 0.8
    assert np.median(trained) < 0.9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a model of two blocks."""
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("options", [{}, {"rounding": "gptq"}])
def test_threads_and_resume_change_no_bit(model: Any, tmp_path: Any, options: dict[str, Any]) -> None:
    def run(folder: str, **more: Any) -> dict[str, str]:
        path = tmp_path / folder
        settings = {"method": "awq", "progress": False, "threads": 1} | options | more
        omniquant.calibrate(model, small_tokens(), "W3A16g8", output=path, **settings)
        return contents(path)

    once = run("one")
    assert run("three", threads=3) == once
    (tmp_path / "three" / "block_00001.safetensors").unlink()
    assert run("three", resume=True) == once


def test_only_a_search_clips_without_training() -> None:
    scheme = QuantConfig.parse("W3A16")
    assert CalibrationOptions.for_method("awq", scheme).lwc
    assert CalibrationOptions.for_method("gptq", scheme, lwc=True, start="search").lwc
    assert not CalibrationOptions.for_method("gptq", scheme, lwc=True).lwc
    assert not CalibrationOptions.for_method("rtn", scheme, lwc=True, start="search").lwc


def test_a_single_layer_is_not_searched() -> None:
    with pytest.raises(ConfigError, match="search"):
        omniquant.calibrate_linear(np.eye(4), np.eye(4), "W4A16", start="search")
