"""GPTQ and AWQ, unpacked here word by word as their specifications say, and by a third-party loader."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
from exports import embedded_result, our_logits, tokens_of
from third_party import gptq_model, torch_logits

from omniquant.errors import UnsupportedError

LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def stream_value(words, index, bits):
    """Return value `index` of a little-endian bit stream of int32 words, one bit after the other."""
    value = 0
    for bit in range(bits):
        at = index * bits + bit
        value |= (int(words[at // 32]) >> (at % 32) & 1) << bit
    return value


def gptq_weight(tensors, at, bits, inputs, offset):
    """Return W [N, K] in float64 of a GPTQ linear."""
    qweight, qzeros = tensors[f"{at}.qweight"], tensors[f"{at}.qzeros"]
    scales, g_idx = tensors[f"{at}.scales"].astype(np.float64), tensors[f"{at}.g_idx"]
    outputs = qweight.shape[1]
    codes = np.array([[stream_value(qweight[:, n], k, bits) for k in range(inputs)] for n in range(outputs)])
    zeros = np.array([[stream_value(row, n, bits) + offset for n in range(outputs)] for row in qzeros])
    return (codes - zeros[g_idx].T) * scales[g_idx].T


@pytest.mark.parametrize("scheme", ["W2A16g64", "W3A16g32", "W4A16g32", "W4A16", "W8A16g128"])
def test_gptq_by_its_specification(scheme, tmp_path):
    result = embedded_result(scheme, target="gptq")
    path = result.export(tmp_path / "out", "gptq")
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    weights, bits = result.fold().block(1), result.scheme.w_bits
    for name in ("k", "down"):
        weight = weights[f"{name}.weight"]
        found = gptq_weight(tensors, f"model.layers.1.{LINEARS[name]}", bits, weight.shape[1], 0)
        np.testing.assert_array_equal(found.astype(np.float32), weight)
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["bits"], config["sym"]) == ("gptq", bits, False)
    assert config["group_size"] == (result.scheme.group_size or -1)
    assert config["checkpoint_format"] == "gptq_v2"


def test_the_first_version_of_gptq_stores_one_less(tmp_path):
    result = embedded_result("W4sA16g32", target="gptq")
    path = result.export(tmp_path / "out", "gptq", variant="v1")
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    found = gptq_weight(tensors, "model.layers.0.self_attn.k_proj", 4, 128, 1)
    np.testing.assert_array_equal(found.astype(np.float32), result.fold().block(0)["k.weight"])
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    assert config["checkpoint_format"] == "gptq"


def test_a_zero_point_of_zero_does_not_wrap_around(tmp_path, monkeypatch):
    result = embedded_result("W4A16g32", target="gptq")
    result.state(2).folded["up.zero_point"][5, 1] = 0
    message = (
        r"block 2 up: a zero point is 0 and the first version stores z - 1; nearest: without --variant v1"
    )
    with pytest.raises(UnsupportedError, match=message):
        result.export(tmp_path / "out", "gptq", variant="v1")
    assert list(tmp_path.iterdir()) == []
    result.export(tmp_path / "out", "gptq")


@pytest.mark.parametrize("format", ["gptq", "awq", "gguf"])
def test_scales_too_large_for_float16_are_refused(format, tmp_path):
    if format == "gguf":
        pytest.importorskip("gguf")
    result = embedded_result("W4A16g32")
    result.state(0).folded["q.scale"][0, 0] = 1e6
    with pytest.raises(UnsupportedError, match=rf"{format} cannot hold .*q: a scale of 1e\+06 is too large"):
        result.export(tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["W4A16g32", "W4A16", "W4sA16g64"])
def test_awq_by_its_specification(scheme, tmp_path):
    result = embedded_result(scheme, target="awq")
    path = result.export(tmp_path / "out", "awq")
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def unpacked(words):
        values = np.empty((words.shape[0], words.shape[1] * 8), np.int64)
        for i in range(8):
            values[:, order[i] :: 8] = words.astype(np.int64) >> (4 * i) & 15
        return values

    for name, part in LINEARS.items():
        at = f"model.layers.3.{part}"
        codes, zeros = unpacked(tensors[f"{at}.qweight"]), unpacked(tensors[f"{at}.qzeros"])
        scales = tensors[f"{at}.scales"].astype(np.float64)
        group = codes.shape[0] // scales.shape[0]
        weight = (codes - np.repeat(zeros, group, axis=0)) * np.repeat(scales, group, axis=0)
        np.testing.assert_array_equal(
            weight.T.astype(np.float32), result.fold().block(3)[f"{name}.weight"], err_msg=name
        )
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["version"], config["zero_point"]) == ("awq", "gemm", True)


def test_scales_are_rounded_where_nobody_calibrated_for_them(tmp_path):
    result = embedded_result("W4A16g32")
    path = result.export(tmp_path / "out", "gptq")
    assert "calibrate with --target gptq to lose nothing" in (path / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["W2A16g64", "W3A16g32", "W4A16g32", "W4sA16", "W8A16"])
def test_a_real_loader_reads_gptq(scheme, tmp_path):
    torch = pytest.importorskip("torch")
    result = embedded_result(scheme, "omniquant", target="gptq")
    path = result.export(tmp_path / "out", "gptq")
    model = gptq_model(path)
    with torch.no_grad():
        weight = model.model.layers[2].mlp.down_proj(torch.eye(384)).numpy().T
    np.testing.assert_array_equal(weight, result.fold().block(2)["down.weight"])
    tokens = tokens_of(result)
    found = torch_logits(model, tokens)
    assert np.abs(found - our_logits(result, tokens)).max() < 1e-3
