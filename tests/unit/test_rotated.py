"""A model in a rotated basis is the same model, and everything that follows takes it as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy_llama import forward
from rotations import fixed_rotation
from small_run import contents, small_model, small_tokens

import omniquant
from omniquant import _core
from omniquant.config import CalibrationOptions, QuantConfig
from omniquant.describe import describe_maps
from omniquant.errors import CheckpointError, ConfigError, UnsupportedError
from omniquant.models import BlockSpec
from omniquant.models.rotated import RotatedModel, Rotation, rotation_cost
from omniquant.quantized import CalibrationResult, QuantizedModel

ROTATIONS = {
    "folded": Rotation(3),
    "online": Rotation(3, online=True),
    "and q, k": Rotation(4, online=True, qk=True),
}
ONLINE = {"method": "omniquant", "rotation": "online", "epochs": 2, "progress": False, "threads": 1}


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 12, 16, 32, 43, 48, 96, 172, 576])
@pytest.mark.parametrize("stride", [1, 4])
def test_the_fixed_rotation_of_any_size(n, stride):
    x = np.random.default_rng(n).standard_normal((19, n, stride))
    found = _core.hadamard(x, threads=2)
    np.testing.assert_allclose(found, np.einsum("rns,nm->rms", x, fixed_rotation(n)), atol=2e-6 * n**0.5)
    np.testing.assert_array_equal(found, _core.hadamard(x, threads=1))
    np.testing.assert_array_equal(found[3:5], _core.hadamard(x[3:5]))  # a row by itself
    np.testing.assert_allclose(_core.hadamard(found), x, atol=1e-5)


def test_it_is_orthogonal_and_no_entry_is_large():
    for n in (12, 43, 576):
        turn = fixed_rotation(n)
        np.testing.assert_allclose(turn @ turn.T, np.eye(n), atol=1e-12)
        assert np.abs(turn).max() <= np.sqrt(2 / n) + 1e-12


BIASES = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}


@pytest.fixture(params=[{}, BIASES], ids=["plain", "biases"])
def model(request, tmp_path):
    return small_model(tmp_path / "model", **request.param)


@pytest.mark.parametrize("rotation", ROTATIONS.values(), ids=ROTATIONS)
def test_the_function_stays(model, rotation):
    tokens = small_tokens(2, 12)
    rotated = RotatedModel(model, rotation)
    expected, found = forward(model, tokens), forward(rotated, tokens)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    original = omniquant.perplexity(model, tokens)
    assert omniquant.perplexity(rotated, tokens) == pytest.approx(original, rel=1e-5)
    assert rotated.fingerprint() == model.fingerprint()
    assert not rotated.architecture.tied_embeddings
    weights = rotated.block(0)
    assert np.array_equal(weights["norm1.weight"], np.ones(16))
    assert not np.allclose(weights["q.weight"], model.block(0)["q.weight"])


def test_outliers_are_spread():
    model = omniquant.load_model("omniquant-tiny")
    tokens = omniquant.evaluation_windows(None, model, seqlen=32)[:1]
    x = RotatedModel(model, Rotation()).embed(tokens), model.embed(tokens)
    peaks = [np.abs(e).max(axis=-1) / np.sqrt((e**2).mean(axis=-1)) for e in x]
    assert peaks[0].mean() < peaks[1].mean()


def test_a_layer_norm_is_refused(tmp_path):
    model = small_model(tmp_path / "model")
    layer = replace(model.architecture, spec=replace(model.spec, norm="layer"))
    with pytest.raises(UnsupportedError, match="LayerNorm subtracts the mean"):
        Rotation().architecture(layer)


@pytest.mark.parametrize("method", ["rtn", "omniquant", "affinequant"])
@pytest.mark.parametrize("scheme", ["W4A4", "W4A4KV16"])
def test_every_method_runs_in_it_and_its_result_on_integers(method, scheme, tmp_path):
    model, tokens = small_model(tmp_path / "model"), small_tokens()
    options = ONLINE | {"method": method}
    result = omniquant.calibrate(model, tokens, scheme, output=tmp_path / "out", **options)
    spec = result.architecture.spec
    assert (spec.rotate_heads, spec.rotate_down, spec.rotate_qk) == (True, True, scheme == "W4A4")
    fake = omniquant.perplexity(result, tokens)
    stored = QuantizedModel.load(tmp_path / "out")
    assert stored.spec == spec
    assert omniquant.perplexity(stored, tokens) == fake
    memory = omniquant.calibrate(model, tokens, scheme, **options)
    assert omniquant.perplexity(memory, tokens) == fake
    assert memory.fold().perplexity(tokens) == stored.perplexity(tokens)
    assert CalibrationResult.load(tmp_path / "out").options.rotation == "online"


def test_it_resumes_to_the_same_bits_and_refuses_another_basis(tmp_path):
    model, tokens = small_model(tmp_path / "model"), small_tokens()
    omniquant.calibrate(model, tokens, "W4A4", output=tmp_path / "whole", **ONLINE)
    omniquant.calibrate(model, tokens, "W4A4", output=tmp_path / "cut", **ONLINE | {"threads": 2})
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    (tmp_path / "cut" / "block_00001.safetensors").unlink()
    (tmp_path / "cut" / "outer.safetensors").unlink()
    omniquant.calibrate(model, tokens, "W4A4", output=tmp_path / "cut", resume=True, **ONLINE)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="rotation online, not folded"):
        omniquant.calibrate(
            model, tokens, "W4A4", output=tmp_path / "cut", resume=True, **ONLINE | {"rotation": "folded"}
        )


def test_costs_are_told():
    spec = BlockSpec(576, 1536, 9, 3, 64)
    options = CalibrationOptions.for_method("rtn", QuantConfig.parse("W4A4"), rotation="online")
    online = replace(spec, rotate_qk=True, rotate_heads=True, rotate_down=True)
    costs = {entry.site: entry.multiply_adds for entry in describe_maps(options, online)}
    assert costs == {
        "residual stream": 0,
        "v -> o": 0,
        "q and k": 12 * 64 * 6,
        "before o": 64 * 9 * 9,
        "before down": 1536 * (9 + 3),
    }
    assert rotation_cost(1) == 0


def test_an_unknown_rotation_is_refused():
    with pytest.raises(ConfigError, match="rotation 'some' is not one of none, folded, online"):
        CalibrationOptions.for_method("rtn", QuantConfig.parse("W4A4"), rotation="some")
