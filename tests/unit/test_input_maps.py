"""Kronecker maps and clipping on the inputs of linears: certified, stored, refused elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_blocks import INPUTS, Draw, input_factors
from small_run import contents, small_model, small_tokens

import omniquant
from omniquant import _core
from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.describe import describe_maps
from omniquant.errors import CheckpointError, ConfigError, UnsupportedError
from omniquant.export.refusals import Wish
from omniquant.export.table import FORMATS, refuse
from omniquant.models import BlockSpec
from omniquant.quantized import QuantizedModel

BOTH = {"input_map": "kronecker", "lac": True}
OPTIONS = {"method": "affinequant", "epochs": 3, "progress": False, "threads": 1} | BOTH
SPEC = BlockSpec(hidden_size=576, ffn_size=1536, num_heads=9, num_kv_heads=3, head_dim=64)


@pytest.mark.parametrize("scheme", ["W4A4", "W4A4KV16", "W16A4KV16", "W3A16g8"])
@pytest.mark.parametrize("rotation", ["none", "online"])
def test_a_result_computes_the_same_from_memory_and_disk(scheme, rotation, tmp_path):
    model, tokens = small_model(tmp_path / "model"), small_tokens()
    options = OPTIONS | {"rotation": rotation, "loss": "relative"}
    result = omniquant.calibrate(model, tokens, scheme, output=tmp_path / "out", **options)
    fake = omniquant.perplexity(result, tokens)
    stored = QuantizedModel.load(tmp_path / "out")
    assert omniquant.perplexity(stored, tokens) == fake
    assert stored.perplexity(tokens) == result.fold().perplexity(tokens)  # on integers
    names = result.state(0).folded.keys()
    assert {f"{name}.left" for name in INPUTS} <= names
    assert ("down.clip" in names) == (result.scheme.a_bits < 16)


def test_the_trained_block_clips_and_maps():
    case = Draw(11, bits=4, w_bits=4, norm_map="none", epoch=3, **BOTH).case()
    folded = case.fold(_core)
    for name in INPUTS:
        left, right = input_factors(case.spec, name)
        assert folded[f"{name}.left"].shape == (left, left)
        assert folded[f"{name}.right"].shape == (right, right)
        np.testing.assert_array_equal(folded[f"{name}.clip"], case.learnables[f"{name}.lac"])
    out = case.forward(_core, case.weights, case.x_q, activation=case.options["activation"])
    clipped = case.weights | {"down.clip": np.zeros(2, np.float32)}
    again = case.forward(_core, clipped, case.x_q, activation=case.options["activation"])
    assert not np.array_equal(out, again)
    same = case.weights | {"down.clip": np.full(2, 40, np.float32)}
    np.testing.assert_array_equal(
        out, case.forward(_core, same, case.x_q, activation=case.options["activation"])
    )


def test_a_map_without_its_other_factor_is_refused():
    case = Draw(3, bits=4).case()
    left, _ = input_factors(case.spec, "down")
    with pytest.raises(ValueError, match=r'weights lack "down.right"'):
        case.forward(_core, case.weights | {"down.left": np.eye(left)}, case.x_q)


def test_the_bounds_of_both_factors_multiply():
    case = Draw(11, bits=4, w_bits=4, norm_map="none", vo_map="none", qk_map="none", **BOTH).case()
    report = case.calibrate()
    bounds, norms = [], []
    for name in INPUTS:
        factors = [report["learnables"][f"{name}_{side}.map"] for side in ("left", "right")]
        matrices = []
        for parameters in factors:
            a = parameters[0].astype(np.float64) * case.options["stability"]
            np.fill_diagonal(a, np.diagonal(parameters[0]))
            if case.options["parametrization"] == "relative":
                off = a - np.diag(np.diagonal(a))
                a = np.diagonal(a)[:, None] * (np.eye(len(a)) + off)
            matrices.append(a)
        margins = [_core.dominance_margins(a[None]).min() for a in matrices]
        bounds.append(1 / margins[0] / margins[1])
        inverse = np.linalg.inv(np.kron(*matrices))
        norms.append(np.abs(inverse).sum(axis=1).max())
    assert report["varah_bound"] == pytest.approx(max(bounds), rel=1e-6)
    assert all(norm <= bound * (1 + 1e-9) for norm, bound in zip(norms, bounds, strict=True))


def test_it_resumes_to_the_same_bits_at_any_number_of_threads(tmp_path):
    model, tokens = small_model(tmp_path / "model"), small_tokens()
    omniquant.calibrate(model, tokens, "W4A4", output=tmp_path / "whole", **OPTIONS)
    omniquant.calibrate(model, tokens, "W4A4", output=tmp_path / "cut", **OPTIONS | {"threads": 2})
    (tmp_path / "cut" / "block_00001.safetensors").unlink()
    omniquant.calibrate(model, tokens, "W4A4", output=tmp_path / "cut", resume=True, **OPTIONS)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="lac True, not False"):
        omniquant.calibrate(
            model, tokens, "W4A4", output=tmp_path / "cut", resume=True, **OPTIONS | {"lac": False}
        )


def test_what_it_costs_and_who_may():
    config = QuantConfig.parse("W4A4")
    options = CalibrationOptions.for_method("affinequant", config, **BOTH)
    costs = {entry.site: entry.multiply_adds for entry in describe_maps(options, SPEC)}
    assert costs["inputs of linears"] == 2 * 576 * 48 + 576 * 73 + 1536 * 80
    with pytest.raises(ConfigError, match="it needs method 'affinequant'"):
        CalibrationOptions.for_method("omniquant", config, input_map="kronecker")
    with pytest.raises(ConfigError, match="the inputs have one map"):
        CalibrationOptions.for_method("affinequant", config, norm_map="online", **BOTH)


@pytest.mark.parametrize("format", FORMATS)
def test_no_format_holds_them(format):
    config = QuantConfig.parse("W8sA8sfKV16" if format == "compressed-tensors" else "W4A16g64")
    spec = replace(SPEC, hidden_size=512, head_dim=64, num_heads=8, num_kv_heads=4)
    options = CalibrationOptions.for_method("affinequant", config, shift=False, **BOTH)
    with pytest.raises(UnsupportedError, match="online maps on the inputs of linears"):
        refuse(Wish(format, "", config, options, spec))
    if format == "compressed-tensors":
        with pytest.raises(UnsupportedError, match="clipped activations"):
            refuse(Wish(format, "", config, replace(options, input_map="none"), spec))
