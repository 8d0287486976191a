"""ONNX and OpenVINO: their runtimes compute our logits, with and without a past."""

from __future__ import annotations

import numpy as np
import pytest
from exports import embedded_result, model_named, our_logits, tokens_of
from small_run import small_model, small_tokens
from third_party import OnnxSession, OpenvinoSession, difference, feed

import omniquant

SCHEMES = ["W2A16g64", "W4A16", "W4sA16g16", "W8A16g128"]


SESSIONS = {"onnx": OnnxSession, "openvino": OpenvinoSession}


def session_of(result, format, path, variant=None):
    pytest.importorskip("onnx" if format == "onnx" else "openvino")
    return SESSIONS[format](result.export(path, format, variant=variant))


@pytest.mark.parametrize(
    "scheme",
    ["W4A16g32", *(pytest.param(s, marks=pytest.mark.slow) for s in [*SCHEMES, "W3A16", "W6A16g32"])],
)
@pytest.mark.parametrize(
    ("format", "variant"), [("onnx", None), ("onnx", "dequantize-linear"), ("openvino", None)]
)
def test_logits(format, variant, scheme, tmp_path):
    if format == "onnx" and variant is None and scheme in ("W4A16", "W3A16", "W6A16g32"):
        pytest.skip("MatMulNBits cannot hold it")
    result = embedded_result(scheme)
    session = session_of(result, format, tmp_path / "out", variant)
    tokens = tokens_of(result)
    found = session.run(feed(result.architecture, tokens))["logits"]
    assert difference(found, our_logits(result, tokens)) < 1e-5


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_the_code_on_the_card_runs(format, tmp_path, monkeypatch):
    result = embedded_result("W4A16g32")
    session_of(result, format, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    names = {}
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code, names)
    assert difference(names["logits"], our_logits(result, names["ids"])) < 1e-5


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_online_maps_run_in_graphs(format, tmp_path):
    result = embedded_result("W4A16g32", "affinequant", norm_map="online")
    session = session_of(result, format, tmp_path / "out")
    tokens = tokens_of(result)
    found = session.run(feed(result.architecture, tokens))["logits"]
    assert difference(found, our_logits(result, tokens)) < 1e-5
    assert "163,840 multiply-adds a token added" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_past_and_a_padded_batch_change_nothing(format, tmp_path):
    result = embedded_result("W4A16g32")
    session = session_of(result, format, tmp_path / "out")
    tokens = tokens_of(result, 2, 24)
    whole = session.run(feed(result.architecture, tokens))["logits"]
    first = session.run(feed(result.architecture, tokens[:, :16]))
    second = session.run(feed(result.architecture, tokens[:, 16:], first))
    parts = np.concatenate([first["logits"], second["logits"]], axis=1)
    assert difference(parts, whole) < 1e-5
    assert second["present.4.value"].shape == (2, 4, 24, 16)
    padded = np.concatenate([np.zeros((2, 3), tokens.dtype), tokens], axis=1)
    mask = np.concatenate([np.zeros((2, 3), np.int64), np.ones((2, 24), np.int64)], axis=1)
    shifted = session.run(feed(result.architecture, padded, mask=mask))["logits"][:, 3:]
    assert difference(shifted, whole) < 1e-5


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_biases_activations_and_float_weights(format, activation, tmp_path):
    options = {"hidden_act": activation, "attention_bias": True, "mlp_bias": True}
    model = small_model(tmp_path / "model", tie_word_embeddings=False, **options)
    for scheme in ("W4A16", "W16A16"):
        result = omniquant.calibrate(model, small_tokens(), scheme, method="rtn", progress=False)
        variant = "dequantize-linear" if format == "onnx" else None
        session = session_of(result, format, tmp_path / scheme, variant)
        tokens = tokens_of(result, 2, 12)
        found = session.run(feed(result.architecture, tokens))["logits"]
        assert difference(found, our_logits(result, tokens)) < 1e-5


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_stories(format, shared, tmp_path):
    model = model_named("stories260K", shared)
    variant = "dequantize-linear" if format == "onnx" else None
    for scheme in ("W3A16", "W4A16g4"):
        result = omniquant.calibrate(model, tokens_of(model), scheme, method="rtn", progress=False)
        session = session_of(result, format, tmp_path / scheme, variant)
        tokens = tokens_of(result)
        found = session.run(feed(result.architecture, tokens))["logits"]
        assert difference(found, our_logits(result, tokens)) < 1e-5


def test_the_onnx_model_is_valid(tmp_path):
    onnx = pytest.importorskip("onnx")
    path = embedded_result("W4A16g32").export(tmp_path / "out", "onnx", variant="dequantize-linear")
    onnx.checker.check_model(onnx.load(path / "model.onnx"), full_check=True)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_online_rotations_run_in_graphs(format, tmp_path):
    result = embedded_result("W4A16g32", rotation="online")
    session = session_of(result, format, tmp_path / "out")
    tokens = tokens_of(result)
    found = session.run(feed(result.architecture, tokens))["logits"]
    assert difference(found, our_logits(result, tokens)) < 1e-5
    assert "online maps and rotations" in (tmp_path / "out" / "README.md").read_text()
